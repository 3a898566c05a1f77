"""Row sums of the importance: what stays of Fisher information, measured a few layers at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import each_architecture, layers_of, loaded, splits
from torch import Tensor, nn

from core.config import TrialConfig, parse_trial
from core.data.tokens import TokenRow
from core.fisher import layer_groups
from core.model.layers import dense_weight, oriented
from core.model.loading import LoadedModel
from core.model.memory import free_bytes
from core.training.importance import importance_sums
from core.training.initialisation import initial_factors


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own: what is measured here is measured anew."""
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trial(**fisher: Any) -> TrialConfig:
    data = {r: {"source": f"{r}.txt"} for r in ("forget", "retain", "approximate", "general")}
    values = {
        "model": {"source": "package:smollm2"},
        "data": data,
        "method": {"forget_loss": "ihl", "adapter_init": "fila"},
        "optimizer": {"learning_rate": 1e-3},
        "adapter": {"rank": 4},
        "fisher": fisher,
        "selection": {"max_steps": 1},
    }
    return parse_trial(values, where="test")


@contextmanager
def passes(model: LoadedModel) -> Iterator[list[set[str]]]:
    """For each forward pass within the context, the weights whose gradient is taken."""
    seen: list[set[str]] = []

    def look(module: nn.Module, args: Any) -> None:
        seen.append({n for n, p in module.named_parameters() if p.requires_grad})

    hook = model.network.register_forward_pre_hook(look)
    yield seen
    hook.remove()


def naive_fisher(model: LoadedModel, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """Float64 mean over tokens of squared row gradients, by ``backward`` on all weights at once."""
    layers = layers_of(model)
    totals = {name: torch.zeros(1, dtype=torch.float64) for name in layers}
    n_tokens = 0
    model.network.requires_grad_(True)
    for row in rows:
        model.network.zero_grad()
        ids = torch.tensor([row.ids])
        first = max(1, row.n_context)
        logits = model.network(input_ids=ids, use_cache=False).logits[0, first - 1 : -1]
        torch.nn.functional.cross_entropy(logits, ids[0, first:]).backward()
        count = len(row.ids) - first
        n_tokens += count
        for name, layer in layers.items():
            gradient = oriented(layer, layer.get_parameter("weight").grad)  # type: ignore[arg-type]
            totals[name] = totals[name] + count * gradient.double().square()
    model.network.zero_grad()
    model.network.requires_grad_(False)
    return {name: total / n_tokens for name, total in totals.items()}


@each_architecture
@pytest.mark.parametrize("floor", [("relative", 0.01), ("absolute", 1e-3)], ids=lambda f: f[0])
def test_the_sums_are_those_of_the_whole_matrices(name: str, floor: tuple[str, float]) -> None:
    model, data = loaded(name), splits()
    found = importance_sums(
        trial(floor_kind=floor[0], floor=floor[1]), model, data, layers_of(model)
    )
    forget = naive_fisher(model, data["forget"])
    retain = naive_fisher(model, data["retain_train"][:5])
    assert found.keys() == layers_of(model).keys()
    for layer, sums in found.items():
        added = floor[1] * (retain[layer].mean() if floor[0] == "relative" else 1.0)
        expected = (forget[layer] / (added + retain[layer])).sum(dim=1).float()
        assert sums.shape == (len(dense_weight(layers_of(model)[layer])),)
        torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-5, msg=layer)


@each_architecture
def test_a_few_layers_at_a_time_are_all_layers_at_once_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = loaded(name), splits()
    layers = layers_of(model)
    found = []
    for budget in (1 << 30, 45_000, 1):
        monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / str(budget)))
        with passes(model) as seen:
            found.append(importance_sums(trial(), model, data, layers, budget=budget))
        at_once = max(map(len, seen))
        assert len(seen) % 10 == 0, "5 forget and 5 retain rows for each group"
        assert {weight for weights in seen for weight in weights} == {f"{n}.weight" for n in layers}
        if budget == 1:
            assert at_once == 1
            assert len(seen) == 10 * len(layers)
        else:
            assert at_once == len(layers) if budget == 1 << 30 else 1 < at_once < len(layers)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for layer, sums in other.items():
            torch.testing.assert_close(sums, found[0][layer], rtol=0, atol=0, msg=layer)


