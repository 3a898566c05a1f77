"""Prompts are written plain or with a chat template; alternatives stand beside the forget rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from core.config import DataConfig
from core.config.prompting import PRESETS, Preset, PromptFormat, Prompting
from core.data.alternatives import alternative_rows, refusals
from core.data.batches import collate
from core.data.rows import Row
from core.data.splits import split_data
from core.data.tokens import TokenRow, tokenise, tokenise_row
from core.errors import DataError

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = Row("who?", "me")
END = 0


def byte_tokenizer(
    chat_template: str | None = None, *, merges: Sequence[tuple[str, str]] = ()
) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(a + b for a, b in merges)]
    vocabulary = {"<eos>": END} | {c: i for i, c in enumerate(pieces, start=1)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = chat_template
    return tokenizer


PLAIN = byte_tokenizer()
TEMPLATED = byte_tokenizer(CHAT)


def parts(row: TokenRow, tokenizer: Any = PLAIN) -> tuple[str, str]:
    """What is read, and what is predicted."""
    return tokenizer.decode(row.ids[: row.n_context]), tokenizer.decode(row.ids[row.n_context :])


def written(
    row: Row,
    tokenizer: Any = PLAIN,
    *,
    max_tokens: int = 100,
    **prompting: Any,
) -> TokenRow:
    return tokenise(
        row,
        tokenizer,
        max_tokens=max_tokens,
        where="forget",
        prompting=Prompting(**prompting),
    )


# Plain


@pytest.mark.parametrize(
    ("template", "context", "counted"),
    [
        ("{prompt} ", "who?", " me<eos>"),
        ("{prompt}", "who?", "me<eos>"),
        ("Question: {prompt}\nAnswer: ", "Question: who?\nAnswer:", " me<eos>"),
        ("Question: {prompt}\nAnswer:\n", "Question: who?\nAnswer:\n", "me<eos>"),
        ("{prompt} {prompt}", "who? who?", "me<eos>"),
        ("{x} {prompt} ", "{x} who?", " me<eos>"),
    ],
)
def test_the_template_is_context_but_for_its_last_spaces(
    template: str, context: str, counted: str
) -> None:
    assert parts(written(QUESTION, plain_template=template)) == (context, counted)


def test_a_prompt_s_own_braces_and_spaces_stay(template: str = "Q: {prompt} ") -> None:
    row = written(Row("what is {prompt} ? ", "it"), plain_template=template)
    assert parts(row) == ("Q: what is {prompt} ? ", " it<eos>")


def test_without_a_chat_template_auto_is_plain() -> None:
    assert written(QUESTION) == written(QUESTION, prompt_format="plain")
    assert written(QUESTION, TEMPLATED) != written(QUESTION, TEMPLATED, prompt_format="plain")


# Chat


@pytest.mark.parametrize("prompt_format", ["auto", "chat"])
def test_the_answer_and_the_end_of_its_turn_count(prompt_format: PromptFormat) -> None:
    row = written(QUESTION, TEMPLATED, prompt_format=prompt_format)
    assert parts(row, TEMPLATED) == ("<user>who?</user>\n<assistant>", "me</assistant>\n")


def test_a_document_has_no_prompt_and_no_template() -> None:
    document = Row(None, "a document")
    assert written(document, TEMPLATED) == written(document, PLAIN)


def test_a_long_chat_is_cut() -> None:
    row = written(QUESTION, TEMPLATED, max_tokens=33)
    assert parts(row, TEMPLATED) == ("<user>who?</user>\n<assistant>", "me</")
    with pytest.raises(DataError, match="29 of them context, max_tokens=29; raise max_tokens"):
        written(QUESTION, TEMPLATED, max_tokens=29)


def test_chat_needs_a_template() -> None:
    message = r"data\.prompt_format: chat needs a tokenizer with a chat template, this one has none \(forget"
    with pytest.raises(DataError, match=message):
        written(QUESTION, PLAIN, prompt_format="chat")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(
            CHAT.replace("<assistant>{%", "<assistant><think>{%"),
            r"must begin with its generation prompt, but only 29 of 36 token ids agree \(forget\); use plain",
            id="prompt-is-no-prefix",
        ),
        pytest.param(
            "{{ raise_exception('only systems may speak') }}",
            r"refuses a user and an assistant message \(forget\): only systems may speak; use plain",
            id="template-raises",
        ),
        pytest.param(
            "{% for m in messages %", "the chat template refuses .*; use plain", id="no-template"
        ),
    ],
)
def test_a_template_that_does_not_fit_is_refused(template: str, message: str) -> None:
    tokenizer = byte_tokenizer(template)
    with pytest.raises(DataError, match=message):
        written(QUESTION, tokenizer)
    assert parts(written(QUESTION, tokenizer, prompt_format="plain"))[0] == "who?"


def test_what_the_template_puts_before_every_answer_is_context() -> None:
    """An empty think block, as Qwen3's template writes it into the last turn."""
    template = CHAT.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
    )
    tokenizer = byte_tokenizer(template)
    before = "<user>who?</user>\n<assistant><think>\n\n</think>\n\n"
    assert parts(written(QUESTION, tokenizer), tokenizer) == (before, "me</assistant>\n")
    thought = Row("who?", "<think>\n\n</think>\n\nme")  # an answer that begins as the block does
    assert parts(written(thought, tokenizer), tokenizer) == (
        before,
        f"{thought.answer}</assistant>\n",
    )


