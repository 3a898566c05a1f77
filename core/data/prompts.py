"""How a prompt and its answer become token ids: in a plain wording, or with the tokenizer's chat template."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from core.config.prompting import Prompting
from core.errors import DataError, foreign, in_a_line

CHAT_DATE = "10 Apr 2025"
"""What templates that name today's date are given, so that rows are the same every day; open-unlearning's choice."""

_CHAT_DAY = {
    **{"%Y": "2025", "%y": "25", "%m": "04", "%-m": "4", "%B": "April", "%b": "Apr"},
    **{"%d": "10", "%-d": "10", "%e": "10", "%j": "100", "%A": "Thursday", "%a": "Thu"},
    **{"%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM"},
}
_SAME_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{text}')" for code, text in _CHAT_DAY.items())
    + " }}{% endmacro %}"
)
"""In place of the function by which a template asks for today: transformers hands no function on to it."""

_MARK = "\ue000"
"""A character that no text has, in an answer's place."""

Messages = Sequence[Mapping[str, str]]


def prompt_and_answer(
    prompt: str,
    answer: str,
    tokenizer: Any,
    *,
    prompting: Prompting,
    where: str,
    before: Sequence[tuple[str, str]] = (),
) -> tuple[list[int], int]:
    """Token ids of a prompt followed by its answer, and how many of them are context.

    Plain, or a family's wording: the prompt in the template, the answer, the end of text. Spaces at the end of
    the template are tokenised with the answer and count, because a leading space is part of a word in most
    vocabularies; so the context never ends in a lone space, which is a token that such a model has hardly
    seen there. Chat: the prompt is one user message, after the system prompt if there is one; context is the
    generation prompt, and what the template puts before every answer, such as an empty think block; what
    counts is the answer and what the template puts after it, the end of the turn included.

    What was said before the prompt is context. In the chat template these are messages of their own, and a
    system message among them stands in place of the system prompt; a plain wording has each on a line of its
    own before the prompt.

    Args:
        prompt: What is read.
        answer: What is predicted and counts.
        tokenizer: A tokenizer of transformers, with a chat template or without.
        prompting: The wording.
        where: Place of the row, for messages.
        before: Role and content of earlier messages of a conversation.

    Returns:
        The ids, special tokens included, and the number of first ids that are context.

    Raises:
        DataError: If the chat template is asked for and the tokenizer has none, the template refuses the
            messages, or the conversation does not begin with the prompt's ids.

    References:
        open-unlearning, ``src/data/utils.py:preprocess_chat_instance``. Deviations: it leaves the template's
        last space in the context, counts a think block, and adds the end of text after a conversation that
        lacks it.
    """
    if uses_chat_template(prompting, tokenizer):
        earlier = [{"role": role, "content": content} for role, content in before]
        return _chat(prompt, answer, tokenizer, prompting.system_prompt, where, earlier)
    for field, asks in (
        ("prompt_format: chat", prompting.prompt_format == "chat"),
        ("system_prompt:", prompting.system_prompt is not None),
    ):
        if asks:
            raise DataError(
                f"data.{field} needs a tokenizer with a chat template, this one has none ({where}); "
                "use plain and plain_template, or a family's wording"
            )
    spoken = "\n".join([*(content for _, content in before), prompt])
    return _plain(spoken, answer, tokenizer, prompting.template)


def uses_chat_template(prompting: Prompting, tokenizer: Any) -> bool:
    """Whether prompts are written with the tokenizer's chat template."""
    has_template = getattr(tokenizer, "chat_template", None) is not None
    return has_template and prompting.prompt_format in ("auto", "chat")


def asked(prompt: str, tokenizer: Any, prompting: Prompting) -> str | None:
    """The text before an answer as it is written, without last spaces; nothing if the chat template refuses."""
    if not uses_chat_template(prompting, tokenizer):
        return _head(prompting.template).replace("{prompt}", prompt)
    from jinja2 import TemplateError

    messages = _asking(prompt, prompting.system_prompt)
    try:
        head = _rendered(messages, tokenizer, is_open=True)
        return head + _preface(messages, tokenizer, head)
    except TemplateError:
        return None


class UnreadError(DataError):
    """A tokenizer refuses a text; the message names the text, and whoever knows its place adds it."""


def encoded(text: str, tokenizer: Any, *, special: bool = True) -> list[int]:
    """Token ids of a text; the one place where a tokenizer is asked for those of rows.

    Args:
        text: The text.
        tokenizer: A tokenizer of transformers.
        special: With what the tokenizer puts before and after every text.

    Raises:
        UnreadError: If the tokenizer raises anything, as one without a token for what is unknown does.
    """
    with foreign(partial(_refused, text, tokenizer)):
        ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def _refused(text: str, tokenizer: Any, err: Exception) -> UnreadError:
    return UnreadError(
        f"the tokenizer {type(tokenizer).__name__} refuses the text {text[:60]!r}: {in_a_line(err)}; change the "
        "text, or the tokenizer beside the model"
    )


