"""Prompts and answers of tokenizers that put something of their own around every text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from conftest import byte_tokenizer
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from core.config.prompting import Prompting
from core.data.prompts import continuation, opening
from core.data.rows import Row
from core.data.tokens import TokenRow, tokenise

QUESTION = Row("who?", "me")
END = 0
PLAIN = byte_tokenizer()


def written(row: Row, tokenizer: Any, **prompting: Any) -> TokenRow:
    return tokenise(
        row, tokenizer, max_tokens=100, where="forget", prompting=Prompting(**prompting)
    )


def parts(row: TokenRow, tokenizer: Any) -> tuple[str, str]:
    """What is read, and what is predicted."""
    return tokenizer.decode(row.ids[: row.n_context]), tokenizer.decode(row.ids[row.n_context :])


def llama2_tokenizer() -> Any:
    """Llama-2's normaliser: a word boundary before every text, and in every space's place; bytes elsewhere."""
    letters = ["▁", "\n", *map(chr, range(33, 127))]
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i for i, c in enumerate(letters, start=2)}
    merges = [("▁", "m"), ("▁", "n"), ("▁m", "e"), ("]", "("), ("▁", "▁")]
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(merges)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


LLAMA2 = llama2_tokenizer()


def pieces(row: TokenRow) -> tuple[list[str], list[str]]:
    found = LLAMA2.convert_ids_to_tokens(list(row.ids))
    return found[: row.n_context], found[row.n_context :]


@pytest.mark.parametrize(
    ("answer", "prompting", "counted"),
    [
        pytest.param("me", {}, ["▁me", "</s>"], id="space-in-the-template"),
        pytest.param("me", {"prompt_format": "phi"}, ["▁me", "</s>"], id="phi"),
        pytest.param("me", {"prompt_format": "llama2"}, ["m", "e", "</s>"], id="llama2"),
        pytest.param("(", {"prompt_format": "llama2"}, ["(", "</s>"], id="joins-over-the-boundary"),
    ],
)
def test_no_word_boundary_of_its_own_stands_before_a_plain_answer(
    answer: str, prompting: Mapping[str, Any], counted: list[str]
) -> None:
    assert pieces(written(Row("who?", answer), LLAMA2, **prompting))[1] == counted


def test_a_plain_row_is_what_the_published_code_tokenises_as_one_text() -> None:
    """TOFU's ``convert_raw_data_to_model_format`` tokenises question and answer together."""
    for preset, text in (
        ("phi", "Question: no\nAnswer: me n"),
        ("llama2", "[INST] no [/INST]me n"),
    ):
        row = written(Row("no", "me n"), LLAMA2, prompt_format=preset)
        assert [*row.ids] == [*LLAMA2(text)["input_ids"], LLAMA2.eos_token_id]


def test_the_alternative_of_a_document_has_no_word_boundary_of_its_own() -> None:
    ids = continuation(" me", LLAMA2)
    assert LLAMA2.convert_ids_to_tokens(ids) == ["▁me", "</s>"]


def ending_tokenizer() -> Any:
    """It ends every text itself, as fine-tunes with ``add_eos_token: true`` do."""
    made = byte_tokenizer()
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", END)]
    )
    return made


ENDING = ending_tokenizer()


def test_a_prompt_does_not_end_the_text_although_the_tokenizer_ends_every_text() -> None:
    assert ENDING("who?")["input_ids"][-1] == END
    assert parts(written(QUESTION, ENDING), ENDING) == ("who?", " me<eos>")
    assert written(QUESTION, ENDING) == written(QUESTION, PLAIN)
    joined = written(Row("who?", "me"), ENDING, plain_template="{prompt}")
    assert parts(joined, ENDING) == ("who?", "me<eos>")


def test_what_a_tokenizer_puts_before_a_text_stays() -> None:
    assert LLAMA2.convert_ids_to_tokens(opening("n", LLAMA2)) == ["<s>", "▁n"]
    assert opening("n", ENDING) == PLAIN("n")["input_ids"]
