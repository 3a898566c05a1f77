"""What a model without an adapter says of rows is asked once: of other subjects, evaluations and processes, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from suite_inputs import ENGINE, input_of, moved, tokens

from core.config import EngineConfig, ModelConfig
from core.evaluation import EvaluationRequest, evaluate
from core.model.loading import LoadedModel, load_model
from core.store import upkeep
from core.suites import EvaluationData, Subject

NUMBERS = ("nll", "min_k_0.4")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No other test has asked."""
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another model of the same kind."""
    folder = tmp_path_factory.mktemp("other")
    made: Any = moved(loaded(tiny_model), by=0.02, seed=1)
    made.network.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: Any = "fp32") -> LoadedModel:
    return load_model(
        ModelConfig(source=str(folder)), EngineConfig(dtype=dtype, device=ENGINE.device)
    )


def kept(model: LoadedModel) -> Subject:
    return Subject(model, name="kept", batch_size=3, is_kept=True)


@contextmanager
def rows_passed(model: LoadedModel) -> Iterator[list[int]]:
    """Rows of each forward pass within the context."""
    found: list[int] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found.append(len(kwargs["input_ids"] if "input_ids" in kwargs else args[0]))

    hook = model.network.register_forward_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def test_rows_are_read_once_whoever_asks(tiny_model: Path, text_data: EvaluationData) -> None:
    first, second = loaded(tiny_model), loaded(tiny_model)
    rows = tokens(input_of(first, text_data), "forget")
    found = kept(first).read(rows, NUMBERS)
    with rows_passed(second) as passed:
        again = kept(second).read(rows[::-1], NUMBERS)
        plain = Subject(second, name="plain", batch_size=3).read(rows, NUMBERS)
    assert sum(passed) == len(rows)  # those of the plain one
    assert {name: values[::-1] for name, values in again.items()} == found == plain


def test_only_what_is_new_is_read(tiny_model: Path, text_data: EvaluationData) -> None:
    model = loaded(tiny_model)
    rows = tokens(input_of(model, text_data), "forget")
    kept(model).read(rows[:-2], NUMBERS)
    with rows_passed(model) as passed:
        kept(model).read([*rows, rows[0]], NUMBERS)
        assert sum(passed) == 2
        kept(model).read(rows, ("probability",))
    assert sum(passed) == 2 + len(rows)


def test_what_was_written_and_continued_is_kept(
    tiny_model: Path, text_data: EvaluationData
) -> None:
    model = loaded(tiny_model)
    given = input_of(model, text_data)
    examples, rows = given.rows.examples("forget"), tokens(given, "forget")
    plain = Subject(model, name="plain", batch_size=3)
    written = kept(model).continuations(examples)
    likelihoods = kept(model).extraction_likelihoods(rows, n=2)
    assert written == plain.continuations(examples)
    assert any(one.written for one in written)
    assert likelihoods == pytest.approx(plain.extraction_likelihoods(rows, n=2), nan_ok=True)
    with rows_passed(model) as passed:
        assert kept(model).continuations(examples) == written
        again = kept(model).extraction_likelihoods(rows, n=2)
        assert passed == []
        kept(model).continuations(examples, answer_tokens=3, document_tokens=3)
        assert passed != []
    assert again == pytest.approx(likelihoods, nan_ok=True, rel=0, abs=0)


def test_another_model_and_another_precision_are_asked_themselves(
    tiny_model: Path, other_model: Path, text_data: EvaluationData
) -> None:
    found = []
    for model in (loaded(tiny_model), loaded(other_model), loaded(tiny_model, "bf16")):
        rows = tokens(input_of(model, text_data), "forget")
        with rows_passed(model) as passed:
            found.append(kept(model).read(rows, ("nll",))["nll"])
        assert sum(passed) == len(rows)
    assert found[0] != found[1] != found[2] != found[0]


def test_a_subject_with_an_adapter_or_changed_weights_keeps_nothing(
    tiny_model: Path, text_data: EvaluationData
) -> None:
    model = loaded(tiny_model)
    rows = tokens(input_of(model, text_data), "forget")
    subject = kept(model)
    subject.other(subject.merged_copy(model.dtype), name="copy").read(rows, NUMBERS)
    Subject(model, name="plain", batch_size=3).read(rows, NUMBERS)
    assert upkeep.entries() == []


def test_an_evaluation_asks_a_retain_only_model_of_an_earlier_one_nothing(
    tiny_model: Path, other_model: Path, question_data: EvaluationData
) -> None:
    def evaluated(model: Path) -> dict[str, Any]:
        request = EvaluationRequest(
            model=str(model),
            suites=("tofu",),
            retain_only=str(other_model),
            data=question_data,
            limit=3,
            engine=ENGINE,
        )
        metrics: dict[str, Any] = evaluate(request, tell=lambda line: None)["suites"]["tofu"][
            "metrics"
        ]
        return metrics

    def of_other() -> set[Path]:
        identity = loaded(other_model).identity
        found = [e for e in upkeep.entries() if e.model() == identity]
        return {file for e in found for file in e.path.rglob("*.safetensors")}

    first = evaluated(tiny_model)
    made = of_other()
    assert made
    assert evaluated(tiny_model) == first
    assert of_other() == made