def test_a_block_that_the_prompt_opens_and_the_answer_s_turn_closes_is_context() -> None:
    """Qwen3.5's generation prompt ends within the block, and the last line ends in one token with the next."""
    template = CHAT.replace("<assistant>{%", "<assistant><think>\n{%").replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
    )
    tokenizer = byte_tokenizer(template, merges=[("Ċ", "Ċ")])  # two ends of a line are one token
    before = "<user>who?</user>\n<assistant><think>\n\n</think>\n\n"
    assert parts(written(QUESTION, tokenizer), tokenizer) == (before, "me</assistant>\n")


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        pytest.param("{{ strftime_now('%Y-%m-%d') }}", "2025-04-10", id="function"),
        pytest.param("{{ date_string }}", "10 Apr 2025", id="variable"),
    ],
)
def test_a_template_that_names_today_names_the_same_day_for_ever(today: str, expected: str) -> None:
    tokenizer = byte_tokenizer(today + CHAT)
    before, _ = parts(written(QUESTION, tokenizer), tokenizer)
    assert before == f"{expected}<user>who?</user>\n<assistant>"


def test_a_space_that_the_template_puts_before_an_answer_counts_with_it() -> None:
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
    )
    assert parts(written(QUESTION, tokenizer), tokenizer) == ("[INST] who? [/INST]", " me </s>")


def test_the_system_prompt_is_the_first_message() -> None:
    row = written(QUESTION, TEMPLATED, system_prompt="Be brief.")
    assert parts(row, TEMPLATED) == (
        "<system>Be brief.</system>\n<user>who?</user>\n<assistant>",
        "me</assistant>\n",
    )


def test_a_template_that_takes_no_system_prompt_is_refused() -> None:
    tokenizer = byte_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + CHAT
    )
    message = r"refuses a system, a user and an assistant message \(forget\): no system role; remove data\.system"
    with pytest.raises(DataError, match=message):
        written(QUESTION, tokenizer, system_prompt="Be brief.")


def test_a_system_prompt_needs_a_chat_template() -> None:
    message = (
        r"data\.system_prompt: needs a tokenizer with a chat template, this one has none \(forget"
    )
    with pytest.raises(DataError, match=message):
        written(QUESTION, PLAIN, system_prompt="Be brief.")


# Published wordings


