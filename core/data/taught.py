"""Whether a model is asked in the wording that it was taught, as far as one can tell."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.config.prompting import PLAIN_TEMPLATE, Prompting
from core.data.prompts import asked, uses_chat_template
from core.data.tokens import TokenRow
from core.errors import DataError, FileError, in_a_line
from core.store.durable import commit_json
from core.store.texts import read_json

_RECORD = "prompting.json"
_PROBE = "PROMPT"


def record_wording(prompting: Prompting, folder: Path) -> None:
    """Write beside a model that was taught answers how their prompts were written."""
    fields = Prompting.model_fields
    commit_json(folder / _RECORD, prompting.model_dump(mode="json", include=set(fields)))


def wording_notice(
    prompting: Prompting,
    tokenizer: Any,
    rows: Iterable[TokenRow],
    *,
    source: str,
    location: str,
) -> str | None:
    """What a person should know whose model is asked in another wording than it was taught; else nothing.

    A prepared model's folder says what it was taught. Any other model with a chat template was taught that,
    as far as one can tell; a wording that occurs in what the template writes (``[INST]`` of Llama-2's) is no
    other one. Of a model without either nothing is known; that it is asked in a wording which nobody chose is spoken
    of. Rows without prompts are asked in no wording.

    Args:
        prompting: How it is asked.
        tokenizer: Its tokenizer.
        rows: What it is asked.
        source: The model as the user names it.
        location: Its folder or hub id.
    """
    if not any(row.n_context for row in rows):
        return None
    record = Path(location) / _RECORD
    now = asked(_PROBE, tokenizer, prompting)
    if record.is_file():
        taught = asked(_PROBE, tokenizer, _read(record))
        return None if now == taught else _notice(source, f"was taught prompts as {taught!r}", now)
    if getattr(tokenizer, "chat_template", None) is None:
        is_unchosen = prompting.prompt_format == "auto" and prompting.template == PLAIN_TEMPLATE
        return _unchosen(source, now) if is_unchosen else None
    if uses_chat_template(prompting, tokenizer):
        return None
    taught, words = asked(_PROBE, tokenizer, Prompting()), str(now).strip()
    is_template_s = taught is None or (words in taught and words != _PROBE)
    return None if is_template_s else _notice(source, "has a chat template", now)


def _unchosen(source: str, now: str | None) -> str:
    return (
        f"data.prompt_format: the tokenizer of {source} has no chat template, so auto asks it as {now!r}, followed by "
        "a space and the answer; if it was taught another wording, write that as plain_template, or take a family's by "
        "prompt_format; if it was taught this one, say so with prompt_format: plain"
    )


def _read(path: Path) -> Prompting:
    try:
        return Prompting.model_validate(read_json(path))
    except (FileError, ValidationError) as err:
        problem = f"does not say how prompts were written ({in_a_line(err)})"
        raise DataError(f"{path}: {problem}; remove it, or prepare the model again") from err


def _notice(source: str, what: str, now: str | None) -> str:
    return (
        f"data.prompt_format: {source} {what}, and is asked as {now!r}; a model that is asked in another wording "
        "than it was taught seems to have half forgotten its answers: unless it was taught this one, "
        "set prompt_format, plain_template and system_prompt as it was taught"
    )
