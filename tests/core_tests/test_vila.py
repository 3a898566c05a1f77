"""VILA: variance of a random adapter's gradients as importance, measured without gradients of W."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.config import TrialConfig, parse_trial
from core.data.tokens import TokenRow, TokenSplits
from core.errors import DataError
from core.fila import normalise_rows, relative_floor, relative_importance, row_weights
from core.fisher import diagonal_fisher
from core.model.layers import dense_weight, oriented, resolve_targets
from core.model.loading import LoadedModel, weights_checksum
from core.seeding import derive_seed
from core.training.adapter import InitialFactors
from core.training.initialisation import initial_factors, lora_fisher
from core.vila import centred_fisher, importance_map

LORA_RANK, SIGMA, SCALING, RANK = 3, 0.2, 1.5, 4

LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "llama": LAYERS | {"num_key_value_heads": 1},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},  # stores transposes
    "phi": LAYERS,  # with biases
}
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
transposes_are_handled = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False:UserWarning"  # PEFT, for Conv1D
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients_of(
    gradients: Tensor, counts: Sequence[int]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    return (({"w": g}, n) for g, n in zip(gradients, counts, strict=True))


def naive_variance(gradients: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean squared distance from the mean, in float64: the definition, not the difference of moments."""
    weights = torch.tensor(counts, dtype=torch.float64)
    weights = (weights / weights.sum()).reshape(-1, *[1] * (gradients.ndim - 1))
    mean = (weights * gradients.double()).sum(dim=0)
    return (weights * (gradients.double() - mean).square()).sum(dim=0)


# Centred Fisher


def test_two_batches_by_hand() -> None:
    first = {"w": torch.tensor([[1.0, -2.0]])}
    second = {"w": torch.tensor([[3.0, -2.0]])}
    found = centred_fisher([(first, 1), (second, 3)])
    # E[g^2] = (1 + 3 * 9) / 4 = 7, E[g] = (1 + 3 * 3) / 4 = 2.5; the second entry never changes
    torch.testing.assert_close(found["w"], torch.tensor([[0.75, 0.0]]))


