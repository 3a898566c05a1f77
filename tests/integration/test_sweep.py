"""Sweeps of real trials on a real Ray, through the command line: start, kill, resume, extend, export."""

import json
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from small_sweep import tiny_values
from sweeper import Sweeper

from core.config import ModelConfig
from core.model.source import model_identity
from tuning.files import load_sweep
from tuning.samples import read_samples

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SPACE = {
    "optimizer.learning_rate": {
        "float": {"low": 1.0e-3, "high": 3.0e-2, "log": True},
        "why": "from too small to far too large for a tiny model",
    },
    "adapter.rank": {"categorical": [2, 4], "why": "small"},
    "method.adapter_init": {"categorical": ["lora", "fila"], "why": "both kinds"},
    "fisher.exponent": {
        "categorical": [0.0, 0.5],
        "why": "control and paper",
        "when": {"method.adapter_init": "fila"},
    },
}


@pytest.fixture
def sweeper(tmp_path: Path, tiny_model: Path, tiny_data: Mapping[str, Path]) -> Sweeper:
    """A small sweep over a tiny model that has memorised its forget set."""
    values = tiny_values(tiny_model, tiny_data) | {
        "method": {"forget_loss": "ihl", "retain_loss": "nll"},
        "space": SPACE,
        "start_from": [{"source": "a test", "values": {"optimizer.learning_rate": 3.0e-2}}],
        "budget": {"trials": 6, "max_steps": 6},
        "sampler": {"name": "tpe", "seed": 0, "n_startup_trials": 3},
    }
    return Sweeper(tmp_path, values)


def ended(sweeper: Sweeper, name: str) -> Counter[int]:
    """How often each trial was told."""
    return Counter(e["number"] for e in sweeper.events(name) if e["event"] == "TrialEnded")


def test_a_sweep_ends_with_a_best_trial_that_can_be_exported_repeated_and_gone_on_from(
    sweeper: Sweeper,
) -> None:
    before = model_identity.__wrapped__(ModelConfig(source=str(sweeper.values["model"]["source"])))
    limit = {"metric": "memorization.forget_exact_memorization", "at_least": 0.0}
    sweeper.write({"evaluation": {"limit": 2, "constraints": [limit]}})
    sweeper.call("sweep", "sweep.yaml")
    run = sweeper.run("tiny")
    assert run.state == "done"
    assert {part: counts.rows for part, counts in run.facts.data_counts.items()} == run.facts.rows
    forget, retain = (run.facts.data_counts[part] for part in ("forget", "retain_train"))
    assert (forget.read_rows, forget.leaves_out) == (8, False)
    assert retain.cut_rows > 0  # some sentences have more than 64 letters
    assert retain.cut_tokens == retain.read_tokens - retain.tokens
    assert len(run.trials) == 6
    assert ended(sweeper, "tiny") == Counter(range(6))
    pruned = [t for t in run.trials if t.state == "PRUNED"]
    assert pruned
    assert all(t.stopped_by == "retain_guard" and t.reason for t in pruned)
    assert {t.proposed_by for t in run.trials} == {"start_from", "startup", "sampler"}

    listed = json.loads(sweeper.call("best", "runs/tiny", "--format", "json"))
    best = listed["trials"][0]
    assert best["feasible"] and best["pareto"]
    assert best["metrics"]["retain_drop"] <= 0.10
    assert best["report_metrics"] is not None
    measured, before_it = best["evaluation"], run.facts.evaluation
    assert measured.keys() == before_it.keys() >= {limit["metric"]}
    assert measured != before_it
    status = json.loads(sweeper.call("status", "runs/tiny", "--json"))
    assert status["state"] == "done" and status["counts"]["running"] == 0
    assert status["guard"]["stopped"] >= len(pruned)
    assert "proposed by" in sweeper.call("show", "runs/tiny", str(best["number"]))
    report = Path(sweeper.call("report", "runs/tiny").strip())
    assert (sweeper.folder / report).is_file()

    samples = read_samples(run.path)
    assert samples is not None and samples.trial == best["number"]
    assert [s.role for s in samples.rows] == ["forget"] * 4 + ["retain"] * 4
    assert "What the model writes" in (sweeper.folder / report).read_text(encoding="utf-8")

    sweeper.call("export", "runs/tiny", "--out", "best")
    assert "a valid trial" in sweeper.call("validate", "best/trial.yaml")
    again = json.loads(sweeper.call("train", "best/trial.yaml", "--out", "again", "--json"))
    assert again["step"] == best["step"]
    for name, value in best["metrics"].items():
        assert again["metrics"][name] == pytest.approx(value, abs=1e-3), name
    with torch.no_grad():
        _assert_stock_peft_repeats(sweeper, best)
    assert before == model_identity.__wrapped__(
        ModelConfig(source=str(sweeper.values["model"]["source"]))
    )
    lines = [run.history(t.number)[0] for t in run.trials]
    assert len({line["base_checksum"] for line in lines}) == 1
    _assert_what_advise_writes_is_swept(sweeper, best)