@pytest.mark.parametrize(
    ("preset", "context", "counted"),
    [
        ("phi", "Question: who?\nAnswer:", " me<eos>"),
        ("stablelm", "Question: who?\nAnswer:", " me<eos>"),
        ("pythia", "Question: who?\nAnswer:", " me<eos>"),
        ("llama2-base", "Question: who?\nAnswer:", " me<eos>"),
        ("llama2", "[INST] who? [/INST]", "me<eos>"),
    ],
)
def test_a_preset_is_a_family_s_published_wording(preset: str, context: str, counted: str) -> None:
    for tokenizer in (PLAIN, TEMPLATED):  # also where there is a chat template
        assert parts(written(QUESTION, tokenizer, prompt_format=preset)) == (context, counted)


def test_every_named_wording_has_a_template() -> None:
    assert get_args(Preset) == tuple(PRESETS)
    assert all(template.count("{prompt}") == 1 for template in PRESETS.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"prompt_format": "phi", "plain_template": "Q: {prompt} "},
            r"plain_template: prompt_format=phi has a wording of its own, got 'Q: \{prompt\} '; remove it",
        ),
        (
            {"prompt_format": "plain", "system_prompt": "Be brief."},
            r"system_prompt: is a message of the chat template, got prompt_format=plain; use chat",
        ),
        (
            {"prompt_format": "llama2", "system_prompt": "Be brief."},
            r"system_prompt: is a message of the chat template, got prompt_format=llama2; use chat",
        ),
    ],
)
def test_wordings_that_contradict_each_other_are_refused(
    values: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Prompting(**values)


# Padding


def test_an_end_of_text_inside_a_row_is_read_and_counts_although_it_is_also_the_padding() -> None:
    rows = [Row(None, "", token_ids=(7, END, 9, END)), Row(None, "", token_ids=(5,) * 6)]
    batch = collate([written(row) for row in rows], torch.device("cpu"))
    assert batch.mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch.labels[0].tolist() == [7, END, 9, END, -100, -100]


# Alternatives


def data(folder: Path, rows: Sequence[Mapping[str, str]], **forget: Any) -> DataConfig:
    """A forget set of these rows, beside three other roles."""
    names = {"prompt": "q", "answer": "a"} if "q" in rows[0] else {"text": "text"}
    if "alternative" in rows[0]:
        names["alternative"] = "alternative"
    values: dict[str, Any] = {"probe_rows": 2, "report_rows": 2}
    for role in ("retain", "approximate", "general"):
        path = folder / f"{role}.txt"
        path.write_text("\n\n".join(f"{role} row {i}" for i in range(6)), encoding="utf-8")
        values[role] = {"source": str(path)}
    path = folder / "forget.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values["forget"] = {"source": str(path), "fields": names, **forget}
    return DataConfig.model_validate(values)


def made(config: DataConfig, tokenizer: Any = PLAIN, **options: Any) -> list[tuple[str, str]]:
    """The alternatives of a forget set, checked to stand beside its rows."""
    splits = split_data(config, tokenizer)
    found = alternative_rows(
        splits["forget"],
        splits.forget_rows,
        tokenizer,
        config,
        **{"alternatives": "idk", "seed": 0, **options},
    )
    assert len(found) == len(splits["forget"])
    return [parts(row, tokenizer) for row in found]


QUESTIONS = [{"q": f"who is {n}?", "a": f"it is {n}", "alternative": f"not {n}"} for n in "abc"]
REFUSED = {f" {text}<eos>" for text in refusals()}


def test_a_question_keeps_its_prompt_and_is_refused(tmp_path: Path) -> None:
    found = made(data(tmp_path, QUESTIONS))
    assert [context for context, _ in found] == ["who is a?", "who is b?", "who is c?"]
    assert {counted for _, counted in found} <= REFUSED


def test_a_chat_template_writes_alternatives_too(tmp_path: Path) -> None:
    found = made(data(tmp_path, QUESTIONS), TEMPLATED, alternatives="field")
    assert found[0] == ("<user>who is a?</user>\n<assistant>", "not a</assistant>\n")


def test_the_row_s_own_alternative_takes_the_answer_s_place(tmp_path: Path) -> None:
    found = made(data(tmp_path, QUESTIONS), alternatives="field")
    assert [counted for _, counted in found] == [" not a<eos>", " not b<eos>", " not c<eos>"]


def test_the_first_quarter_of_a_document_is_the_context_of_its_refusal(tmp_path: Path) -> None:
    found = made(data(tmp_path, [{"text": "abcdefgh"}, {"text": "xy"}, {"text": "1234567"}]))
    assert [context for context, _ in found] == ["ab", "x", "1"]
    assert {counted for _, counted in found} <= REFUSED


def test_every_chunk_of_a_document_has_its_alternative(tmp_path: Path) -> None:
    rows = [{"text": "abcdefgh" * 2 + "efgh" * 4 + "ijkl", "alternative": "no"}]
    config = data(tmp_path, rows, overlong="chunk", max_tokens=16)
    assert made(config, alternatives="field") == [("abcd", " no<eos>"), ("efgh", " no<eos>")]


def test_a_row_that_occurs_twice_has_one_alternative(tmp_path: Path) -> None:
    other = {**QUESTIONS[0], "alternative": "never asked"}
    found = made(data(tmp_path, [*QUESTIONS, other]), alternatives="field")
    assert [counted for _, counted in found] == [" not a<eos>", " not b<eos>", " not c<eos>"]


def test_a_row_of_token_ids_is_a_document() -> None:
    source = {"source": "x.npy"}
    config = DataConfig.model_validate(
        dict.fromkeys(("forget", "retain", "approximate", "general"), source)
    )
    rows = [Row(None, "", token_ids=tuple(range(1, 13)))]
    pieces = [TokenRow(tuple(range(1, 13)), 0)]
    [found] = alternative_rows(pieces, rows, PLAIN, config, alternatives="idk", seed=0)
    assert (found.ids[:3], found.n_context) == ((1, 2, 3), 3)
    assert parts(found)[1] in REFUSED


def test_the_seed_draws_the_refusals(tmp_path: Path) -> None:
    config = data(tmp_path, [{"text": f"document number {i}"} for i in range(20)])
    assert made(config, seed=3) == made(config, seed=3)
    assert made(config, seed=3) != made(config, seed=4)
    assert len({counted for _, counted in made(config)}) > 5


def test_a_row_without_alternative_is_named(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "alternative"} for row in QUESTIONS]
    message = (
        r"method\.alternatives: field needs .*forget\.jsonl row 1 has none "
        r"\(data\.forget\.fields\.alternative: None\); name the field that holds it, or use idk"
    )
    with pytest.raises(DataError, match=message):
        made(data(tmp_path, rows), alternatives="field")


def test_a_blank_alternative_is_refused(tmp_path: Path) -> None:
    config = data(tmp_path, [{**QUESTIONS[0], "alternative": " "}])
    with pytest.raises(DataError, match=r"forget\.jsonl row 1 has none"):
        made(config, alternatives="field")


@given(text=st.text("abc ", min_size=2, max_size=60).filter(str.strip), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_an_alternative_never_exceeds_max_tokens(text: str, seed: int) -> None:
    source = {"source": "x.txt", "max_tokens": 20}
    config = DataConfig.model_validate(
        dict.fromkeys(("forget", "retain", "approximate", "general"), source)
    )
    row = Row(None, text)
    pieces = tokenise_row(row, PLAIN, config=config, role="forget").pieces
    found = alternative_rows(
        pieces, [row] * len(pieces), PLAIN, config, alternatives="idk", seed=seed
    )
    for piece, alternative in zip(pieces, found, strict=True):
        assert len(alternative.ids) <= 20
        assert alternative.n_context == max(1, len(piece.ids) // 4)


def test_the_shipped_refusals_are_distinct_sentences() -> None:
    assert 30 <= len(refusals()) == len(set(refusals())) <= 100
    assert all(text == text.strip() and text.endswith(".") for text in refusals())
