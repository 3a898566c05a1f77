"""Needs as objects: nothing is computed before they are prepared, and a step asks for what they want."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from core.config import TrialConfig
from core.config.method import ForgetLossId, RetainLossId
from core.data.batches import collate, reading_order
from core.data.tokens import TokenRow
from core.losses import sequence_nll
from core.losses.alignment import counted_logits
from core.training.needs import PROVIDERS, Surroundings
from core.training.passes import Forwarded, MicroBatch, Wanted
from core.training.ranks import Group
from core.training.reference import Reference
from core.training.steps import Steps
from core.training.warm import Warm

TrialMaker = Callable[..., TrialConfig]

ALONE = Group(rank=0, size=1)


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm()


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without anything in it."""
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path))
    return tmp_path


@contextmanager
def counted_passes(network: nn.Module) -> Iterator[list[int]]:
    """Rows of each forward pass of a network."""
    passes: list[int] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        passes.append(len(kwargs["input_ids"]))

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


CHANGES = [
    *(
        pytest.param({"method.forget_loss": loss, "method.retain_loss": "nll"}, id=loss)
        for loss in get_args(ForgetLossId)
        if loss != "rmu"
    ),
    *(
        pytest.param({"method.retain_loss": loss}, id=f"ihl-{loss}")
        for loss in get_args(RetainLossId)
        if loss != "nll"
    ),
    pytest.param({"method.forget_loss": "rmu", "method.retain_loss": "activation"}, id="rmu"),
]


@pytest.mark.parametrize("changes", CHANGES)
def test_making_the_steps_runs_no_forward_pass(
    make_trial: TrialMaker, warm: Warm, fresh_cache: Path, changes: dict[str, Any]
) -> None:
    config = make_trial(changes)
    model, data = warm.model(config), warm.data(config)
    with counted_passes(model.network) as passes:
        steps = Steps(config, model, data)
        assert passes == []
        assert not list(fresh_cache.rglob("*.safetensors"))
        steps.prepare()
    cached = {"reference_nll", "reference_logits", "reference_hidden", "adversarial_labels"}
    retain = config.method.retain_facts
    needs = config.method.forget_facts.needs | (frozenset() if retain is None else retain.needs)
    assert bool(passes) == bool(needs & cached)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        pytest.param({}, Wanted(), id="nothing"),
        pytest.param({"method.forget_loss": "residual"}, Wanted(adapter_outputs=True), id="taps"),
        pytest.param(
            {"method.forget_loss": "rmu", "method.retain_loss": "activation"},
            Wanted(block=0),
            id="block",
        ),
        pytest.param({"method.forget_loss": "undial"}, Wanted(), id="cached-logits"),
        pytest.param(
            {"method.forget_loss": "undial", "engine.zero_stage": 3},
            Wanted(reference_logits=True),
            id="logits-under-zero-3",
        ),
    ],
)
def test_a_part_of_a_micro_batch_wants_what_its_needs_want(
    make_trial: TrialMaker, warm: Warm, changes: dict[str, Any], wanted: Wanted
) -> None:
    config = make_trial(changes)
    steps = Steps(config, warm.model(config), warm.data(config))
    steps.prepare()
    asked: list[MicroBatch] = []
    steps.train(Recorder(asked), ALONE)
    (micro_batch,) = asked
    assert micro_batch.parts[0].wanted == wanted
    assert len(micro_batch.parts) == 2
    assert all(len(part.rows) == 4 for part in micro_batch.parts)


class Recorder:
    """Keeps what a step asks for, and runs nothing."""

    def __init__(self, asked: list[MicroBatch]) -> None:
        self._asked = asked

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        self._asked += micro_batches


def test_wishes_add_up() -> None:
    one, other = Wanted(block=3), Wanted(adapter_outputs=True, reference_logits=True)
    both = Wanted(block=3, adapter_outputs=True, reference_logits=True)
    assert one.and_also(other) == other.and_also(one) == both
    assert Wanted().and_also(Wanted()) == Wanted()


def surroundings(config: TrialConfig, warm: Warm, rows: Sequence[TokenRow]) -> Surroundings:
    model = warm.model(config)
    return Surroundings(config=config, model=model, reference=Reference(model, rows))


