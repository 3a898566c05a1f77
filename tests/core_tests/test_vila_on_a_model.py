"""VILA on a model: a random adapter's gradients as importance, measured without gradients of W."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_variance import naive_variance, normal
from random_models import each_architecture, layers_of, loaded, splits
from torch import Tensor, nn

from core.config import TrialConfig, parse_trial
from core.data.tokens import TokenRow
from core.errors import DataError
from core.fila import normalise_rows, relative_floor, relative_importance, row_weights
from core.model.layers import dense_weight, oriented
from core.model.loading import LoadedModel, weights_checksum
from core.seeding import derive_seed
from core.training.adapter import InitialFactors
from core.training.importance import lora_fisher
from core.training.initialisation import initial_factors

LORA_RANK, SIGMA, SCALING, RANK = 3, 0.2, 1.5, 4

transposes_are_handled = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False:UserWarning"  # PEFT, for Conv1D
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own: what is measured here is measured anew."""
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trial(changes: Mapping[str, Mapping[str, Any]] | None = None) -> TrialConfig:
    values: dict[str, dict[str, Any]] = {
        "model": {"source": "package:smollm2"},
        "data": {r: {"source": f"{r}.txt"} for r in ("forget", "retain", "approximate", "general")},
        "method": {"forget_loss": "ihl", "adapter_init": "vila"},
        "optimizer": {"learning_rate": 1e-3},
        "adapter": {"rank": RANK, "scaling": SCALING},
        "fisher": {"lora_rank": LORA_RANK, "lora_sigma": SIGMA},
        "selection": {"max_steps": 1},
    }
    for section, fields in (changes or {}).items():
        values[section] = values[section] | dict(fields)
    return parse_trial(values, where="test")


def naive_lora_fisher(
    model: LoadedModel, rows: Sequence[TokenRow], *, batch_size: int
) -> dict[str, Tensor]:
    """Autograd through W + s B A, written into the weights; loss and batches put together by hand."""
    weights = dict(model.network.named_parameters())
    factors: dict[str, Tensor] = {}
    changed = {}
    for name, layer in layers_of(model).items():
        n_out, n_in = dense_weight(layer).shape
        for side, shape in (("a", (LORA_RANK, n_in)), ("b", (n_out, LORA_RANK))):
            seed = derive_seed(0, "vila", name, side)
            factors[f"{name}.{side}"] = (SIGMA * normal(*shape, seed=seed)).requires_grad_()
        product = SCALING * factors[f"{name}.b"] @ factors[f"{name}.a"]
        changed[f"{name}.weight"] = weights[f"{name}.weight"] + oriented(layer, product)
    batches: list[Mapping[str, Tensor]] = []
    counts: list[int] = []
    for start in range(0, len(rows), batch_size):
        nll, count = torch.zeros(()), 0
        for row in rows[start : start + batch_size]:
            ids = torch.tensor([row.ids])
            output = torch.func.functional_call(
                model.network, changed, kwargs={"input_ids": ids, "use_cache": False}
            )
            log_probs = torch.log_softmax(output.logits[0], dim=-1)
            for position in range(max(1, row.n_context), len(row.ids)):
                nll = nll - log_probs[position - 1, row.ids[position]]
                count += 1
        found = torch.autograd.grad(nll / count, list(factors.values()), retain_graph=True)
        batches.append(dict(zip(factors, found, strict=True)))
        counts.append(count)
    return {
        name: naive_variance(torch.stack([b[name] for b in batches]), counts).float()
        for name in factors
    }


