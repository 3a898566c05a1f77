"""A tokenizer or a chat template that refuses a row is an error about that row."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from core.config.prompting import Prompting
from core.data.rows import Row
from core.data.taught import wording_notice
from core.data.tokens import TokenRow, tokenise
from core.errors import DataError

PROMPT = Row("who?", "me", place="rows.jsonl row 3")
DOCUMENT = Row(None, "somebody", place="rows.jsonl row 3")


def knows_words_only() -> Any:
    """A tokenizer that was saved without a token for what it does not know."""
    made = Tokenizer(models.WordLevel(vocab={"<eos>": 0, "known": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def tokenised(row: Row, tokenizer: Any) -> TokenRow:
    return tokenise(row, tokenizer, max_tokens=64, where=f"forget, {row.place}")


@pytest.mark.parametrize(
    ("row", "text"), [(DOCUMENT, "somebody"), (PROMPT, r"who\?")], ids=["document", "prompt"]
)
def test_a_tokenizer_that_refuses_a_text_is_said_with_its_place(row: Row, text: str) -> None:
    rule = rf"^data \(forget, rows\.jsonl row 3\): the tokenizer \w+ refuses the text '{text}': .*UNK.*; change"
    with pytest.raises(DataError, match=rule):
        tokenised(row, knows_words_only())


def test_half_a_character_is_said_with_its_place() -> None:
    row = Row(None, "half \ud83d", place="rows.jsonl row 3")
    with pytest.raises(DataError, match=r"\(forget, rows\.jsonl row 3\): the tokenizer .* refuses"):
        tokenised(row, byte_tokenizer())


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param("{{ raise_exception('no roles') }}", "no roles", id="its-own-refusal"),
        pytest.param("{{ messages[0].content + 1 }}", "TypeError: can only concat", id="type"),
        pytest.param("{{ messages[5].content.text }}", "no element 5", id="no-such-message"),
        pytest.param("{{ 1 / 0 }}", "ZeroDivisionError: division by zero", id="division"),
        pytest.param("{% for m in messages %}", "Unexpected end of template", id="syntax"),
        pytest.param("{{ messages.pop() }}", "unsafe", id="unsafe"),
        pytest.param("{{ nothing.of_it }}", "'nothing' is undefined", id="undefined"),
        pytest.param("{% include 'other' %}", "no loader", id="include"),
    ],
)
def test_a_template_that_breaks_is_said_with_its_place(template: str, said: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError) as caught:
        tokenised(PROMPT, tokenizer)
    message = str(caught.value)
    assert message.startswith(
        "data.prompt_format: the chat template refuses a user and an assistant"
    )
    assert "(forget, rows.jsonl row 3)" in message
    assert said in message
    assert message.endswith("; use plain")


def test_a_notice_is_not_worth_an_error() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ 1 / 0 }}"
    rows = [TokenRow((1, 2), 1)]
    asked = Prompting(prompt_format="plain")
    assert wording_notice(asked, tokenizer, rows, source="m", location="m") is None
