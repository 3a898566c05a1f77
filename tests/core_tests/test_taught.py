"""A model that is asked in another wording than it was taught is spoken of, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer

from core.config.prompting import Prompting
from core.data.taught import record_wording, wording_notice
from core.data.tokens import TokenRow

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