def passed(config: TrialConfig, warm: Warm, rows: Sequence[TokenRow]) -> tuple[Forwarded, Tensor]:
    """A plain pass over rows, and the output of block 0."""
    network: Any = warm.model(config).network
    batch = collate(rows, torch.device("cpu"))
    with torch.no_grad():
        output = network(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    block = output.hidden_states[1]
    return Forwarded(
        logits_NV=counted_logits(output.logits, batch.labels)[0],
        labels_BT=batch.labels,
        block_BTD=block,
    ), batch.mask.bool()


def test_the_reference_model_says_the_same_from_the_cache_as_in_a_pass(
    make_trial: TrialMaker, warm: Warm
) -> None:
    config = make_trial()
    rows = warm.data(config)["forget"]
    some = rows[5:1:-1]
    forwarded, real = passed(config, warm, some)
    around = surroundings(config, warm, rows)
    found = {}
    for need in ("reference_nll", "reference_logits", "reference_hidden"):
        provider = PROVIDERS[need](around)
        provider.prepare()
        found[need] = provider.give(some, forwarded)
        assert isinstance(found[need], Tensor)
    torch.testing.assert_close(
        found["reference_nll"], sequence_nll(forwarded.logits_NV, forwarded.labels_BT)
    )
    logits = found["reference_logits"]
    assert isinstance(logits, Tensor)
    torch.testing.assert_close(logits, forwarded.logits_NV, rtol=1e-4, atol=1e-4)
    hidden, block = found["reference_hidden"], forwarded.block_BTD
    assert isinstance(hidden, Tensor)
    assert block is not None
    torch.testing.assert_close(hidden[real], block[real], rtol=1e-4, atol=1e-5)


def test_only_rows_that_nobody_asked_about_are_measured(
    make_trial: TrialMaker, warm: Warm, fresh_cache: Path
) -> None:
    config = make_trial()
    model, rows = warm.model(config), warm.data(config)["forget"]
    with counted_passes(model.network) as passes:
        for some, measured in ((rows[:5], 5), (rows[2:5], 0), (rows[3:8], 3), (rows[:8], 0)):
            passes.clear()
            reference = Reference(model, some)
            reference.prepare("nll")
            assert sum(passes) == measured
    alone = torch.cat([Reference(model, [row]).nll([row]) for row in rows[:8]])
    torch.testing.assert_close(
        alone, reference.nll(rows[:8]), rtol=0, atol=0
    )  # kept as first measured


def test_a_row_measured_alone_and_beside_others_differs_by_rounding_only(
    make_trial: TrialMaker, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_trial()
    model, rows = warm.model(config), warm.data(config)["forget"]
    found = {}
    for name, groups in (("together", [rows]), ("alone", [[row] for row in rows])):
        monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / name))
        asked = [Reference(model, group) for group in groups]
        for reference in asked:
            reference.prepare("block_hidden", block=0)
        found[name] = [
            reference.hidden([row], block=0)[0]
            for reference, group in zip(asked, groups, strict=True)
            for row in group
        ]
    for one, other in zip(found["together"], found["alone"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"batch.global_batch_size": 2}, id="batch"),
        pytest.param({"selection.max_steps": 2}, id="steps"),
    ],
)
def test_another_selection_of_retain_rows_measures_its_new_rows_only(
    make_trial: TrialMaker, warm: Warm, fresh_cache: Path, change: dict[str, Any]
) -> None:
    usual = {"method.retain_loss": "activation", "selection.max_steps": 1}
    config, other = make_trial(usual), make_trial(usual | change)
    model, data = warm.model(config), warm.data(config)
    read = [retain_rows_read(trial, data["retain_train"]) for trial in (config, other)]
    with counted_passes(model.network) as passes:
        Steps(config, model, data).prepare()
        assert sum(passes) == len(read[0])
        passes.clear()
        Steps(other, model, data).prepare()
        assert sum(passes) == len(read[1] - read[0])
    assert read[0] != read[1]


def retain_rows_read(config: TrialConfig, rows: Sequence[TokenRow]) -> set[TokenRow]:
    n_read = config.selection.max_steps * (config.batch.global_batch_size or 0)
    return set(islice(reading_order(rows, seed=config.seed, purpose="retain"), n_read))


def test_random_labels_of_a_row_are_the_same_in_every_batch(
    make_trial: TrialMaker, warm: Warm
) -> None:
    config = make_trial()
    rows = warm.data(config)["forget"]
    provider = PROVIDERS["random_labels"](surroundings(config, warm, rows))
    together = provider.give(rows, passed(config, warm, rows)[0])
    assert isinstance(together, Tensor)
    for i, row in enumerate(rows):
        alone = provider.give([row], passed(config, warm, [row])[0])
        assert isinstance(alone, Tensor)
        assert torch.equal(alone[0], together[i, : len(row.ids)])


def test_the_control_vector_has_its_length_and_comes_from_the_seed(
    make_trial: TrialMaker, warm: Warm
) -> None:
    changes = {"method.forget_loss": "rmu", "method.rmu.steering": 3.5}
    drawn = []
    for seed in (0, 0, 1):
        config = make_trial(changes | {"seed": seed})
        rows = warm.data(config)["forget"]
        provider = PROVIDERS["control"](surroundings(config, warm, rows))
        vector = provider.give(rows, passed(config, warm, rows)[0])
        assert isinstance(vector, Tensor)
        assert float(vector.norm()) == pytest.approx(3.5)
        assert provider.give(rows[:1], passed(config, warm, rows[:1])[0]) is vector
        drawn.append(vector)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
