"""``unlearn-tune evaluate`` through its entry point: JSON on stdout, files with every row, refusals with status 2."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from command_line import Command, Done, invoked
from conftest import sentences

from core.config import EngineConfig, ModelConfig
from core.model.layers import dense_weight, resolve_targets
from core.model.loading import load_model
from core.suites import SUITES
from core.suites.wmdp_suite import SUBJECTS
from core.training.adapter import DifferenceAdapter, InitialFactors
from core.training.trained import float32_on_cpu

pytestmark = pytest.mark.integration

QUESTIONS = {"prompt": "question", "answer": "answer"}


@pytest.fixture
def evaluate(
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Run ``unlearn-tune evaluate`` on the tiny model, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    plain = ["--dtype", "fp32", "--device", "cpu", "--batch-size", "4"]

    def command(*arguments: object, model: object = tiny_model) -> Done:
        return invoked(monkeypatch, capsys, "evaluate", model, *plain, *arguments)

    return command


def write(values: object, name: str) -> Path:
    path = Path(name)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def texts(evaluate: Command, tiny_data: Mapping[str, Path]) -> Path:
    """A sweep file's data; ``evaluate`` has changed into the folder."""
    data = {role: {"source": str(path), "max_tokens": 64} for role, path in tiny_data.items()}
    return write({"schema": 1, "data": data | {"probe_rows": 6}}, "sweep.yaml")


def question(i: int, **changes: object) -> dict[str, object]:
    words = sentences(40 + i, 6)
    record: dict[str, object] = {
        "question": f"what is {words[0]}",
        "answer": words[1],
        "paraphrased_question": f"say {words[0]}",
        "paraphrased_answer": words[2],
        "perturbed_answer": words[3:6],
    }
    return {k: v for k, v in (record | changes).items() if v is not None}