def opening(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text that others follow: with what the tokenizer puts before a text, not after it."""
    ids = encoded(text, tokenizer)
    return ids[: len(ids) - _n_put_after(tokenizer)]


def continuation(text: str, tokenizer: Any, *, after: str | None = None) -> list[int]:
    """Token ids of text that follows others, and the end of text if the tokenizer has one.

    They are those that the text has where both are tokenised as one; where that joins tokens over the
    boundary, or what comes before is unknown, those of the text alone, without the word boundary that some
    tokenizers put before every text (``▁`` of Llama-2).

    Args:
        text: What follows.
        tokenizer: A tokenizer of transformers.
        after: The text before it, if known.
    """
    ids = None if after is None else _added(after, text, lambda t: opening(t, tokenizer))
    if ids is None:
        ids = _added("\n", text, lambda t: _alone(t, tokenizer))
    if ids is None:
        ids = _alone(text, tokenizer)
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def _added(before: str, text: str, encode: Callable[[str], list[int]]) -> list[int] | None:
    """What ``text`` adds to the ids of ``before``; nothing if it changes them."""
    context, both = encode(before), encode(before + text)
    return both[len(context) :] if both[: len(context)] == context else None


def _alone(text: str, tokenizer: Any) -> list[int]:
    return encoded(text, tokenizer, special=False)


def _n_put_after(tokenizer: Any) -> int:
    """Special tokens that the tokenizer puts after every text, such as the end of text."""
    bare, whole = _alone("a", tokenizer), encoded("a", tokenizer)
    starts = range(len(whole) - len(bare) + 1)
    found = [start for start in starts if whole[start : start + len(bare)] == bare]
    return len(whole) - len(bare) - found[0] if found else 0


def _plain(prompt: str, answer: str, tokenizer: Any, template: str) -> tuple[list[int], int]:
    head = _head(template)
    gap = template[len(head) :]
    before = head.replace("{prompt}", prompt)
    context = opening(before, tokenizer)
    return context + continuation(gap + answer, tokenizer, after=before), len(context)


def _chat(
    prompt: str,
    answer: str,
    tokenizer: Any,
    system: str | None,
    where: str,
    before: Messages,
) -> tuple[list[int], int]:
    from jinja2 import TemplateError  # the template language of transformers

    messages = _asking(prompt, system, before)
    has_system = messages[0]["role"] == "system"
    try:
        head = _rendered(messages, tokenizer, is_open=True)
        text = _rendered([*messages, _said(answer)], tokenizer)
        preface = _preface(messages, tokenizer, head)
    except TemplateError as err:
        roles = "a system, a user" if has_system else "a user"
        raise DataError(
            f"data.prompt_format: the chat template refuses {roles} and an assistant message ({where}): "
            f"{err}; " + ("use plain" if system is None else "remove data.system_prompt")
        ) from err
    context, ids = _alone(head, tokenizer), _alone(text, tokenizer)
    longer = _alone(head + preface, tokenizer)
    if ids[: len(longer)] == longer:  # also where the block goes on in the last token of the prompt
        return ids, len(longer)
    if ids[: len(context)] != context:
        shared = next(
            (i for i, (a, b) in enumerate(zip(context, ids, strict=False)) if a != b),
            min(len(context), len(ids)),
        )
        raise DataError(
            f"data.prompt_format: the chat template's conversation must begin with its generation prompt, "
            f"but only {shared} of {len(context)} token ids agree ({where}); use plain"
        )
    return ids, len(context)


def _head(template: str) -> str:
    return template.rstrip(" ")


def _asking(prompt: str, system: str | None, before: Messages = ()) -> Messages:
    has_own = bool(before) and before[0]["role"] == "system"
    first = [] if system is None or has_own else [{"role": "system", "content": system}]
    return [*first, *before, {"role": "user", "content": prompt}]


def _preface(messages: Messages, tokenizer: Any, head: str) -> str:
    """What the template puts between its generation prompt and any answer, without last spaces."""
    text = _rendered([*messages, _said(_MARK)], tokenizer)
    return text[len(head) :].partition(_MARK)[0].rstrip(" ") if text.startswith(head) else ""


def _said(answer: str) -> Mapping[str, str]:
    return {"role": "assistant", "content": answer}


def _rendered(messages: Messages, tokenizer: Any, *, is_open: bool = False) -> str:
    from jinja2 import TemplateError

    def refused(err: Exception) -> Exception:
        return err if isinstance(err, TemplateError) else TemplateError(in_a_line(err))

    with foreign(refused):  # a template calls what it likes, such as methods of text
        template: str = tokenizer.get_chat_template()
        text: str = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=is_open,
            tokenize=False,
            date_string=CHAT_DATE,
            chat_template=_SAME_DAY + template if "strftime_now" in template else None,
        )
    return text
