"""Files in the forms that people have them in, and what is read of each: the table of ``docs/reference/data.md``."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow
import pyarrow.parquet

from core.data.rows import Row


@dataclass(frozen=True, kw_only=True)
class Form:
    """One file.

    Attributes:
        title: What it is.
        name: Of the file.
        content: Its bytes.
        rows: What is read of it without any ``fields``; ``None`` if it is refused.
        message: A pattern of the refusal.
        outcome: What the page says of it.
    """

    title: str
    name: str
    content: bytes
    rows: Sequence[Row] | None
    message: str = ""
    outcome: str = "read"

    @property
    def line(self) -> str:
        """Its line in the page's table."""
        return f"| {self.title} | `{self.name}` | {self.outcome} |"


_PAIRS = [{"question": "who?", "answer": "me"}, {"question": "where?", "answer": "here, é的"}]
_ROWS = (Row("who?", "me"), Row("where?", "here, é的"))
_TEXTS = (Row(None, "one"), Row(None, "two"))
_LINES = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in _PAIRS)
_CSV = 'question,answer\r\nwho?,me\r\nwhere?,"here, é的"\r\n'
_SPOKEN = [[("user", p["question"]), ("assistant", p["answer"])] for p in _PAIRS]


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_PAIRS), buffer)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[1, 2, 3], [4, 5, 6]]))
    return buffer.getvalue()