def questions(*records: Mapping[str, object], roles: tuple[str, ...]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    Path("questions.jsonl").write_text(lines, encoding="utf-8")
    source = {"source": "questions.jsonl", "fields": QUESTIONS}
    return write(dict.fromkeys(roles, source), "roles.yaml")


TOFU_ROLES = ("forget", "retain", "real_authors", "world_facts")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A stock PEFT folder on the tiny model, whose difference is not small."""
    engine = EngineConfig(dtype="fp32", device="cpu")
    target = load_model(ModelConfig(source=str(tiny_model)), engine)
    torch.manual_seed(3)
    factors = {}
    for name in resolve_targets(target.network, "all", rank=2):
        inputs = dense_weight(target.network.get_submodule(name)).shape[1]
        factors[name] = InitialFactors(a=torch.randn(2, inputs) / 8, b=None)
    made = DifferenceAdapter(target.network, factors, rank=2, scaling=2.0, dtype=torch.float32)
    with torch.no_grad():
        for _, _, moved_b in made.increments():
            moved_b.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    made.save(folder, made.exported(float32_on_cpu), base=str(tiny_model))
    return folder


# What is printed and written


def test_json_holds_metrics_and_the_file_every_row(
    evaluate: Command, texts: Path, tiny_model: Path, tiny_data: Mapping[str, Path]
) -> None:
    suites = ("probes", "memorization", "mia", "fluency")
    chosen = ("--suite", ",".join(suites), "--data", texts, "--limit", 3)
    done = evaluate(*chosen, "--json", "--out", "x.json")
    printed = done.json
    written = json.loads(Path("x.json").read_text(encoding="utf-8"))
    assert list(printed["suites"]) == list(suites)
    assert printed["model"] == str(tiny_model)
    assert printed["adapter"] is printed["initial"] is printed["retain_only"] is None
    roles = {"forget": "forget", "retain": "retain", "holdout": "approximate", "general": "general"}
    assert printed["data"] == {role: str(tiny_data[name]) for role, name in roles.items()}
    assert printed["identity"]["model"].startswith("content-sha256:")
    assert set(printed["identity"]["rows"]) == set(roles)
    assert {role: c["read_rows"] for role, c in printed["data_counts"].items()} == dict.fromkeys(
        roles, 3
    )
    assert printed["versions"]["torch"] == version("torch")
    assert all("samples" not in found for found in printed["suites"].values())
    counts = {name: len(found["samples"]) for name, found in written["suites"].items()}
    assert counts == {"probes": 12, "memorization": 6, "mia": 6, "fluency": 6}
    for found in written["suites"].values():
        places = [(sample["set"], sample["index"]) for sample in found["samples"]]
        assert len(set(places)) == len(places)
        assert all(0 <= index < 3 for _, index in places)
        del found["samples"]
    assert written == printed
    assert "suite mia" in done.err and "wrote x.json" in done.err


def test_without_json_there_is_a_table_of_each_suite(evaluate: Command, texts: Path) -> None:
    done = evaluate("--suite", "mia", "--data", texts, "--limit", 4)
    assert done.status == 0
    for shown in ("mia", "loss_auc", "privleak", "no retain-only model is given"):
        assert shown in done.out


def test_the_same_command_gives_the_same_numbers(evaluate: Command, texts: Path) -> None:
    arguments = ("--suite", "probes,relearning", "--relearn-samples", 2, "--data", texts, "--json")
    assert evaluate(*arguments).json == evaluate(*arguments).json


def test_without_data_the_shipped_sets_are_read(evaluate: Command) -> None:
    found = evaluate("--suite", "probes", "--limit", 2, "--json").json
    assert found["data"] == {
        "forget": "embedded:forget",
        "retain": "embedded:retain",
        "holdout": "embedded:approximate",
        "general": "embedded:general",
    }


def test_without_data_questions_are_about_the_shipped_authors(evaluate: Command) -> None:
    found = evaluate("--suite", "utility,paraphrase", "--limit", 2, "--json").json
    assert found["data"] == {role: f"authors:{role}" for role in TOFU_ROLES}
    assert len(found["suites"]["utility"]["metrics"]) == 13


def test_tofu_with_other_models(evaluate: Command, tiny_model: Path) -> None:
    data = questions(question(1), question(2), roles=(*TOFU_ROLES, "holdout"))
    arguments = ("--suite", "tofu", "--data", data, "--retain-only", tiny_model)
    found = evaluate(*arguments, "--json").json["suites"]["tofu"]
    assert found["metrics"]["forget_quality"] == 1.0
    assert found["metrics"]["priv"] == 1.0
    whole = evaluate(*arguments, "--initial", tiny_model, "--json").json
    assert whole["initial"] == whole["retain_only"] == str(tiny_model)
    assert {"mem", "priv", "utility", "agg"} <= set(whole["suites"]["tofu"]["metrics"])


def test_numbers_that_are_not_finite_are_text(evaluate: Command) -> None:
    Path("short.jsonl").write_text('{"text": "ab"}\n{"text": "cd"}\n', encoding="utf-8")
    data = write({"forget": {"source": "short.jsonl"}}, "roles.yaml")
    found = evaluate("--suite", "memorization", "--data", data, "--json").json
    assert found["suites"]["memorization"]["metrics"]["forget_el_10"] == "nan"


def test_an_adapter_is_evaluated_and_its_base_is_the_model_before_unlearning(
    evaluate: Command, texts: Path, adapter: Path, tiny_model: Path
) -> None:
    suites = "probes,mia,quantisation,relearning"
    arguments = ("--suite", suites, "--relearn-samples", 4, "--data", texts, "--json")
    plain, adapted = (evaluate(*arguments, *more).json for more in ((), ("--adapter", adapter)))
    assert adapted["adapter"] == str(adapter)
    assert adapted["initial"] == str(tiny_model)
    assert adapted["identity"]["adapter"].startswith("sha256:")
    before, after = (found["suites"]["probes"]["metrics"] for found in (plain, adapted))
    assert abs(after["forget_nll"] - before["forget_nll"]) > 0.05
    metrics = adapted["suites"]["quantisation"]["metrics"]
    assert metrics["forget_nll"] == pytest.approx(after["forget_nll"])
    assert metrics["int8_forget_nll"] == pytest.approx(after["forget_nll"], rel=0.05)
    assert "before_forget_closure" in adapted["suites"]["relearning"]["metrics"]
    assert "before_forget_closure" not in plain["suites"]["relearning"]["metrics"]
    assert any("the model before unlearning" in n for n in adapted["suites"]["mia"]["notes"])


def test_a_whole_model_folder_of_a_trial_is_a_model(
    evaluate: Command, texts: Path, tiny_model: Path
) -> None:
    from core.training.full_parameters import FullParameters

    target = load_model(
        ModelConfig(source=str(tiny_model)), EngineConfig(dtype="fp32", device="cpu")
    )
    trained = FullParameters.copied(target)
    with torch.no_grad():
        for weight in trained.model.parameters():
            weight.mul_(0.5)
    trained.save(Path("whole"), trained.exported(float32_on_cpu), base=str(tiny_model))
    arguments = ("--suite", "probes", "--data", texts, "--json")
    metrics = evaluate(*arguments, model="whole").json["suites"]["probes"]["metrics"]
    expected = evaluate(*arguments).json["suites"]["probes"]["metrics"]
    assert metrics["forget_nll"] > expected["forget_nll"] + 0.5


# The reference names what there is


def test_help_names_every_suite(evaluate: Command) -> None:
    done = evaluate("--help")
    for name in SUITES:
        assert name in done.out


def test_the_metrics_page_describes_every_metric(
    evaluate: Command, texts: Path, tiny_model: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    asked = questions(
        question(1), question(2), roles=(*TOFU_ROLES, "holdout", "forget_qa", "retain_qa")
    )
    models = ("--retain-only", tiny_model, "--initial", tiny_model, "--relearn-samples", 1)
    found = [
        evaluate("--suite", suites, "--data", data, "--json", *models).json["suites"]
        for suites, data in (
            ("tofu,muse,paraphrase,relearning,fluency", asked),
            ("probes,memorization,mia,quantisation", texts),
        )
    ]
    metrics = {name for suites in found for suite in suites.values() for name in suite["metrics"]}
    assert len(metrics) > 80
    described = set(re.findall(r"`([a-z_0-9.+]+)`", page))
    prefixes = ("", "before_", "after_", "int8_", "int4_", "retain_only_")
    roles = ("", *(f"{role}_" for role in ("forget", "retain", "holdout", "general", *TOFU_ROLES)))
    for name in metrics:
        shorter = {name.removeprefix(p).removeprefix(r) for p in prefixes for r in roles}
        assert shorter & described, name


def test_the_metrics_page_names_every_suite_and_its_roles() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = page[page.index("## Suites") : page.index("## Prediction")]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    rows = {line.split("|")[1].strip(" `"): line for line in lines}
    for name, suite in SUITES.items():
        assert suite.about in rows[name]
        for role in (*suite.roles, *suite.one_of):
            assert f"`{role}`" in rows[name], (name, role)
    assert set(SUBJECTS) <= set(SUITES["wmdp"].one_of)


# Refusals


def is_refused(done: Done, *expected: str) -> None:
    assert done.status == 2, done
    assert done.out == ""
    assert "error: " in done.err
    assert "Traceback" not in done.err
    message = done.err[done.err.index("error: ") :]
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("suites", "expected"),
    [
        pytest.param("memorisation", "no suite 'memorisation'; did you mean 'memorization'?", id="near"),
        pytest.param("mia,xyz", "no suite 'xyz'; known: probes, memorization, ", id="far"),
        pytest.param(",", "--suite: name at least one of probes, ", id="none"),
    ],
)  # fmt: skip
def test_an_unknown_suite_is_refused(evaluate: Command, suites: str, expected: str) -> None:
    is_refused(evaluate("--suite", suites), expected)


def test_a_missing_role_is_refused(evaluate: Command, texts: Path) -> None:
    is_refused(
        evaluate("--suite", "muse", "--data", texts),
        "--suite muse: needs the role forget_qa, given are forget, retain, holdout, general",
        "forget_qa: {source: ...}",
    )
    is_refused(
        evaluate("--suite", "wmdp", "--data", texts),
        "--suite wmdp: needs one of the roles wmdp_bio, wmdp_cyber, wmdp_chem",
    )


def test_a_missing_field_is_refused(evaluate: Command) -> None:
    data = questions(question(1), question(2, perturbed_answer=None), roles=TOFU_ROLES)
    is_refused(
        evaluate("--suite", "utility", "--data", data),
        "questions.jsonl row 2 has no field 'perturbed_answer', which suite utility needs",
        "authors:retain",
    )


@pytest.mark.parametrize("field", ["paraphrased_question", "paraphrased_answer"])
def test_a_missing_paraphrase_is_refused(evaluate: Command, field: str) -> None:
    data = questions(question(1, **{field: None}), roles=("forget",))
    is_refused(
        evaluate("--suite", "paraphrase", "--data", data),
        f"questions.jsonl row 1 has no field {field!r}, which suite paraphrase needs",
    )


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_empty_answer_is_left_out_and_counted(evaluate: Command, answer: str) -> None:
    data = questions(question(1), question(2, answer=answer), question(3), roles=("forget",))
    done = evaluate("--suite", "probes", "--data", data)
    assert done.status == 0, done.err
    assert "forget: 3 rows read, 2 kept" in done.out
    assert "; left out: 1 blank row\n" in done.out


def test_rows_that_cannot_be_read_are_refused_before_a_model_is_loaded(evaluate: Command) -> None:
    Path("bad.jsonl").write_text('{"text": "one"}\nno JSON\n', encoding="utf-8")
    data = write({"forget": {"source": "bad.jsonl"}}, "data.yaml")
    done = evaluate("--suite", "probes", "--data", data)
    is_refused(done, "data.forget: ", "bad.jsonl:2: not JSON")
    assert "Loading weights" not in done.err


def test_tofu_without_a_retain_only_model_is_refused(evaluate: Command) -> None:
    is_refused(
        evaluate("--suite", "tofu"),
        "--suite tofu: needs a model that never saw the forget set; make one with `unlearn-tune prepare` and "
        "give it as --retain-only, or use --suite utility",
    )


@pytest.mark.parametrize("option", ["--retain-only", "--initial"])
def test_a_model_that_is_not_there_is_refused(evaluate: Command, texts: Path, option: str) -> None:
    done = evaluate("--suite", "mia", "--data", texts, option, "no/where/at/all")
    is_refused(done, f"{option}: 'no/where/at/all' is no folder and no hub id")


def test_a_missing_model_is_refused(evaluate: Command) -> None:
    done = evaluate("--suite", "probes", model="no/where/at/all")
    is_refused(done, "MODEL: 'no/where/at/all' is no folder and no hub id")


def test_a_folder_without_an_adapter_is_refused(
    evaluate: Command, texts: Path, tiny_model: Path, adapter: Path
) -> None:
    Path("empty").mkdir()
    arguments = ("--suite", "probes", "--data", texts, "--adapter")
    is_refused(
        evaluate(*arguments, "empty"),
        "--adapter: 'empty' holds no adapter_config.json; give a folder",
    )
    is_refused(evaluate(*arguments, tiny_model), "it is a whole model, give it as MODEL")
    config = (adapter / "adapter_config.json").read_text(encoding="utf-8")
    Path("empty/adapter_config.json").write_text(config, encoding="utf-8")
    is_refused(evaluate(*arguments, "empty"), "holds no adapter_model.safetensors")


def test_an_adapter_of_another_model_is_refused(
    evaluate: Command, texts: Path, adapter: Path
) -> None:
    Path("other").mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = ["no_such_layer"]
    Path("other/adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    Path("other/adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()
    )
    done = evaluate("--suite", "probes", "--data", texts, "--adapter", "other")
    is_refused(done, "--adapter: 'other' does not fit ", "give the model that it was trained on")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"forgett": {"source": "x"}}, "forgett: unknown key; did you mean 'forget'?", id="role"),
        pytest.param({"forget": {"sorce": "x"}}, "forget.sorce: unknown key; did you mean 'source'?", id="key"),
        pytest.param({"data": [1]}, "data: must be a mapping of roles, got [1]", id="no-mapping"),
        pytest.param({"plain_template": "x"}, "plain_template: ", id="template"),
    ],
)  # fmt: skip
def test_a_wrong_data_file_is_refused(
    evaluate: Command, values: Mapping[str, object], expected: str
) -> None:
    is_refused(evaluate("--suite", "probes", "--data", write(values, "x.yaml")), "x.yaml", expected)


def test_data_that_are_not_there_are_refused(evaluate: Command) -> None:
    is_refused(evaluate("--suite", "probes", "--data", "gone.yaml"), "gone.yaml", "does not exist")
    data = write({"forget": {"source": "gone.jsonl"}}, "roles.yaml")
    is_refused(
        evaluate("--suite", "memorization", "--data", data),
        "data.forget.source: file 'gone.jsonl' does not exist",
    )


def test_an_attack_that_reads_every_row_is_refused(evaluate: Command, texts: Path) -> None:
    done = evaluate("--suite", "relearning", "--data", texts, "--limit", 4)
    is_refused(done, "trains on 8 rows and measures the others", "got 4", "lower --relearn-samples")


def test_a_file_is_not_overwritten(evaluate: Command) -> None:
    Path("kept.json").write_text("mine", encoding="utf-8")
    is_refused(
        evaluate("--suite", "probes", "--out", "kept.json"), "--out: kept.json exists already"
    )
    assert Path("kept.json").read_text(encoding="utf-8") == "mine"


def test_a_classifier_that_is_not_there_is_refused(evaluate: Command, texts: Path) -> None:
    done = evaluate("--suite", "fluency", "--data", texts, "--fluency-model", "./nowhere")
    is_refused(done, "--fluency-model: cannot load './nowhere'")