@transposes_are_handled
@each_architecture
@pytest.mark.parametrize("batch_size", [1, 2])
def test_fisher_of_the_random_adapter_equals_autograd_through_w_plus_s_b_a(
    name: str, batch_size: int
) -> None:
    model, data = loaded(name), splits()
    config = trial(
        {"fisher": {"lora_rank": LORA_RANK, "lora_sigma": SIGMA, "batch_size": batch_size}}
    )
    found = lora_fisher(config, model, data, layers_of(model))
    rows = {"forget": data["forget"], "retain": data["retain_train"][:5]}
    expected = {
        f"{part}/{key}": fisher
        for part, measured in rows.items()
        for key, fisher in naive_lora_fisher(model, measured, batch_size=batch_size).items()
    }
    assert found.keys() == expected.keys()
    for key, fisher in expected.items():
        torch.testing.assert_close(
            found[key], fisher, rtol=1e-3, atol=1e-5 * float(fisher.max()), msg=key
        )


@transposes_are_handled
@each_architecture
def test_the_initial_factors_are_the_best_under_the_row_weights_of_the_maps(name: str) -> None:
    model, data = loaded(name), splits()
    config = trial()
    factors = initial_factors(config, model, data)
    forget = naive_lora_fisher(model, data["forget"], batch_size=1)
    retain = naive_lora_fisher(model, data["retain_train"][:5], batch_size=1)
    assert list(factors) == list(layers_of(model))
    for key, layer in layers_of(model).items():
        map_forget, map_retain = (f[f"{key}.b"] @ f[f"{key}.a"] for f in (forget, retain))
        floor = relative_floor(map_retain, config.fisher.floor)
        importance = relative_importance(map_forget, map_retain, floor=floor)
        rho = normalise_rows(row_weights(importance, exponent=0.5)).double().unsqueeze(1)
        weight, found = dense_weight(layer).double(), factors[key]
        assert found.b is not None
        product = SCALING * found.b.double() @ found.a.double()
        s = torch.linalg.svdvals(rho * weight)
        error = float((rho * (weight - product)).norm())
        assert error <= float(s[RANK:].norm()) * (1 + 1e-5) + 1e-6 * float(s.norm())
        unweighted = torch.linalg.svd(weight, full_matrices=False)
        plain = (unweighted.U[:, :RANK] * unweighted.S[:RANK]) @ unweighted.Vh[:RANK]
        assert error < float((rho * (weight - plain)).norm())  # the weights matter


def test_exponent_zero_is_the_plain_svd_and_measures_nothing(own_cache: Path) -> None:
    model, data = loaded(), splits()
    zero = initial_factors(trial({"fisher": {"exponent": 0.0}}), model, data)
    svd = initial_factors(trial({"method": {"adapter_init": "svd"}}), model, data)
    assert_same_factors(zero, svd)
    assert not (own_cache / "lora_fisher").exists()
    weighted = initial_factors(trial(), model, data)
    assert any(not torch.equal(weighted[name].a, svd[name].a) for name in svd)


def assert_same_factors(
    found: Mapping[str, InitialFactors], expected: Mapping[str, InitialFactors]
) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name].a, expected[name].a, rtol=0, atol=0)
        torch.testing.assert_close(found[name].b, expected[name].b, rtol=0, atol=0)


def test_measured_twice_it_gives_the_same_factors_whatever_the_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = loaded(), splits()
    first = initial_factors(trial(), model, data)
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "another cache"))
    torch.manual_seed(12345)
    again = trial().model_copy(update={"seed": 7})  # shared by all seeds
    assert_same_factors(initial_factors(again, model, data), first)