def _assert_what_advise_writes_is_swept(sweeper: Sweeper, best: Mapping[str, Any]) -> None:
    """The next sweep starts as it was written, with the best trial, which ends and is recorded; ties wait."""
    sweeper.call("advise", "runs/tiny", "--out", "next.yaml")
    sweeper.call("sweep", "next.yaml", "--trials", "1")
    run = sweeper.run("tiny-next")
    assert run.state == "done"
    assert run.spec.space == load_sweep(sweeper.folder / "next.yaml").space
    first, *others = run.trials
    assert (first.state, first.proposed_by) == ("COMPLETE", "start_from")
    assert first.params == best["params"]
    assert {t.state for t in others} <= {"WAITING"}
    assert ended(sweeper, "tiny-next") == Counter([0])
    assert [t.number for t in sweeper.run("tiny").trials] == list(range(6)), "stays as it was"


def _assert_stock_peft_repeats(sweeper: Sweeper, best: Mapping[str, Any]) -> None:
    """The exported folder, on the original model in stock PEFT, has the recorded forget cross-entropy."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = str(sweeper.values["model"]["source"])
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(sweeper.folder / "best")
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    total = count = 0.0
    for line in Path(sweeper.values["data"]["forget"]["source"]).read_text().splitlines():
        ids = tokenizer(json.loads(line)["text"], return_tensors="pt")["input_ids"][:, :64]
        nll = torch.nn.functional.cross_entropy(
            model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum"
        )
        total, count = total + float(nll), count + ids.shape[1] - 1
    assert total / count == pytest.approx(best["metrics"]["forget_nll"], abs=1e-3)


PACKED: Mapping[str, Any] = {
    "engine": {"dtype": "fp32", "device": "cpu", "packing": 3},
    "resources": {"max_concurrent": 3},
}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="each-alone"),
        pytest.param(PACKED, id="packed", marks=pytest.mark.matrix),
    ],
)
def test_after_kill_9_of_the_driver_resume_loses_nothing_and_finishes_nothing_twice(
    sweeper: Sweeper, how: Mapping[str, Any]
) -> None:
    sweeper.write(how)
    process = sweeper.start("sweep", "sweep.yaml")
    sweeper.wait_for("tiny", "TrialEnded", 2, process)
    process.kill()
    process.communicate()
    run = sweeper.run("tiny")
    assert run.state == "interrupted"
    told = {t.number: (t.state, t.value) for t in run.trials if t.state in ("COMPLETE", "PRUNED")}
    params = {t.number: t.params for t in run.trials if t.params}
    sweeper.call("resume", "runs/tiny")
    run = sweeper.run("tiny")
    assert run.state == "done"
    assert len(run.trials) == 6
    assert all(t.state in ("COMPLETE", "PRUNED") for t in run.trials)
    assert {n: (run.trials[n].state, run.trials[n].value) for n in told} == told
    assert {n: run.trials[n].params for n in params} == params
    assert ended(sweeper, "tiny") == Counter(range(6))

    refused = sweeper.start("resume", "runs/tiny", "--trials", "3")
    assert "already has 6 trials" in refused.communicate()[1]
    assert refused.returncode == 2
    sweeper.call("resume", "runs/tiny", "--trials", "7")
    assert [t.number for t in sweeper.run("tiny").trials] == list(range(7))


@pytest.mark.parametrize(
    ("number", "status", "how"),
    [
        pytest.param(signal.SIGTERM, 143, {}, id="sigterm"),
        pytest.param(signal.SIGINT, 130, {}, id="sigint", marks=pytest.mark.matrix),
        pytest.param(signal.SIGTERM, 143, PACKED, id="sigterm-packed", marks=pytest.mark.matrix),
    ],
)
def test_a_signal_ends_cleanly_and_prints_the_command_that_resumes(
    sweeper: Sweeper, number: signal.Signals, status: int, how: Mapping[str, Any]
) -> None:
    sweeper.write(how)
    process = sweeper.start("sweep", "sweep.yaml", "--trials", "4")
    sweeper.wait_for("tiny", "TrialProbed", 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert "unlearn-tune resume runs/tiny" in err
    assert "Traceback" not in err
    psutil.wait_procs(children, timeout=30)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    assert sweeper.run("tiny").state == "interrupted"


def test_a_trial_whose_process_dies_goes_on_under_its_number_from_its_checkpoint(
    sweeper: Sweeper,
) -> None:
    budget = {"trials": 3, "max_steps": 30, "checkpoint_every": 1, "skip_probes": False}
    sweeper.write({"budget": budget, "start_from": []})
    process = sweeper.start(
        "sweep", "sweep.yaml", "--set", "pruning.retain=null", "--set", "stop.past_target=null"
    )
    sweeper.wait_for("tiny", "TrialProbed", 8, process)  # of at most two trials: one has four
    probed = Counter(e["number"] for e in sweeper.events("tiny") if e["event"] == "TrialProbed")
    ((killed, _),) = probed.most_common(1)
    log = sweeper.folder / f"runs/tiny/trials/{killed:04d}/attempt-1/log.txt"
    (rank,) = re.findall(r"trial begins in process (\d+)", log.read_text("utf-8"))
    psutil.Process(int(rank)).kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 3), err
    broke = [e for e in sweeper.events("tiny") if e["event"] == "TrialBroke"]
    assert [(e["number"], e["is_final"]) for e in broke] == [(killed, False)]
    again = sweeper.run("tiny").trials[killed]
    assert (again.state, again.attempt) == ("COMPLETE", 2)
    assert len(sweeper.run("tiny").trials) == 3
    (resumed,) = [e for e in sweeper.events("tiny") if e["event"] == "TrialResumed"]
    assert resumed["number"] == again.number
    assert resumed["step"] >= 1
    steps = [
        e["probe"]["step"]
        for e in sweeper.events("tiny")
        if e["event"] == "TrialProbed" and e["number"] == again.number
    ]
    assert len(steps) <= 30 + 1, "a kill costs at most one step"
    attempt = sweeper.folder / "runs/tiny/trials" / f"{again.number:04d}" / "attempt-2"
    lines = map(json.loads, (attempt / "history.jsonl").read_text("utf-8").splitlines())
    assert [line["step"] for line in lines] == list(range(31))
    assert f"after step {resumed['step']}" in (attempt / "log.txt").read_text("utf-8")
    assert list(sweeper.folder.glob("runs/tiny/trials/*/*/checkpoints")) == []


@pytest.mark.matrix
def test_a_pack_whose_process_dies_has_all_its_trials_tried_again(sweeper: Sweeper) -> None:
    budget = {"trials": 4, "max_steps": 15, "finalists": 0}
    sweeper.write({**PACKED, "budget": budget, "start_from": [], "pruning": {"retain": None}})
    process = sweeper.start("sweep", "sweep.yaml", "--set", "stop.past_target=null")
    sweeper.wait_for("tiny", "TrialProbed", 4, process)
    children = psutil.Process(process.pid).children(recursive=True)
    (rank,) = [p for p in children if p.name().startswith("ray::PackRank")]
    rank.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 3), err
    broke = [e for e in sweeper.events("tiny") if e["event"] == "TrialBroke"]
    assert {e["is_final"] for e in broke} == {False}
    assert len(broke) == 3
    trials = sweeper.run("tiny").trials
    assert [t.state for t in trials] == ["COMPLETE"] * 4
    assert {t.number for t in trials if t.attempt == 2} == {e["number"] for e in broke}


def test_a_packed_trial_that_breaks_leaves_the_others_alone(sweeper: Sweeper) -> None:
    """A forget loss that counts nothing, without a retain loss, moves no layer: refused after the first step."""
    weights = [0.0, 1.0]
    space = {
        "method.forget_weight": {"categorical": weights, "why": "one of them trains nothing"},
        "optimizer.learning_rate": {"categorical": [1.0e-3, 2.0e-3], "why": "two"},
    }
    sweeper.write(
        {
            **PACKED,
            "method": {"forget_loss": "ihl", "retain_loss": "none"},
            "space": space,
            "sampler": {"name": "grid"},
            "start_from": [],
            "budget": {"trials": 4, "max_steps": 3, "finalists": 0},
        }
    )
    process = sweeper.start("sweep", "sweep.yaml")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    trials = sweeper.run("tiny").trials
    broken = [t for t in trials if t.params["method.forget_weight"] == 0.0]
    assert [t.state for t in broken] == ["FAIL", "FAIL"]
    assert all("no gradient reached" in str(t.reason) for t in broken)
    assert all(t.attempt == 1 for t in trials)
    assert all(t.state in ("COMPLETE", "PRUNED") for t in trials if t not in broken)


@pytest.mark.matrix
def test_auto_packing_says_what_it_measured_and_took(sweeper: Sweeper) -> None:
    engine = {"dtype": "fp32", "device": "cpu", "packing": "auto"}
    budget = {"trials": 4, "max_steps": 2, "finalists": 0}
    sweeper.write({"engine": engine, "budget": budget, "resources": {"max_concurrent": 1}})
    process = sweeper.start("sweep", "sweep.yaml")
    _, err = process.communicate(timeout=500)
    assert process.returncode in (0, 3), err
    (said,) = [
        e["text"]
        for e in sweeper.events("tiny")
        if e["event"] == "Warned" and e["text"].startswith("engine.packing: ")
    ]
    assert re.search(r"a step takes each trial \d+ ms with 1, \d+ ms with 2", said)
    assert said[:40] in " ".join(err.split())
    assert len(sweeper.run("tiny").trials) == 4


def test_trials_of_two_ranks_under_zero_3_follow_each_other(sweeper: Sweeper) -> None:
    settings = ["--set", "resources.ranks_per_trial=2", "--set", "engine.zero_stage=3"]
    sweeper.call("sweep", "sweep.yaml", "--trials", "2", *settings)
    run = sweeper.run("tiny")
    assert [t.state in ("COMPLETE", "PRUNED") for t in run.trials] == [True, True]
    assert run.spec.resources.ranks_per_trial == 2
    logs = [path.read_text("utf-8") for path in sorted(run.path.glob("trials/*/attempt-*/log.txt"))]
    processes = [re.findall(r"trial begins in process (\d+)", log) for log in logs]
    assert len(logs) == 2
    assert processes[0] == processes[1] != [], "the ranks stay warm"


def test_a_run_killed_before_its_ledger_was_made_leaves_its_name_free(sweeper: Sweeper) -> None:
    process = sweeper.start("sweep", "sweep.yaml", "--trials", "1")
    lock = sweeper.folder / "runs" / "tiny" / "driver.lock"
    while not lock.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert lock.exists()
    sweeper.call("sweep", "sweep.yaml", "--trials", "1", expect=3)  # its only trial is pruned
    assert len(sweeper.run("tiny").trials) == 1


def test_a_proposal_whose_values_do_not_go_together_fails_alone(sweeper: Sweeper) -> None:
    space = {
        "optimizer.learning_rate": SPACE["optimizer.learning_rate"],
        "batch.global_batch_size": {
            "int": {"low": 2, "high": 200},
            "why": "odd ones do not divide",
        },
    }
    sweeper.write(
        {
            "space": space,
            "method": {"forget_loss": "ihl", "retain_loss": "none"},  # 200 rows are not there
            "batch": {"micro_batch_size": 2},
            "start_from": [
                {"source": "a test", "values": {"batch.global_batch_size": 3}},
                {
                    "source": "a test",
                    "values": {"batch.global_batch_size": 4, "optimizer.learning_rate": 1e-3},
                },
            ],
            "budget": {"trials": 2, "max_steps": 2},
        }
    )
    sweeper.call("sweep", "sweep.yaml")
    first, second = sweeper.run("tiny").trials
    assert (first.state, second.state) == ("FAIL", "COMPLETE")
    assert "batch.global_batch_size: must equal micro_batch_size" in str(first.reason)


def test_a_sweep_whose_data_leave_nothing_to_forget_is_refused_and_leaves_no_run(
    sweeper: Sweeper,
) -> None:
    data = dict(sweeper.values["data"])
    unseen = [f"qz{i} vxkw{i * 7} jjq wpx" for i in range(8)]
    path = sweeper.folder / "unseen.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in unseen), encoding="utf-8")
    data["forget"] = {"source": str(path)}
    sweeper.write({"data": data})
    process = sweeper.start("sweep", "sweep.yaml")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "there is nothing to forget" in err
    assert "Traceback" not in err
    assert not (sweeper.folder / "runs" / "tiny").exists()


def test_a_sweep_over_losses_trains_all_weights_and_compares_at_equal_utility(
    sweeper: Sweeper,
) -> None:
    sweeper.write(
        {
            "method": {"retain_loss": "nll"},
            "adapter": {"kind": "full"},
            "space": {
                "method.forget_loss": {
                    "categorical": ["ga", "npo", "dpo"],
                    "why": "without and with a reference model, and with other answers",
                },
                "method.npo.beta": {
                    "categorical": [0.1, 0.5],
                    "why": "two temperatures",
                    "when": {"method.forget_loss": "npo"},
                },
                "optimizer.learning_rate": {"categorical": [3.0e-4], "why": "one is enough"},
            },
            "start_from": [
                {"source": "a test", "values": {"method.forget_loss": loss}}
                for loss in ("ga", "npo", "dpo")
            ],
            "objective": {"metric": "forget_closure_at_utility", "tau": 0.9},
            "constraints": [],
            "pruning": {"retain": None},
            "budget": {"trials": 3, "max_steps": 4, "finalists": 2},
            "evaluation": {"suites": ["probes"], "limit": 2},
        }
    )
    sweeper.call("sweep", "sweep.yaml", "--name", "losses")
    trials = json.loads(sweeper.call("best", "runs/losses", "--format", "json"))["trials"]
    assert {t["params"]["method.forget_loss"] for t in trials} == {"ga", "npo", "dpo"}
    assert all(t["metrics"]["retain_utility"] > 0 for t in trials)
    reported = [t for t in trials if t["report_metrics"] is not None]
    assert len(reported) == 2
    for trial in reported:  # what is saved is the scaled model
        at_utility = trial["report_metrics"]["forget_closure_at_utility"]
        assert at_utility == trial["report_metrics"]["forget_closure"]
    assert trials[0]["value"] == trials[0]["metrics"]["forget_closure_at_utility"] > 0

    sweeper.call("export", "runs/losses", "--out", "model")
    original = transformers.AutoModelForCausalLM.from_pretrained(sweeper.values["model"]["source"])
    unlearned = transformers.AutoModelForCausalLM.from_pretrained(sweeper.folder / "model")
    assert unlearned.num_parameters() == original.num_parameters()
    card = (sweeper.folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForCausalLM.from_pretrained(folder)" in card
    sweeper.call("report", "runs/losses")
    assert (sweeper.folder / "runs/losses/report/index.html").is_file()


@pytest.mark.matrix
def test_auto_is_resolved_once_by_the_baseline_and_recorded(sweeper: Sweeper) -> None:
    sweeper.write(
        {
            "constraints": [
                {"metric": "auto", "at_most": 0.10},
                {"metric": "retain_utility", "at_least": 0.5},
            ],
            "pruning": {"retain": {"metrics": ["auto", "retain_utility"], "limit": 0.10}},
            "start_from": [],
        }
    )
    sweeper.call("sweep", "sweep.yaml", "--trials", "2")
    run = sweeper.run("tiny")
    assert [c.model_dump() for c in run.spec.constraints] == [
        {"metric": "retain_forgetting", "at_most": 0.10},
        {"metric": "retain_utility", "at_least": 0.5},
    ]
    assert run.spec.pruning.retain is not None
    assert run.spec.pruning.retain.metrics == ("retain_forgetting", "retain_utility")
    assert run.facts.scale.startswith("auto is retain_forgetting: the retain set is known by heart")
    told = [t for t in run.trials if t.state in ("COMPLETE", "PRUNED")]
    assert told
    for trial in told:
        assert trial.violations == pytest.approx(
            {
                "retain_forgetting": trial.metrics["retain_forgetting"] - 0.10,
                "retain_utility": 0.5 - trial.metrics["retain_utility"],
            }
        )
    best = json.loads(sweeper.call("best", "runs/tiny", "--format", "json"))
    assert best["constraints"] == [c.model_dump() for c in run.spec.constraints]
    sweeper.call("report", "runs/tiny")
    report = (sweeper.folder / "runs/tiny/report/report.md").read_text(encoding="utf-8")
    assert "Scale of damage to retained text: auto is retain_forgetting: " in report
    sweeper.call("resume", "runs/tiny", "--spec", "sweep.yaml", "--trials", "3")
    assert len(sweeper.run("tiny").trials) == 3
    assert sweeper.run("tiny").spec == run.spec


@pytest.mark.matrix
def test_another_model_or_other_rows_are_refused_before_anything_is_prepared(
    sweeper: Sweeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache stays empty: neither are weights read for it nor levels measured."""
    source = shutil.copytree(sweeper.values["model"]["source"], tmp_path / "model")
    data = {
        role: dict(found) for role, found in sweeper.values["data"].items() if "rows" not in role
    }
    rows = shutil.copy(data["retain"]["source"], tmp_path / "retain.jsonl")
    data["retain"]["source"] = str(rows)
    sweeper.values["model"] = {"source": str(source)}
    sweeper.values["data"] = sweeper.values["data"] | data
    sweeper.write({"budget": {"trials": 1, "max_steps": 2}})
    sweeper.call("sweep", "sweep.yaml", "--name", "before", expect=3)  # two steps reach nothing
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "empty"))
    before = Path(rows).read_text(encoding="utf-8")
    Path(rows).write_text(before.replace("river", "rover"), encoding="utf-8")
    refused = sweeper.start("resume", "runs/before", "--trials", "2")
    assert "data.retain_train" in refused.communicate(timeout=300)[1]
    Path(rows).write_text(before, encoding="utf-8")
    (source / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    changed = sweeper.start("resume", "runs/before", "--trials", "2")
    assert "model changed since the run began" in changed.communicate(timeout=300)[1]
    assert (refused.returncode, changed.returncode) == (2, 2)
    assert not [p for p in (tmp_path / "empty").glob("*/*") if p.parent.name != ".in-use"]


def shown(sweeper: Sweeper, name: str) -> dict[str, dict[str, Any]]:
    """What a run concluded of each point of its grid."""
    return {
        json.dumps(t.params, sort_keys=True): {
            "state": t.state,
            "stopped_by": t.stopped_by,
            "step": t.step,
            "metrics": {k: v for k, v in t.metrics.items() if "perplexity" not in k},
        }
        for t in sweeper.run(name).trials
    }


GRID = {
    "optimizer.learning_rate": {
        "categorical": [1.0e-3, 3.0e-2],
        "why": "one of them breaks the guard",
    },
    "adapter.rank": {"categorical": [2, 4], "why": "small"},
    "method.adapter_init": {"categorical": ["lora", "svd"], "why": "both kinds"},
}


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(1, id="one-rank"),
        pytest.param(2, id="two-ranks-of-zero-3", marks=pytest.mark.matrix),
    ],
)
def test_a_packed_sweep_concludes_what_an_unpacked_one_does(sweeper: Sweeper, ranks: int) -> None:
    values: dict[str, Any] = {
        "space": GRID,
        "sampler": {"name": "grid", "seed": 0},
        "start_from": [],
        "budget": {"trials": 8 // ranks, "max_steps": 5, "finalists": 1},
    }
    of_ranks = {"ranks_per_trial": ranks}
    engine = {**PACKED["engine"], "zero_stage": 1 if ranks == 1 else 3}
    sweeper.write({**values, "engine": engine, "resources": PACKED["resources"] | of_ranks})
    process = sweeper.start("sweep", "sweep.yaml", "--name", "packed")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "3 trials at a time: one pack of 3 trials" in " ".join(err.split())
    plain = {k: v for k, v in engine.items() if k not in ("packing", "zero_stage")}
    sweeper.write({**values, "engine": plain})
    sweeper.call("sweep", "sweep.yaml", "--name", "plain")
    found, expected = shown(sweeper, "packed"), shown(sweeper, "plain")
    assert {t["state"] for t in expected.values()} == {"COMPLETE", "PRUNED"}
    assert found.keys() == expected.keys()
    for params, trial in expected.items():
        metrics = found[params].pop("metrics")
        # five steps at a rate that breaks the guard make what is rounded otherwise ten times larger
        assert metrics == pytest.approx(trial.pop("metrics"), rel=0, abs=2e-4), params
        assert found[params] == trial, params
