"""Rows, masks and labels against those of the published code; names and deviations as in ``tests/golden``."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import Variant, variants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from core.config import DataConfig
from core.config.prompting import Prompting
from core.data.batches import collate
from core.data.rows import Row
from core.data.tokens import SHORTEST_CHUNK, TokenRow, tokenise, tokenise_row
from core.losses import IGNORED, random_labels

END = 256
SOURCE = {"source": "unused.npy"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The cases' own: a byte is its own id, 256 is the end of text and the padding."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ascii_ids = {split.pre_tokenize_str(chr(b))[0][0]: b for b in range(128)}
    others = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(ascii_ids))
    vocabulary = ascii_ids | {c: i for i, c in enumerate(others, start=128)} | {"<eos>": END}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = split
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def padded(rows_BT: Tensor, width: int, *, fill: int) -> Tensor:
    return torch.nn.functional.pad(rows_BT, (0, width - rows_BT.shape[1]), value=fill)


@variants("loku_label_format")
def test_golden_question_and_answer_of_loku(variant: Variant, tokenizer: Any) -> None:
    """Same tokens, same counted ones. On purpose: the end of text that counts is also attended to."""
    params = variant.params
    row = tokenise(
        Row(params["question"], params["answer_tag"] + params["answer"]),
        tokenizer,
        max_tokens=params["max_length"],
        where="forget",
        prompting=Prompting(
            plain_template=f"{params['question_start_tag']}{{prompt}}{params['question_end_tag']}"
        ),
    )
    batch, width = collate([row], torch.device("cpu")), params["max_length"]
    variant.agrees(padded(batch.ids, width, fill=END)[0], "input_ids")
    variant.agrees(padded(batch.labels, width, fill=IGNORED)[0], "labels")
    mask = padded(batch.mask, width, fill=0)[0]
    if variant.name != "padded":
        variant.agrees(mask, "attention_mask")
        return
    n_text = params["text_tokens"]
    assert row.ids[n_text:] == (END,)
    variant.deviates(mask, "attention_mask", by=0.5)
    mask[n_text] = 0
    variant.agrees(mask, "attention_mask")


def open_unlearning_rows(variant: Variant, tokenizer: Any) -> list[TokenRow]:
    params = variant.params
    template = (
        f"{params['user_start_tag']}{{prompt}}{params['user_end_tag']}{params['asst_start_tag']}"
    )
    pairs = zip(params["questions"], params["answers"], strict=True)
    return [
        tokenise(
            Row(question, answer),
            tokenizer,
            max_tokens=params["max_length"],
            where="forget",
            prompting=Prompting(plain_template=template),
        )
        for question, answer in pairs
    ]


def without_spaces(labels_BT: Tensor, rows: Sequence[TokenRow]) -> Tensor:
    """The labels if the template's last space belonged to the context."""
    labels_BT = labels_BT.clone()
    for i, row in enumerate(rows):
        assert row.ids[row.n_context] == ord(" ")
        labels_BT[i, row.n_context] = IGNORED
    return labels_BT


@variants("ou_label_format")
def test_golden_question_and_answer_of_open_unlearning(variant: Variant, tokenizer: Any) -> None:
    """Same tokens. On purpose, three things differ.

    The space before the answer counts with it; the last end of text is attended to; a row that is cut
    neither grows by an end of text nor ends in one.
    """
    rows = open_unlearning_rows(variant, tokenizer)
    batch = collate(rows, torch.device("cpu"))
    expected_ids = variant.tensor(variant.expected["input_ids"])
    expected_labels = variant.tensor(variant.expected["labels"])
    if variant.name == "generate_left":
        prompts = [ids[ids != END].tolist() for ids in expected_ids]
        for row, prompt, conversation in zip(rows, prompts, expected_labels, strict=True):
            assert [*row.ids[: row.n_context], ord(" ")] == prompt
            variant.agrees_with(row.ids, conversation[conversation != IGNORED].numpy(), "labels")
        return
    limit = variant.params["max_length"]
    width = expected_ids.shape[1]
    ours = padded(batch.ids.masked_fill(batch.mask == 0, END), width, fill=END)
    labels = padded(batch.labels, width, fill=IGNORED)
    mask = padded(batch.mask, width, fill=0)
    variant.agrees(ours, "input_ids")
    variant.deviates(labels, "labels", by=0.5)
    labels = without_spaces(labels, rows)
    if variant.name == "train_truncated":
        assert width == limit + 1
        assert all(len(row.ids) == limit for row in rows)
        variant.deviates(labels, "labels", by=0.5)
        labels[:, limit] = END
        variant.agrees(mask, "attention_mask")
    else:
        variant.deviates(mask, "attention_mask", by=0.5)
        variant.agrees(mask * (ours != END), "attention_mask")
    variant.agrees(labels, "labels")


@variants("yao_random_labels")
def test_golden_chunks_and_labels_of_yao_et_al(variant: Variant, tokenizer: Any) -> None:
    """Same chunks. On purpose: special tokens get a random label too; with theirs kept, the same labels.

    On purpose, too: a document of under 5 tokens is kept, for it needs no chunks; they drop it.
    """
    params = variant.params
    flat = variant.tensor(variant.inputs["documents_flat"]).tolist()
    offsets = variant.tensor(variant.inputs["document_offsets"]).tolist()
    chunked = {**SOURCE, "overlong": "chunk", "max_tokens": params["max_length"]}
    config = DataConfig.model_validate(
        dict.fromkeys(("forget", "retain", "approximate", "general"), chunked)
    )
    kept = [
        piece
        for start, end in pairwise(offsets)
        for piece in tokenise_row(
            Row(None, "", token_ids=tuple(flat[start:end])),
            tokenizer,
            config=config,
            role="forget",
            vocabulary=params["vocab"],
        ).pieces
    ]
    rows = [piece for piece in kept if len(piece.ids) >= SHORTEST_CHUNK]
    n_short = sum(end - start < SHORTEST_CHUNK for start, end in pairwise(offsets))
    assert len(kept) - len(rows) == n_short
    batch, width, pad = collate(rows, torch.device("cpu")), params["max_length"], params["pad_id"]
    variant.agrees(
        padded(batch.ids.masked_fill(batch.mask == 0, pad), width, fill=pad), "input_ids"
    )
    variant.agrees(padded(batch.mask, width, fill=0), "attention_mask")
    if not params["random_label"]:
        variant.agrees(padded(batch.labels, width, fill=IGNORED), "labels")
        return
    seed, vocabulary = seed_of(variant), params["vocab"]
    drawn = random_labels(batch.labels, vocabulary=vocabulary, seed=seed)
    variant.deviates(padded(drawn, width, fill=IGNORED), "labels", by=0.5)
    special = torch.isin(
        batch.ids, torch.tensor([params[k] for k in ("eos_id", "bos_id", "unk_id")])
    )
    plain = random_labels(
        batch.labels.masked_fill(special, IGNORED), vocabulary=vocabulary, seed=seed
    )
    theirs = torch.where(special & (batch.mask == 1), batch.ids, plain)
    theirs[theirs == pad] = IGNORED
    variant.agrees(padded(theirs, width, fill=IGNORED), "labels")


def seed_of(variant: Variant) -> int:
    [found] = [v for v in variant.case.manifest["variants"] if v["name"] == variant.name]
    return int(found["seed"])


def test_the_cases_use_bytes_as_tokens(tokenizer: Any) -> None:
    text = "Question: Who wrote it?\nAnswer: Ada."
    assert tokenizer(text)["input_ids"] == np.frombuffer(text.encode(), dtype=np.uint8).tolist()
