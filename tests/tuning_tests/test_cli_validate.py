"""The verbs that look ahead: validate, doctor, and a sweep's dry run."""

from __future__ import annotations

import json
from typing import Any

from command_line import ROOT, Command, changed, is_refused, left_in_runs, write


def test_validate_takes_what_we_ship(tune: Command) -> None:
    demo = tune("validate", ROOT / "search_spaces" / "demo.yaml")
    assert demo.status == 0
    assert (
        "a valid sweep of 12 trials over optimizer.learning_rate: 0.0001 to 0.01, log; " in demo.out
    )
    cluster = tune("validate", ROOT / "cluster.yaml")
    assert (cluster.status, cluster.out.endswith(": a valid cluster file\n")) == (0, True)


def test_validate_names_model_and_data_together(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    wrong = changed(
        changed(tiny_sweep, "model.source", "package:x"), "data.forget.source", "embedded:y"
    )
    is_refused(
        tune("validate", write(wrong)), "2 problems", "model.source: ", "data.forget.source: "
    )


def test_validate_reads_the_data(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    """Overlaps, rows too few and missing fields, in a second and without a model."""
    forget = tiny_sweep["data"]["forget"]["source"]
    wrong = changed(tiny_sweep, "data.approximate.source", forget)
    wrong = changed(wrong, "data.probe_rows", 40)
    wrong = changed(wrong, "data.forget.fields", {"text": "txt"})
    is_refused(
        tune("validate", write(wrong)),
        "3 problems",
        f"data.forget: {forget} row 1: no field 'txt'; fields are 'text'; did you mean 'text'? set data.*.fields",
        "data.retain: 40 probe rows, 6 report rows, 8 rows of one optimiser step need 54 distinct rows, got 40",
        "data.general: 40 probe rows, 6 report rows need 46 distinct rows, got 24",
    )
    same = changed(tiny_sweep, "data.approximate.source", forget)
    for command in (("validate", write(same)), ("sweep", write(same), "--dry-run")):
        is_refused(
            tune(*command), "data.approximate: ", "is also in data.forget: ", "rows: [0, 200]"
        )
    halves = changed(same, "data.forget.rows", [0, 4])
    halves = changed(halves, "data.approximate.rows", [4, None])
    assert tune("validate", write(halves)).status == 0
    done = tune("sweep", write(halves), "--dry-run")
    assert "data, forget: 4 rows read, 4 kept" in done.out


def test_validate_notes_what_it_cannot_read(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    done = tune("validate", write(changed(tiny_sweep, "data.general.source", "hub:ORG/NAME")))
    assert done.status == 0
    assert done.out.endswith("\ndata.general: hub:ORG/NAME is read when it is loaded, not here\n")


def test_validate_refuses_a_preparation_whose_sets_overlap(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    source = tiny_sweep["data"]["retain"]
    values = {
        "schema": 1,
        "model": tiny_sweep["model"],
        "data": {"forget": source, "retain": source},
        "training": {
            "epochs": 1,
            "optimizer": {"learning_rate": 1e-3},
            "batch": {"global_batch_size": 4},
        },
    }
    is_refused(tune("validate", write(values)), "data.retain: ", "is also in data.forget: ")


def test_doctor_names_each_thing_with_a_fix(tune: Command) -> None:
    done = tune("doctor", "--json")
    checks = json.loads(done.out)
    names = {c["name"] for c in checks}
    assert {"python", "torch", "ray", "optuna", "compiler", "devices", "package:smollm2"} <= names
    assert all(set(c) == {"name", "status", "found", "fix"} for c in checks)
    assert all(c["fix"] for c in checks if c["status"] != "ok")
    has_error = any(c["status"] == "error" for c in checks)
    assert done.status == (2 if has_error else 0)
    lines = tune("doctor").out.splitlines()
    assert len(lines) == len(checks)


def test_dry_run_shows_space_samples_and_needs(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    done = tune("sweep", write(tiny_sweep), "--dry-run", "--trials", 2, "--name", "other")
    assert done.status == 0
    assert "sweep tiny -> runs/other: 2 trials of at most 4 steps" in done.out
    for part in (
        "0.0001 to 0.01, log",
        "2 sample configurations (start_from first):",
        "rank=4",
        "a rank: about ",
        "for its longest rows",
        "memory: about ",
        "disk: about ",
        "time: very roughly ",
    ):
        assert part in done.out
    assert left_in_runs() == []


def test_dry_run_as_json(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    done = tune("sweep", write(tiny_sweep), "--dry-run", "--json", "--set", "adapter.scaling=1.0")
    shown = json.loads(done.out)
    assert (done.status, list(shown)) == (
        0,
        [
            *("run", "space", "samples", "estimate", "cost", "limits", "spec"),
            *("data_counts", "rows", "wording"),
        ],
    )
    assert shown["run"] == "runs/tiny"
    assert shown["space"]["adapter.rank"] == "2, 4"
    assert len(shown["samples"]) == 3 and shown["samples"][0]["adapter.rank"] == 4
    assert shown["spec"]["adapter"] == {"scaling": 1.0}
    estimate = shown["estimate"]
    assert estimate["concurrent"] >= 1
    assert estimate["parameters"] > 0 and estimate["adapter_parameters"] > 0
    assert estimate["memory_gib"] > 0 and estimate["disk_gib"] > estimate["checkpoints_gib"] > 0
    assert estimate["rank_gib"] > 0.4 and estimate["rank_gpu_gib"] > 0.4
    assert estimate["rows_are_known"] and estimate["because"]
    assert shown["spec"]["resources"]["gpus_per_rank"] == "auto"
    low, high = estimate["time_s"]
    assert 0 < low < high
    assert left_in_runs() == []


def test_dry_run_proposes_what_the_sweep_would(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    file = write(changed(tiny_sweep, "sampler", {"name": "random", "seed": 4}))
    first, second = (tune("sweep", file, "--dry-run", "--json").out for _ in range(2))
    assert first == second
    assert (
        json.loads(tune("sweep", file, "--dry-run", "--json", "--set", "sampler.seed=5").out)[
            "samples"
        ]
        != json.loads(first)["samples"]
    )


def test_a_dry_run_looks_ahead_where_no_gpu_is(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    """On the login node of a cluster, of a sweep that will have GPUs."""
    tiny_sweep = changed(tiny_sweep, "engine", {"device": "cuda"})
    file = write(changed(tiny_sweep, "resources", {"gpus_per_rank": 1.0, "cpus_per_rank": 64}))
    done = tune("sweep", file, "--dry-run", "--json")
    needs = done.json["estimate"]
    assert (needs["concurrent"], needs["gpus_per_rank"]) == (1, 1.0)
    assert needs["because"].endswith("of a machine with room for one trial")
    assert "a trial needs 64 CPUs and 1 GPUs" in needs["lacking"]
    shown = tune("sweep", file, "--dry-run")
    assert shown.status == 0
    assert "warning: not on this machine: resources: a trial needs 64 CPUs and 1 GPUs" in shown.out
    is_refused(tune("sweep", file), "a trial needs 64 CPUs and 1 GPUs", after_it_began=True)


def test_validate_knows_the_data_of_an_evaluation(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    shipped = tune("validate", ROOT / "examples" / "evaluate_authors.yaml")
    assert shipped.out.endswith(
        "data for evaluate: forget, retain, holdout, real_authors, world_facts\n"
    )
    data = {role: tiny_sweep["data"][role] for role in ("forget", "retain")}
    assert tune("validate", write({"data": data})).out.endswith("evaluate: forget, retain\n")
    is_refused(
        tune("validate", write({"forget": data["forget"], "retian": data["retain"]})),
        "retian: unknown key; did you mean 'retain'?",
    )
    absent = {role: source | {"source": f"{role}.jsonl"} for role, source in data.items()}
    is_refused(
        tune("validate", write(absent)), "2 problems", "forget.jsonl", "retain.jsonl", "not exist"
    )


def test_a_wrong_name_of_what_an_evaluation_downloads_is_refused(tune: Command) -> None:
    retain = {"source": "tofu:retain95", "split": "test"}
    is_refused(
        tune("validate", write({"forget": {"source": "tofu:forget5"}, "retain": retain})),
        "2 problems",
        "data.forget.source: ",
        "'tofu:forget5'",
        "data.retain.split: has no effect on 'tofu:retain95', got 'test'",
    )
