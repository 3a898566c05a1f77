"""How many trials run at a time, and which share of a GPU a rank takes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sweep import problems, spec_of

from core.errors import UserError
from tuning.config import ResourcesSpec
from tuning.fitting import Room
from tuning.resources import (
    Cluster,
    Needs,
    concurrent_trials,
    lacking,
    largest_of,
    largest_trials,
    read_largest,
    with_gpus,
    with_room,
)

ROOT = Path(__file__).parents[2]
NEEDS = Needs(on_cpu=2.0, on_gpu=8.0, beside_gpu=1.0, is_bound=False)
ON_CPU = ResourcesSpec(gpus_per_rank=0.0)


@pytest.mark.parametrize(
    ("memory_gib", "trials"),
    [
        pytest.param(9.5, 4, id="four-of-two-gib-beside-the-driver"),
        pytest.param(100.0, 8, id="cores-are-fewer"),
        pytest.param(1.0, 1, id="one-is-always-tried"),
    ],
)
def test_as_many_as_the_estimate_says_fit_into_memory(memory_gib: float, trials: int) -> None:
    cluster = Cluster(cpus=8, gpus=0, memory_gib=memory_gib)
    assert concurrent_trials(ON_CPU, cluster, NEEDS).trials == trials


def test_ranks_on_a_gpu_take_less_of_the_machines_memory() -> None:
    cluster = Cluster(cpus=64, gpus=1, memory_gib=9.5, gpu_memory_gib=80.0)
    share = ResourcesSpec(gpus_per_rank=0.05)
    assert concurrent_trials(share, cluster, NEEDS).trials == 8
    assert "free memory" in concurrent_trials(share, cluster, NEEDS).because


def test_an_unknown_model_is_counted_with_three_gib() -> None:
    cluster = Cluster(cpus=8, gpus=0, memory_gib=10.5)
    assert concurrent_trials(ON_CPU, cluster).trials == 3


def test_what_is_asked_for_is_not_exceeded_and_said() -> None:
    asked = ResourcesSpec(gpus_per_rank=0.0, max_concurrent=2)
    found = concurrent_trials(asked, Cluster(cpus=8, gpus=0, memory_gib=99.0), NEEDS)
    assert (found.trials, found.because) == (2, "resources.max_concurrent")


def test_a_trial_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"a trial needs 4 CPUs and 0 GPUs .* only 2 CPUs"):
        concurrent_trials(
            ResourcesSpec(cpus_per_rank=4, gpus_per_rank=0.0), Cluster(cpus=2, gpus=0)
        )


def test_the_shipped_cluster_runs_as_many_trials_as_it_may_have_gpus() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    most = largest_of(config)
    assert most == {"CPU": 16.0, "GPU": 4.0}
    cluster = Cluster.from_ray(most)
    whole = ResourcesSpec(gpus_per_rank=1.0, cpus_per_rank=4)
    assert concurrent_trials(whole, cluster, may_grow=True).trials == 4
    empty = Cluster.from_ray({})  # before a node has started
    assert concurrent_trials(whole, empty, may_grow=True).trials == 1


def test_node_types_share_the_clusters_workers() -> None:
    config = {
        "max_workers": 3,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 2}, "max_workers": 0},
            "small": {"resources": {"CPU": 4}, "max_workers": 5},
            "large": {"resources": {"CPU": 16, "GPU": 2}, "max_workers": 1},
        },
    }
    assert largest_of(config) == {"CPU": 2 + 16 + 2 * 4, "GPU": 2}


def test_a_cluster_that_left_no_file_says_nothing(tmp_path: Path) -> None:
    assert read_largest(tmp_path / "absent.yaml") is None


@pytest.mark.parametrize(
    ("changes", "cluster", "needs", "gpus"),
    [
        pytest.param({}, Cluster(cpus=4, gpus=0), NEEDS, 0.0, id="no-gpu"),
        pytest.param(
            {},
            Cluster(cpus=4, gpus=1, gpu_memory_gib=80.0),
            NEEDS,
            0.11,
            id="its-share-and-a-tenth",
        ),
        pytest.param(
            {}, Cluster(cpus=4, gpus=1, gpu_memory_gib=4.0), NEEDS, 1.0, id="never-above-one"
        ),
        pytest.param({}, Cluster(cpus=4, gpus=1), NEEDS, 1.0, id="memory-not-known"),
        pytest.param(
            {}, Cluster(cpus=4, gpus=1, gpu_memory_gib=80.0), None, 1.0, id="needs-not-known"
        ),
        pytest.param(
            {"resources.ranks_per_trial": 2},
            Cluster(cpus=4, gpus=2, gpu_memory_gib=80.0),
            NEEDS,
            1.0,
            id="no-two-ranks-share-one",
        ),
        pytest.param(
            {"engine.device": "cpu"},
            Cluster(cpus=4, gpus=1, gpu_memory_gib=80.0),
            NEEDS,
            0.0,
            id="the-cpu-is-asked-for",
        ),
        pytest.param(
            {"resources.gpus_per_rank": 0.5},
            Cluster(cpus=4, gpus=1, gpu_memory_gib=80.0),
            NEEDS,
            0.5,
            id="a-number-stays",
        ),
    ],
)
def test_a_rank_takes_its_share_of_a_gpu(
    changes: dict[str, object], cluster: Cluster, needs: Needs | None, gpus: float
) -> None:
    found = with_gpus(spec_of(changes), cluster, needs)
    assert found.plain()["resources"]["gpus_per_rank"] == gpus


def test_auto_is_the_default_and_is_resolved_once() -> None:
    spec = spec_of()
    assert spec.resources.gpus_per_rank == "auto"
    once = with_gpus(spec, Cluster(cpus=1, gpus=0), None)
    assert with_gpus(once, Cluster(cpus=1, gpus=4), None) == once


def test_two_ranks_on_one_gpu_are_refused() -> None:
    shared = {"resources.ranks_per_trial": 2, "resources.gpus_per_rank": 0.5}
    (found,) = problems(shared)
    assert "no two ranks of a trial may share a GPU" in found
    assert "gpus_per_rank=0.5 with ranks_per_trial=2" in found


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        pytest.param("gpus_per_rank", 3, "must be auto or a number from 0 to 1, got 3", id="gpus"),
        pytest.param(
            "max_concurrent", 0, "must be auto or a whole number from 1 on, got 0", id="none"
        ),
        pytest.param("max_concurrent", "all", "from 1 on, got 'all'", id="a-word"),
        pytest.param("max_concurrent", 1.5, "from 1 on, got 1.5", id="a-fraction"),
    ],
)
def test_a_number_or_auto_is_one_problem_at_the_field(field: str, value: object, rule: str) -> None:
    (found,) = problems({f"resources.{field}": value})
    assert found.startswith(f"resources.{field}: ") and rule in found


@pytest.mark.parametrize("gpus", [0.0, 0.6, 1.0])
def test_ranks_that_cannot_meet_on_a_gpu_are_accepted(gpus: float) -> None:
    assert ResourcesSpec(ranks_per_trial=2, gpus_per_rank=gpus).n_gpus == gpus


def test_the_largest_rank_stands_for_the_space() -> None:
    (trial,) = largest_trials(spec_of())
    assert trial.adapter.rank == 16


def test_cuda_without_a_gpu_is_refused_when_the_file_is_read() -> None:
    (found,) = problems({"engine.device": "cuda", "resources.gpus_per_rank": 0})
    assert "resources.gpus_per_rank: engine.device: cuda needs a GPU" in found
    assert "got gpus_per_rank=0; leave it at auto" in found


def test_cuda_asks_for_a_gpu_where_there_is_none() -> None:
    spec = with_gpus(spec_of({"engine.device": "cuda"}), Cluster(cpus=4, gpus=0), NEEDS)
    assert spec.resources.gpus_per_rank == 1.0
    none = Cluster(cpus=4, gpus=0, gpus_because="CUDA_VISIBLE_DEVICES='' shows 0 of 8")
    hidden = r"0 GPUs are there \(CUDA_VISIBLE_DEVICES='' shows 0 of 8\); lower .* --address"
    with pytest.raises(UserError, match=hidden):
        concurrent_trials(spec.resources, none)


def test_looking_ahead_takes_a_machine_with_room_for_one_trial() -> None:
    asked = ResourcesSpec(ranks_per_trial=2, gpus_per_rank=1.0, cpus_per_rank=4)
    here = Cluster(cpus=2, gpus=0, memory_gib=9.5)
    assert lacking(asked, here) is not None
    room = with_room(here, asked)
    assert (room.cpus, room.gpus, lacking(asked, room)) == (8, 2.0, None)
    assert concurrent_trials(asked, room).trials == 1
    enough = Cluster(cpus=64, gpus=8)
    assert with_room(enough, asked) is enough


@pytest.mark.parametrize(
    ("shown", "gpus"), [("", 0), ("1", 1), ("0,1", 2), ("1\r", 1)], ids=["none", "one", "all", "line-end"]
)  # fmt: skip
def test_this_machine_has_the_gpus_that_the_environment_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, gpus: int
) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / "dev" / name).touch()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    found = Cluster.this_machine(tmp_path)
    assert found.gpus == gpus
    assert bool(found.gpus_because) == (gpus < 2)


ROOMS = (Room(cpus=8, gpus=8), Room(cpus=8, gpus=8), Room(cpus=2, gpus=0))


@pytest.mark.parametrize(
    ("asked", "trials"),
    [
        pytest.param({"gpus_per_rank": 1.0}, 16, id="a-gpu-each"),
        pytest.param({"gpus_per_rank": 0.0}, 18, id="cores-of-all-nodes"),
        pytest.param({"gpus_per_rank": 0.0, "cpus_per_rank": 3}, 4, id="three-cores-of-one-node"),
        pytest.param({"gpus_per_rank": 1.0, "ranks_per_trial": 8}, 2, id="eight-on-a-node"),
        pytest.param({"gpus_per_rank": 1.0, "ranks_per_trial": 5}, 3, id="over-both-nodes"),
        pytest.param(
            {"gpus_per_rank": 1.0, "ranks_per_trial": 5, "placement": "strict_pack"},
            2,
            id="on-one-node-each",
        ),
        pytest.param(
            {"gpus_per_rank": 1.0, "ranks_per_trial": 2, "placement": "strict_spread"},
            8,
            id="a-rank-on-each-node",
        ),
        pytest.param(
            {"gpus_per_rank": 1.0, "ranks_per_trial": 3, "placement": "strict_spread"},
            0,
            id="fewer-nodes-than-ranks",
        ),
    ],
)
def test_trials_are_counted_as_ranks_find_a_place(asked: dict[str, Any], trials: int) -> None:
    cluster = Cluster.from_ray({"CPU": 18, "GPU": 16}, rooms=ROOMS)
    assert cluster.trials(ResourcesSpec.model_validate(asked)) == trials


@pytest.mark.parametrize(("gpus_per_rank", "trials"), [(0.4, 4), (0.5, 4), (0.6, 2), (0.1, 20)])
def test_a_share_of_a_gpu_lies_on_one(gpus_per_rank: float, trials: int) -> None:
    cluster = Cluster(cpus=99, gpus=2, rooms=(Room(cpus=99, gpus=2),))
    assert concurrent_trials(ResourcesSpec(gpus_per_rank=gpus_per_rank), cluster).trials == trials


def test_ranks_that_no_node_has_room_for_are_refused_with_the_nodes() -> None:
    cluster = Cluster(cpus=4, gpus=0, rooms=(Room(cpus=2, gpus=0), Room(cpus=2, gpus=0)))
    with pytest.raises(
        UserError, match=r"1 ranks of 3 CPUs .* nodes, which have 2 CPUs .*, 2 CPUs"
    ):
        concurrent_trials(ResourcesSpec(cpus_per_rank=3, gpus_per_rank=0.0), cluster)


def test_one_machine_is_one_node() -> None:
    two = ResourcesSpec(gpus_per_rank=0.0, ranks_per_trial=2, placement="strict_spread")
    cluster = Cluster(cpus=4, gpus=0, rooms=(Room(cpus=4, gpus=0),))
    assert "placement strict_spread find no place" in str(lacking(two, cluster))