def _json_lines(records: Sequence[object]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


FORMS: Sequence[Form] = (
    Form(title="an object a line", name="a.jsonl", content=_LINES.encode(), rows=_ROWS),
    Form(title="the same, another ending", name="a.ndjson", content=_LINES.encode(), rows=_ROWS),
    Form(title="the same in a `.json`", name="a.json", content=_LINES.encode(), rows=_ROWS),
    Form(
        title="an array",
        name="array.json",
        content=json.dumps(_PAIRS, indent=1).encode(),
        rows=_ROWS,
    ),
    Form(
        title="an array in a `.jsonl`",
        name="array.jsonl",
        content=json.dumps(_PAIRS).encode(),
        rows=_ROWS,
    ),
    Form(
        title="an object with one list of rows",
        name="wrapped.json",
        content=json.dumps({"version": 1, "data": _PAIRS}, indent=1).encode(),
        rows=_ROWS,
    ),
    Form(
        title="an object with two lists of rows",
        name="splits.json",
        content=json.dumps({"train": _PAIRS, "test": _PAIRS}, indent=1).encode(),
        rows=None,
        message="holds 2 lists of rows, 'train', 'test'; write each to a file of its own",
        outcome="refused: which?",
    ),
    Form(title="CSV", name="a.csv", content=_CSV.encode(), rows=_ROWS),
    Form(
        title="CSV with semicolons",
        name="semicolons.csv",
        content=b"question;answer\nwho?;me\nwhere?;here, \xc3\xa9\xe7\x9a\x84\n",
        rows=_ROWS,
    ),
    Form(
        title="tabs",
        name="a.tsv",
        content=_CSV.replace(",", "\t", 3).replace('"', "").encode(),
        rows=_ROWS,
    ),
    Form(
        title="CSV with a row of too many cells",
        name="cells.csv",
        content=b"question,answer\nwho?,me, myself\n",
        rows=None,
        message=r"cells\.csv:2: 3 cells under a header of 2; put a cell that holds ',' ",
        outcome="refused, with the line",
    ),
    Form(title="Parquet", name="a.parquet", content=_parquet(), rows=_ROWS),
    Form(
        title="packed with gzip",
        name="a.jsonl.gz",
        content=gzip.compress(_LINES.encode()),
        rows=_ROWS,
    ),
    Form(
        title="packed without saying so",
        name="b.csv",
        content=gzip.compress(_CSV.encode()),
        rows=_ROWS,
    ),
    Form(title="capital endings", name="A.JSONL", content=_LINES.encode(), rows=_ROWS),
    Form(
        title="a byte order mark",
        name="bom.csv",
        content=b"\xef\xbb\xbf" + _CSV.encode(),
        rows=_ROWS,
    ),
    Form(
        title="line ends of Windows",
        name="windows.jsonl",
        content=_LINES.replace("\n", "\r\n").encode(),
        rows=_ROWS,
    ),
    Form(
        title="UTF-16",
        name="utf16.jsonl",
        content=_LINES.encode("utf-16"),
        rows=None,
        message=r"utf16\.jsonl:1: is not UTF-8 but UTF-16; convert it with `iconv -f UTF-16 -t UTF-8",
        outcome="refused, with the line and what to do",
    ),
    Form(
        title="Latin-1",
        name="latin1.csv",
        content="question,answer\nwho?,é\n".encode("latin-1"),
        rows=None,
        message=r"latin1\.csv:2: is not UTF-8, got the byte 0xe9; from Latin-1 or Windows convert",
        outcome="refused, with the line and what to do",
    ),
    Form(
        title="plain text",
        name="a.txt",
        content=b"one\n\n \ntwo\n",
        rows=_TEXTS,
        outcome="read, a paragraph a row",
    ),
    Form(
        title="token ids",
        name="a.npy",
        content=_npy(),
        rows=(Row(None, "", token_ids=(1, 2, 3)), Row(None, "", token_ids=(4, 5, 6))),
    ),
    Form(
        title="chat messages",
        name="messages.jsonl",
        content=_json_lines(
            [{"messages": [{"role": r, "content": c} for r, c in said]} for said in _SPOKEN]
        ),
        rows=_ROWS,
    ),
    Form(
        title="chat messages of parts",
        name="parts.jsonl",
        content=_json_lines(
            [
                {"messages": [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in s]}
                for s in _SPOKEN
            ]
        ),
        rows=_ROWS,
    ),
    Form(
        title="conversations of ShareGPT",
        name="sharegpt.json",
        content=json.dumps(
            [
                {
                    "conversations": [
                        {"from": {"user": "human", "assistant": "gpt"}[r], "value": c}
                        for r, c in said
                    ]
                }
                for said in _SPOKEN
            ]
        ).encode(),
        rows=_ROWS,
    ),
    Form(
        title="instructions of Alpaca",
        name="alpaca.json",
        content=json.dumps(
            [
                {"instruction": "who?", "input": "", "output": "me"},
                {"instruction": "where?", "input": "Look!", "output": "here"},
            ]
        ).encode(),
        rows=(Row("who?", "me"), Row("where?\nLook!", "here")),
    ),
    Form(
        title="multiple choice, as MMLU's",
        name="choices.jsonl",
        content=_json_lines([{"question": "who?", "choices": ["you", "me"], "answer": 1}]),
        rows=(Row("who?\nA. you\nB. me\nAnswer:", "B. me"),),
    ),
    Form(
        title="blank rows between others",
        name="blank.jsonl",
        content=_json_lines([{"text": t} for t in ("", "one", " \n", None, "two")]),
        rows=_TEXTS,
        outcome="read; blank rows are left out and counted",
    ),
    Form(
        title="an answer that is a number",
        name="number.jsonl",
        content=_json_lines([{"question": "how many?", "answer": 4}]),
        rows=None,
        message=r"number\.jsonl row 1: field 'answer' must be text, got 4",
        outcome="refused, with the row",
    ),
    Form(
        title="half a pair of surrogates",
        name="surrogate.jsonl",
        content=b'{"text": "\\ud83d"}\n',
        rows=None,
        message=r"surrogate\.jsonl:1: holds half of a character, .ud83d",
        outcome="refused, with the line",
    ),
    Form(
        title="nothing but null",
        name="null.json",
        content=b"null\n",
        rows=None,
        message=r"null\.json: an object or a list of objects is expected, got NoneType",
        outcome="refused",
    ),
    Form(
        title="a pointer of Git LFS",
        name="pointer.csv",
        content=b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
        rows=None,
        message=r"pointer\.csv:1: is a pointer of Git LFS, not the file; run `git lfs pull`",
        outcome="refused, with what to do",
    ),
    Form(
        title="lists nested without end",
        name="deep.jsonl",
        content=b"[" * 100_000,
        rows=None,
        message=r"deep\.jsonl:1: not JSON that can be read: nested too deeply",
        outcome="refused, with the line",
    ),
    Form(
        title="a broken line",
        name="broken.jsonl",
        content=b'{"text": "one"}\n{"text": \n',
        rows=None,
        message=r"broken\.jsonl:2: not JSON",
        outcome="refused, with the line",
    ),
    Form(
        title="no row at all",
        name="empty.csv",
        content=b"",
        rows=None,
        message="holds no row",
        outcome="refused",
    ),
)