def test_the_sums_held_at_a_time_fit_the_budget() -> None:
    model, budget = loaded(), 20_000
    layers = layers_of(model)
    sizes = {f"{n}.weight": dense_weight(layer).numel() for n, layer in layers.items()}
    with passes(model) as seen:
        importance_sums(trial(), model, splits(), layers, budget=budget)
    for weights in seen:
        assert sum(sizes[w] for w in weights) * (4 + 4 + 4) <= budget  # two sums and a gradient


def test_what_is_kept_is_a_number_for_each_output_row_and_no_matrix(own_cache: Path) -> None:
    model = loaded()
    importance_sums(trial(), model, splits(), layers_of(model))
    (file,) = own_cache.rglob("*.safetensors")
    assert file.parent.name == "importance"
    weights = [dense_weight(layer) for layer in layers_of(model).values()]
    whole = sum(2 * 4 * w.numel() for w in weights)
    sums = sum(4 * len(w) for w in weights)
    assert sums < file.stat().st_size < sums + 2000  # names and shapes
    assert sums * 20 < whole


def test_one_measurement_serves_all_floors_of_a_sweep(own_cache: Path) -> None:
    model, data = loaded(), splits()
    trials = [
        trial(floor=floor, exponent=exponent)
        for floor in (1e-3, 1e-2, 1e-1)
        for exponent in (0.25, 0.5)
    ] + [trial(floor=1e-5, floor_kind="absolute")]
    with passes(model) as seen:
        for config in trials:
            initial_factors(config, model, data, others=trials)
    assert len(seen) == 10
    assert len(list((own_cache / "importance").glob("*.safetensors"))) == 4
    assert len(list((own_cache / "factors").glob("*.safetensors"))) == len(trials)


def test_what_was_measured_along_is_what_would_be_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = loaded(), splits()
    first, second = trial(floor=1e-3), trial(floor=1e-1)
    initial_factors(first, model, data, others=[first, second])
    with passes(model) as seen:
        along = importance_sums(second, model, data, layers_of(model))
    assert not seen
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "another cache"))
    alone = importance_sums(second, model, data, layers_of(model))
    for layer, sums in alone.items():
        torch.testing.assert_close(along[layer], sums, rtol=0, atol=0)


@pytest.mark.parametrize("fisher", [{"rows": 3}, {"batch_size": 2}], ids=str)
def test_other_rows_and_batches_are_measured_apart(fisher: dict[str, Any]) -> None:
    model, data = loaded(), splits()
    other = trial(**fisher, floor=0.5)
    importance_sums(trial(), model, data, layers_of(model), others=[other])
    with passes(model) as seen:
        importance_sums(other, model, data, layers_of(model))
    assert seen


def test_a_bf16_model_is_measured_in_float32() -> None:
    exact, rounded = loaded(), loaded(dtype=torch.bfloat16)
    found = importance_sums(trial(), rounded, splits(), layers_of(rounded))
    expected = importance_sums(trial(), exact, splits(), layers_of(exact))
    for name, sums in expected.items():
        assert found[name].dtype == torch.float32
        assert float(found[name].sum()) == pytest.approx(float(sums.sum()), rel=0.25), name


# Groups of layers


@pytest.mark.parametrize(
    ("at_most", "expected"),
    [
        pytest.param(100, [["a", "b", "c", "d"]], id="everything-fits"),
        pytest.param(5, [["a", "b"], ["c"], ["d"]], id="in-order"),
        pytest.param(1, [["a"], ["b"], ["c"], ["d"]], id="larger-ones-are-alone"),
        pytest.param(-7, [["a"], ["b"], ["c"], ["d"]], id="nothing-is-free"),
    ],
)
def test_groups_of_layers_by_hand(at_most: int, expected: list[list[str]]) -> None:
    assert layer_groups({"a": 2, "b": 3, "c": 4, "d": 9}, at_most=at_most) == expected


# Free memory


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    with Path("/proc/meminfo").open(encoding="utf-8") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < free_bytes(torch.device("cpu")) < total
