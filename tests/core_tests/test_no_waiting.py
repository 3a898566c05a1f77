"""Nothing between the rows of a step and its gradient asks the device for a number: who asks, waits for it.

The device is torch's ``meta`` here, which has shapes and no numbers: asking it for one is an error.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from core.config import MethodConfig
from core.config.method import Need
from core.data.tokens import TokenRow
from core.losses import FORGET_LOSSES, RETAIN_LOSSES, Outputs, Residual
from core.losses.outputs import Given
from core.metrics.probes import token_sums
from core.model.reading import Reader
from core.training.adapter import InitialFactors
from core.training.packed_layer import Division, PackedLayer
from core.training.passes import Forwarded, Part, Wanted
from core.training.reading import read_parts

META = torch.device("meta")
ROWS = (TokenRow(tuple(range(1, 9)), 0), TokenRow((3, 1, 4, 1, 5), 2), TokenRow((2, 7), 1))
VOCABULARY = 40


@pytest.fixture
def network() -> Any:
    """A small model without weights."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with META:
        made = transformers.LlamaForCausalLM(config)
    return made.eval().requires_grad_(False)


def passed(network: Any, trained: Any, parts: list[Part], dividing: Any) -> list[Forwarded]:
    return read_parts(
        network,
        parts,
        module=network,
        reader=Reader(end_to_end=True),
        device=META,
        trained=trained,
        checkpoints=False,
        dividing=dividing,
    )


def on_device(*size: int) -> Tensor:
    return torch.empty(size, device=META, requires_grad=True)


def given(need: Need, labels_BT: Tensor) -> Given:
    """What meets a need, where it lies in a trial."""
    rows, longest, width, n = (*labels_BT.shape, 6, int((labels_BT[:, 1:] != -100).sum()))
    residual = Residual(
        added_BTO=on_device(rows, longest, 6),
        base_BTO=on_device(rows, longest, 6).detach(),
        direction_O=on_device(6).detach(),
    )
    others = (labels_BT + 1).masked_fill(labels_BT == -100, -100)
    found: dict[Need, Given] = {
        "reference_nll": on_device(rows).detach(),
        "reference_logits": on_device(n, VOCABULARY).detach(),
        "hidden": on_device(rows, longest, width),
        "reference_hidden": on_device(rows, longest, width).detach(),
        "control": on_device(width).detach(),
        "residuals": [residual, residual],
        "random_labels": others,
        "adversarial_labels": others,
    }
    return found[need]


def labels() -> Tensor:
    return Reader(end_to_end=True).lay(ROWS, META).labels_BT


def outputs(needs: frozenset[Need]) -> Outputs:
    labels_BT = labels()
    n = int((labels_BT[:, 1:] != -100).sum())
    return Outputs(
        logits=on_device(n, VOCABULARY),
        labels_BT=labels_BT,
        given={need: given(need, labels_BT) for need in needs},
    )


@pytest.mark.parametrize("name", list(FORGET_LOSSES))
def test_no_forget_loss_waits(name: Any) -> None:
    loss, method = FORGET_LOSSES[name], MethodConfig(forget_loss=name)
    forget = outputs(loss.needs) if loss.reads != "alternative" else None
    alternative = outputs(loss.needs) if loss.reads != "forget" else None
    found = loss.compute(forget, alternative, method)
    assert (found.device.type, found.shape) == ("meta", ())
    found.backward()


@pytest.mark.parametrize("name", [n for n, loss in RETAIN_LOSSES.items() if loss is not None])
def test_no_retain_loss_waits(name: Any) -> None:
    loss = RETAIN_LOSSES[name]
    assert loss is not None
    found = loss.compute(outputs(loss.needs), MethodConfig(forget_loss="ga", retain_loss=name))
    assert (found.device.type, found.shape) == ("meta", ())
    found.backward()


def test_labels_on_the_device_would_be_waited_for() -> None:
    """What the tests above would see."""
    loss = RETAIN_LOSSES["nll"]
    assert loss is not None
    seen = outputs(loss.needs)
    asked = Outputs(logits=seen.logits, labels_BT=seen.labels_BT.to(META), given=seen.given)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        loss.compute(asked, MethodConfig(forget_loss="ga", retain_loss="nll"))


def test_no_pass_of_a_pack_waits(network: Any) -> None:
    """Two slots of two ranks, one of them with factors B0; rows of unequal length."""
    division = Division(2, META, together=True)
    layers: dict[str, PackedLayer] = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            n_out, n_in = module.weight.shape
            layer = PackedLayer((n_out, n_in), 4, division, dtype=torch.float32)
            with META:
                layer.fill(0, InitialFactors(a=torch.empty(4, n_in), b=torch.empty(n_out, 4)))
                layer.fill(1, InitialFactors(a=torch.empty(2, n_in), b=None))
            module.register_forward_hook(layer.hook)
            layers[name] = layer
    parts = [Part(rows=ROWS), Part(rows=ROWS[:1])]

    def dividing(positions: Any) -> Any:
        return division.among(dict(enumerate(positions)))

    found = passed(network, None, parts, dividing)
    loss = RETAIN_LOSSES["nll"]
    assert loss is not None
    shares = [
        loss.compute(
            Outputs(logits=f.logits_NV, labels_BT=f.labels_BT, given={}),
            MethodConfig(forget_loss="ga", retain_loss="nll"),
        )
        for f in found
    ]
    together = torch.stack([torch.where(s.isfinite(), s, 0.0) for s in shares]).sum()
    together.backward()
    for layer in layers.values():
        for slot in (0, 1):
            assert all(p.grad is not None for p in layer.increments(slot))


def test_no_probe_waits(network: Any) -> None:
    reader = Reader(end_to_end=True)
    layout = reader.lay(ROWS, META)
    with torch.no_grad():
        sums = token_sums(reader.read(network, network, layout).logits_NV, layout.labels_BT)
    assert (sums.device.type, tuple(sums.shape)) == ("meta", (3, 3))


def test_blocks_of_a_pass_are_told_apart_without_waiting(network: Any) -> None:
    (found,) = passed(
        copy.deepcopy(network),
        None,
        [Part(rows=ROWS, wanted=Wanted(block=0))],
        lambda positions: torch.no_grad(),
    )
    assert found.block_BTD is not None
    assert tuple(found.block_BTD.shape) == (3, 8, 16)