@transposes_are_handled
@each_architecture
def test_afterwards_the_model_is_as_before_and_can_be_measured_again(name: str) -> None:
    model = loaded(name)
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        logits = model.network(input_ids=ids, use_cache=False).logits
    modules = dict(model.network.named_modules())
    checksum = weights_checksum(dict(model.network.named_parameters()))
    for sigma in (0.1, 0.2):
        initial_factors(trial({"fisher": {"lora_sigma": sigma}}), model, splits())
        assert weights_checksum(dict(model.network.named_parameters())) == checksum
        assert dict(model.network.named_modules()) == modules
        assert not any(p.requires_grad for p in model.network.parameters())
        assert all(p.grad is None for p in model.network.parameters())
        assert not any(m.training for m in modules.values())
        with torch.no_grad():
            found = model.network(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(found, logits, rtol=0, atol=0)


def test_no_gradient_of_a_base_weight_is_taken() -> None:
    model = loaded()
    trained: set[str] = set()

    def look(module: nn.Module, args: Any) -> None:
        trained.update(n for n, p in module.named_parameters() if p.requires_grad)

    hook = model.network.register_forward_pre_hook(look)
    lora_fisher(trial(), model, splits(), layers_of(model))
    hook.remove()
    assert len(trained) == 2 * len(layers_of(model))
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_a_bf16_model_gives_float32_fisher_near_the_float32_model_s() -> None:
    exact, data = loaded(), splits()
    rounded = loaded(dtype=torch.bfloat16)
    found = lora_fisher(trial(), rounded, data, layers_of(rounded))
    expected = lora_fisher(trial(), exact, data, layers_of(exact))
    assert {f.dtype for f in found.values()} == {torch.float32}
    for key, fisher in expected.items():
        assert float(found[key].sum()) == pytest.approx(float(fisher.sum()), rel=0.25), key


def n_made(cache: Path, kind: str) -> int:
    return len(list((cache / kind).glob("*.safetensors")))


def test_one_measurement_serves_all_ranks_floors_and_exponents(own_cache: Path) -> None:
    model, data = loaded(), splits()
    for rank in (2, 4):
        for fisher in ({"exponent": 0.5}, {"exponent": 1.0}, {"floor": 0.1}):
            initial_factors(trial({"adapter": {"rank": rank}, "fisher": fisher}), model, data)
    assert [n_made(own_cache, k) for k in ("lora_fisher", "importance", "factors")] == [1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"fisher": {"lora_rank": LORA_RANK + 1}},
        {"fisher": {"lora_sigma": 2 * SIGMA}},
        {"fisher": {"batch_size": 2}},
        {"fisher": {"rows": 3}},
        {"adapter": {"scaling": 2 * SCALING}},
        {"adapter": {"layers": [1]}},
    ],
    ids=lambda c: "-".join(f"{section}.{next(iter(fields))}" for section, fields in c.items()),
)
def test_what_changes_the_measurement_is_measured_apart(
    own_cache: Path, changes: Mapping[str, Mapping[str, Any]]
) -> None:
    model, data = loaded(), splits()
    initial_factors(trial(), model, data)
    initial_factors(trial(changes), model, data)
    assert n_made(own_cache, "lora_fisher") == n_made(own_cache, "importance") == 2


def test_fila_does_not_depend_on_the_settings_of_vila(own_cache: Path) -> None:
    model, data = loaded(), splits()
    fila = {"method": {"adapter_init": "fila"}}
    first = initial_factors(trial(fila), model, data)
    other = initial_factors(trial(fila | {"fisher": {"lora_rank": 5}}), model, data)
    assert_same_factors(other, first)
    assert n_made(own_cache, "importance") == n_made(own_cache, "factors") == 1
    vila = initial_factors(trial(), model, data)
    assert any(not torch.equal(vila[name].a, first[name].a) for name in first)


@pytest.mark.parametrize("init", ["lora", "svd", "fila", "vila"])
def test_only_the_chosen_blocks_get_factors(init: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "method": {"adapter_init": init},
        "adapter": {"rank": 2, "layers": [1]},
    }
    factors = initial_factors(trial(changes), loaded(), splits())
    assert len(factors) == 7
    assert all(name.startswith("model.layers.1.") for name in factors)


@pytest.mark.parametrize(
    ("fisher", "message"),
    [
        ({"batch_size": 5}, "needs two of the forget set, got batch_size=5 for 5 rows; lower it"),
        ({"rows": 1}, r"got batch_size=1 for 1 rows; lower it, or raise fisher\.rows"),
    ],
)
def test_a_single_batch_has_no_variance_and_is_refused(
    fisher: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        initial_factors(trial({"fisher": fisher}), loaded(), splits())
