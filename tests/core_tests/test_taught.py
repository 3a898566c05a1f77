"""A model that is asked in another wording than it was taught is spoken of, and no other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer
from suite_inputs import ENGINE, write_records

from core.config import TrialConfig
from core.config.prompting import Prompting
from core.data.taught import record_wording, wording_notice
from core.data.tokens import TokenRow
from core.errors import NothingToForgetError
from core.evaluation import EvaluationRequest, evaluate
from core.measuring.baselines import baseline_levels
from core.suites import EvaluationData
from core.training.ranks import Group
from core.training.warm import Warm

TrialMaker = Callable[..., TrialConfig]

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LLAMA2_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
QUESTIONS = [TokenRow((1, 2, 3), 2)]
DOCUMENTS = [TokenRow((1, 2, 3), 0)]
AS_TAUGHT = {"plain_template": "Question: {prompt}\nAnswer: ", "prompt_format": "plain"}


def notice(
    prompting: Mapping[str, Any],
    *,
    chat_template: str | None = CHAT,
    rows: list[TokenRow] | None = None,
    location: Path | str = "nowhere",
) -> str | None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    return wording_notice(
        Prompting(**prompting),
        tokenizer,
        QUESTIONS if rows is None else rows,
        source="hub:a/model",
        location=str(location),
    )


@pytest.mark.parametrize(
    ("prompting", "asked"),
    [
        ({"prompt_format": "plain"}, "'PROMPT'"),
        ({"prompt_format": "plain", "plain_template": "Say: {prompt} "}, "'Say: PROMPT'"),
        ({"prompt_format": "phi"}, r"'Question: PROMPT\nAnswer:'"),
        ({"prompt_format": "llama2"}, "'[INST] PROMPT [/INST]'"),
    ],
)
def test_a_model_with_a_chat_template_that_is_asked_plainly_is_spoken_of(
    prompting: Mapping[str, Any], asked: str
) -> None:
    found = notice(prompting)
    assert found is not None
    assert found.startswith(
        f"data.prompt_format: hub:a/model has a chat template, and is asked as {asked}; a model that"
    )


@pytest.mark.parametrize(
    ("prompting", "is_said"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param({"prompt_format": "plain"}, False, id="the-format"),
        pytest.param({"plain_template": "Say: {prompt} "}, False, id="the-template"),
        pytest.param({"prompt_format": "phi"}, False, id="a-family"),
    ],
)
def test_without_a_chat_template_a_wording_that_nobody_chose_is_spoken_of(
    prompting: Mapping[str, Any], is_said: bool
) -> None:
    found = notice(prompting, chat_template=None)
    assert (found is not None) is is_said
    if found is not None:
        assert found.startswith(
            "data.prompt_format: the tokenizer of hub:a/model has no chat template, so auto asks it as 'PROMPT'"
        )
        assert "write that as plain_template" in found and "prompt_format: plain" in found
    assert notice(prompting, chat_template=None, rows=DOCUMENTS) is None


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"prompting": {}}, id="auto"),
        pytest.param({"prompting": {"prompt_format": "chat"}}, id="chat"),
        pytest.param({"prompting": {"system_prompt": "Be brief."}}, id="chat-with-system-prompt"),
        pytest.param({"prompting": AS_TAUGHT, "chat_template": None}, id="no-template"),
        pytest.param({"prompting": AS_TAUGHT, "rows": DOCUMENTS}, id="documents"),
        pytest.param(
            {"prompting": {"prompt_format": "llama2"}, "chat_template": LLAMA2_CHAT},
            id="wording-of-the-template",
        ),
        pytest.param(
            {
                "prompting": AS_TAUGHT,
                "chat_template": "{{ raise_exception('no messages') }}",
            },
            id="template-that-refuses",
        ),
    ],
)
def test_of_other_models_nothing_is_said(options: Mapping[str, Any]) -> None:
    assert notice(**options) is None


def test_a_prepared_model_is_compared_with_what_it_was_taught(tmp_path: Path) -> None:
    record_wording(Prompting(**AS_TAUGHT), tmp_path)
    assert notice(AS_TAUGHT, location=tmp_path) is None
    assert notice({"prompt_format": "phi"}, location=tmp_path) is None  # the same words
    found = notice({}, location=tmp_path)
    assert found is not None
    assert (
        r"was taught prompts as 'Question: PROMPT\nAnswer:', and is asked as "
        "'<user>PROMPT</user><assistant>'" in found
    )
    found = notice({"prompt_format": "llama2"}, chat_template=None, location=tmp_path)
    assert found is not None and "is asked as '[INST] PROMPT [/INST]'" in found


def test_a_forgotten_system_prompt_of_a_prepared_model_is_spoken_of(tmp_path: Path) -> None:
    record_wording(Prompting(system_prompt="Be brief."), tmp_path)
    assert notice({"system_prompt": "Be brief."}, location=tmp_path) is None
    assert "<system>Be brief." in str(notice({}, location=tmp_path))


# What users of a model see


@pytest.fixture
def templated_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path / "templated"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return folder


def question_source(folder: Path, role: str) -> dict[str, Any]:
    rows = [{"question": f"{role} {i}?", "answer": f"it is {i}"} for i in range(20)]
    path = write_records(folder / f"{role}.jsonl", rows)
    return {"source": str(path), "fields": {"prompt": "question", "answer": "answer"}}


@pytest.mark.parametrize(("prompt_format", "n_told"), [("phi", 1), ("auto", 0)])
def test_evaluate_speaks_of_it_once(
    templated_model: Path, tmp_path: Path, prompt_format: str, n_told: int
) -> None:
    sources = {role: question_source(tmp_path, role) for role in ("forget", "retain", "holdout")}
    data = EvaluationData.model_validate({**sources, "prompt_format": prompt_format})
    told: list[str] = []
    request = EvaluationRequest(
        model=str(templated_model),
        suites=("memorization", "mia"),
        data=data,
        limit=2,
        engine=ENGINE,
    )
    evaluate(request, tell=told.append)
    warnings = [line for line in told if line.startswith("warning: data.prompt_format: ")]
    assert len(warnings) == n_told
    assert all("has a chat template, and is asked as 'Question: PROMPT" in w for w in warnings)


@pytest.mark.parametrize(("prompt_format", "n_notices"), [("phi", 1), ("chat", 0)])
def test_a_process_of_a_trial_knows_of_it(
    make_trial: TrialMaker,
    templated_model: Path,
    tmp_path: Path,
    prompt_format: str,
    n_notices: int,
) -> None:
    roles = ("forget", "retain", "approximate", "general")
    sources = {f"data.{role}": question_source(tmp_path, role) for role in roles}
    changes = {
        "model.source": str(templated_model),
        "data.prompt_format": prompt_format,
        "data.probe_rows": 2,
        "data.report_rows": 2,
    }
    config, warm = make_trial(sources | changes), Warm()
    notices = warm.notices(config)
    assert len(notices) == n_notices
    with pytest.raises(NothingToForgetError) as caught:  # the model knows none of these answers
        baseline_levels(config, warm, Group(rank=0, size=1), part="probe")
    assert str(caught.value).endswith("; ".join(["that it has not", *notices]))
