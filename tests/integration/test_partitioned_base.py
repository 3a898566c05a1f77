"""Under ZeRO 3 each rank loads its part of the target model once, and adapters come and go on it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from two_ranks import spawned

from core.config import TrialConfig
from core.model.loading import load_model, parts_of
from core.store.place import CACHE_VARIABLE
from core.training.ranks import join
from core.training.warm import Warm
from core.worker import probes

pytestmark = pytest.mark.integration


COMPARED = ("forget_nll", "retain_nll", "general_nll")

TrialMaker = Callable[..., TrialConfig]

TRIALS: Mapping[str, Mapping[str, Any]] = {
    "first": {"method.adapter_init": "svd"},
    "another-rank": {"method.adapter_init": "fila", "adapter.rank": 2},
    "another-loss": {"method.forget_loss": "npo", "method.retain_loss": "kl", "adapter.rank": 6},
    "checkpointed": {"method.adapter_init": "svd", "engine.activation_checkpointing": True},
    "first-again": {"method.adapter_init": "svd"},
}


def run_rank(rank: int, host: str, port: int, trials: Sequence[str], folder: str) -> None:
    """One of two ranks: the trials one after the other on one partitioned base."""
    configs = [TrialConfig.model_validate_json(text) for text in trials]
    group = join(rank, 2, host, port, configs[0].engine)
    warm = Warm()
    seen: dict[str, Any] = {"series": [], "networks": [], "held": [], "checksums": []}
    for config in configs:
        seen["series"].append([dict(p.metrics) for p in probes(config, group=group, warm=warm)])
        network = warm.network(config)
        seen["networks"].append(id(network))
        seen["checksums"].append(warm.checksum)
        seen["held"].append(sum(part.numel() for part in parts_of(network).values()))
        names = [name for name, _ in network.named_modules()]
        assert not any("lora" in name for name in names), "the adapter is gone"
        assert not any(p.requires_grad for p in network.parameters())
    seen["whole"] = [len(w._models) for w in (warm, warm.outlined)]
    Path(folder, f"{rank}.json").write_text(json.dumps(seen), encoding="utf-8")


@pytest.fixture(scope="module")
def two_ranks(
    make_trial: TrialMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[dict[str, Any]], list[TrialConfig]]]:
    """What each of two ranks saw, with nothing in the cache at first."""
    folder = tmp_path_factory.mktemp("partitioned")
    base = {
        "engine.zero_stage": 3,
        "engine.ranks": 2,
        "selection.constraints": [],
        "selection.past_target": None,
    }
    configs = [make_trial({**base, **changes}) for changes in TRIALS.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        spawned(run_rank, [c.model_dump_json() for c in configs], str(folder))
    seen = [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    yield seen, configs


def test_each_rank_holds_its_part_of_one_base_through_all_trials(two_ranks: Any) -> None:
    seen, configs = two_ranks
    network = load_model(configs[0].model, configs[0].engine).network
    whole = sum(p.numel() for p in network.parameters())
    n_weights = len(list(network.parameters()))
    for rank in seen:
        assert len(set(rank["networks"])) == 1, "loaded once"
        assert len(set(rank["checksums"])) == 1
        for held in rank["held"]:
            assert whole / 2 <= held <= whole / 2 + n_weights  # an odd one is rounded up
        assert rank["whole"] == [0, 1], "no whole model is kept, but an outline"
    assert seen[0]["series"] == seen[1]["series"]


@pytest.mark.parametrize("name", TRIALS)
def test_trials_on_one_partitioned_base_are_those_on_a_whole_model(
    two_ranks: Any, make_trial: TrialMaker, name: str
) -> None:
    i = list(TRIALS).index(name)
    changes = {**TRIALS[name], "selection.constraints": [], "selection.past_target": None}
    expected = [dict(p.metrics) for p in probes(make_trial(changes), warm=Warm())]
    found = two_ranks[0][0]["series"][i]
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        for metric in COMPARED:
            assert one[metric] == pytest.approx(other[metric], rel=0, abs=1e-5)


def test_a_trial_leaves_no_trace_in_the_next(two_ranks: Any) -> None:
    series = two_ranks[0][0]["series"]
    first, again = (series[list(TRIALS).index(name)] for name in ("first", "first-again"))
    for one, other in zip(first, again, strict=True):
        assert one == pytest.approx(other, rel=0, abs=1e-7)