@given(
    counts=st.lists(st.integers(1, 50), min_size=2, max_size=6),
    n_out=st.integers(1, 4),
    n_in=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_it_equals_the_float64_variance(
    counts: list[int], n_out: int, n_in: int, seed: int
) -> None:
    gradients = normal(len(counts), n_out, n_in, seed=seed)
    found = centred_fisher(gradients_of(gradients, counts))["w"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, naive_variance(gradients, counts).float(), rtol=1e-5, atol=1e-9
    )


@given(counts=st.lists(st.integers(1, 50), min_size=2, max_size=6), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_it_is_the_diagonal_fisher_less_the_squared_mean(counts: list[int], seed: int) -> None:
    gradients = normal(len(counts), 3, 2, seed=seed)
    shares = torch.tensor(counts).reshape(-1, 1, 1) / sum(counts)
    uncentred = diagonal_fisher(gradients_of(gradients, counts))["w"]
    found = centred_fisher(gradients_of(gradients, counts))["w"]
    expected = uncentred - (shares * gradients).sum(dim=0).square()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_without_a_mean_give_the_diagonal_fisher() -> None:
    half = normal(3, 4, 2)
    gradients, counts = torch.cat([half, -half]), [1, 5, 2, 1, 5, 2]
    torch.testing.assert_close(
        centred_fisher(gradients_of(gradients, counts))["w"],
        diagonal_fisher(gradients_of(gradients, counts))["w"],
    )


def test_a_large_common_part_neither_counts_nor_costs_digits() -> None:
    small, counts = (1e-3 * normal(4, 5, 3).double()).float(), [3, 1, 4, 1]
    shifted = 1.0 + small
    found = centred_fisher(gradients_of(shifted, counts))["w"]
    torch.testing.assert_close(
        found, naive_variance(shifted, counts).float(), rtol=1e-5, atol=1e-14
    )
    shares = torch.tensor(counts).reshape(-1, 1, 1) / sum(counts)
    low = (shares * shifted.square()).sum(dim=0) - (shares * shifted).sum(dim=0).square()
    assert float((low / found - 1).abs().max()) > 1e-2  # what float32 moments would give


def test_further_passes_over_the_same_batches_change_nothing() -> None:
    gradients, counts = normal(4, 5, 3), [3, 1, 4, 1]
    torch.testing.assert_close(
        centred_fisher(gradients_of(gradients.repeat(10, 1, 1), counts * 10))["w"],
        centred_fisher(gradients_of(gradients, counts))["w"],
    )


def test_a_name_that_a_batch_leaves_out_has_gradient_zero_there() -> None:
    gradient, other = torch.tensor([2.0]), torch.tensor([1.0])
    left_out = centred_fisher([({"w": gradient, "v": other}, 1), ({"v": other}, 3)])
    given_zero = centred_fisher([({"w": gradient}, 1), ({"w": torch.zeros(1)}, 3)])
    assert left_out["w"].tolist() == given_zero["w"].tolist() == [0.75]  # 4 / 4 - (2 / 4)^2


def test_bf16_gradients_are_accumulated_in_full() -> None:
    gradients = torch.cat([torch.full((1000, 2), 0.1), torch.full((1000, 2), 0.3)]).bfloat16()
    found = centred_fisher(gradients_of(gradients, [7] * 2000))["w"]
    expected = (gradients[-1].double() - gradients[0].double()).square() / 4
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_batches", [0, 1])
def test_fewer_than_two_batches_are_refused(n_batches: int) -> None:
    with pytest.raises(ValueError, match=f"needs at least two of them, got {n_batches}"):
        centred_fisher([({"w": torch.ones(1)}, 1)] * n_batches)


@pytest.mark.parametrize("count", [0, -3])
def test_a_batch_that_counts_no_token_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"must count at least one token, got {count}"):
        centred_fisher([({"w": torch.ones(1)}, count)])


# Importance map


def test_the_map_by_hand() -> None:
    fisher_b = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    fisher_a = torch.tensor([[4.0, 0.0, 1.0], [5.0, 6.0, 0.0]])
    expected = torch.tensor([[14.0, 12.0, 1.0], [15.0, 18.0, 0.0]])
    torch.testing.assert_close(importance_map(fisher_b, fisher_a), expected)


@given(
    n_out=st.integers(1, 6),
    n_in=st.integers(1, 6),
    rank=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=40)
def test_the_map_equals_a_loop_and_its_rows_sum_without_it(
    n_out: int, n_in: int, rank: int, seed: int
) -> None:
    fisher_b = normal(n_out, rank, seed=seed).square()
    fisher_a = normal(rank, n_in, seed=seed + 1).square()
    found = importance_map(fisher_b, fisher_a)
    for i in range(n_out):
        for j in range(n_in):
            expected = sum(float(fisher_b[i, k]) * float(fisher_a[k, j]) for k in range(rank))
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found.sum(dim=1), fisher_b @ fisher_a.sum(dim=1))


@pytest.mark.parametrize("shape_a", [(3, 5), (2,)])
def test_factors_of_two_ranks_are_refused(shape_a: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have one rank, got \(4, 2\) and \("):
        importance_map(torch.ones(4, 2), torch.ones(shape_a))


# On a model


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


def loaded(name: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(name, **(sizes | ARCHITECTURES[name]))
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in network.parameters():  # larger than at the start of training
        parameter.data = 0.2 * torch.randn_like(parameter)
    return LoadedModel(
        network=network.to(dtype).requires_grad_(False),
        tokenizer=None,
        identity=f"tiny {name}",
        dtype=dtype,
        device=torch.device("cpu"),
    )


def token_rows(seed: int, lengths: Sequence[int]) -> tuple[TokenRow, ...]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, 50, (n,), generator=generator).tolist() for n in lengths]
    return tuple(TokenRow(tuple(ids), n_context=len(ids) // 3) for ids in drawn)


def splits() -> TokenSplits:
    """Rows of unequal length, and more of the retain set than are measured."""
    parts = {
        "forget": token_rows(1, (5, 12, 8, 3, 9)),
        "retain_train": token_rows(2, (7, 4, 11, 6, 10, 9)),
    }
    return TokenSplits(parts=parts, identity={name: name for name in parts})


def layers_of(model: LoadedModel) -> dict[str, nn.Module]:
    names = resolve_targets(model.network, "all", rank=1)
    return {name: model.network.get_submodule(name) for name in names}


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
    assert n_made(own_cache, "fisher") == n_made(own_cache, "factors") == 1
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
