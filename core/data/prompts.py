"""How a prompt and its answer become token ids: plain, or with the tokenizer's chat template."""

from typing import Any, Literal

from core.errors import DataError

PromptFormat = Literal["auto", "plain", "chat"]


def prompt_and_answer(
    prompt: str,
    answer: str,
    tokenizer: Any,
    *,
    prompt_format: PromptFormat,
    plain_template: str,
    where: str,
) -> tuple[list[int], int]:
    """Token ids of a prompt followed by its answer, and how many of them are context.

    Plain: the prompt in ``plain_template``, the answer, the end of text. Spaces at the end of the
    template are tokenised with the answer and count, because a leading space is part of a word in most
    vocabularies; so the context never ends in a lone space, which is a token that such a model has hardly
    seen there. Chat: the prompt is one user message, and the answer is all that the template
    adds to the generation prompt when the reply stands there, the end of the turn included.

    Args:
        prompt: What is read.
        answer: What is predicted and counts.
        tokenizer: A tokenizer of transformers, with a chat template or without.
        prompt_format: ``chat`` for the tokenizer's template, ``plain``, or ``auto``: the template where there is one.
        plain_template: What stands before the answer in the plain format; ``{prompt}`` is replaced.
        where: Place of the row, for messages.

    Returns:
        The ids, special tokens included, and the number of first ids that are context.

    Raises:
        DataError: If ``chat`` is asked for and the tokenizer has no template, the template refuses the
            messages, or the conversation does not begin with the prompt's ids.

    References:
        open-unlearning, ``src/data/utils.py:preprocess_chat_instance``. Deviations: it leaves the template's
        last space in the context, and adds the end of text after a conversation that lacks it.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if prompt_format == "chat" and not has_template:
        raise DataError(
            f"data.prompt_format: chat needs a tokenizer with a chat template, this one has none ({where}); "
            "use plain or auto"
        )
    if prompt_format == "plain" or not has_template:
        return _plain(prompt, answer, tokenizer, plain_template)
    return _chat(prompt, answer, tokenizer, where)


CHAT_DATE = "10 Apr 2025"
"""What templates that name today's date are given, so that rows are the same every day; open-unlearning's choice."""


def _plain(prompt: str, answer: str, tokenizer: Any, template: str) -> tuple[list[int], int]:
    head = template.rstrip(" ")
    gap = template[len(head) :]
    context = tokenizer(head.replace("{prompt}", prompt))["input_ids"]
    return context + continuation(gap + answer, tokenizer), len(context)


def _chat(prompt: str, answer: str, tokenizer: Any, where: str) -> tuple[list[int], int]:
    from jinja2 import TemplateError  # the template language of transformers

    asked = [{"role": "user", "content": prompt}]
    answered = [*asked, {"role": "assistant", "content": answer}]
    try:
        context = tokenizer.apply_chat_template(
            asked,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            date_string=CHAT_DATE,
        )
        ids = tokenizer.apply_chat_template(
            answered,
            add_generation_prompt=False,
            tokenize=True,
            return_dict=False,
            date_string=CHAT_DATE,
        )
    except TemplateError as err:
        raise DataError(
            f"data.prompt_format: the chat template refuses a user and an assistant message ({where}): "
            f"{err}; use plain"
        ) from err
    if ids[: len(context)] != context:
        shared = next(
            (i for i, (a, b) in enumerate(zip(context, ids, strict=False)) if a != b),
            min(len(context), len(ids)),
        )
        raise DataError(
            f"data.prompt_format: the chat template's conversation must begin with its generation prompt, "
            f"but only {shared} of {len(context)} token ids agree ({where}); use plain"
        )
    return list(ids), len(context)


def continuation(text: str, tokenizer: Any) -> list[int]:
    """Token ids of text that follows others, and the end of text if the tokenizer has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
