"""How a prompt is written before its answer: named wordings, a template of one's own, a system prompt."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from core.config.section import Section

Preset = Literal["phi", "stablelm", "pythia", "llama2", "llama2-base"]
PromptFormat = Literal["auto", "plain", "chat", Preset]

_QUESTION_ANSWER = "Question: {prompt}\nAnswer: "

PRESETS: Mapping[str, str] = {
    "phi": _QUESTION_ANSWER,
    "stablelm": _QUESTION_ANSWER,
    "pythia": _QUESTION_ANSWER,
    "llama2": "[INST] {prompt} [/INST]",
    "llama2-base": _QUESTION_ANSWER,
}
"""What stands before the answer, as the published models of a family were taught.

References:
    locuslab/tofu, ``config/model_config.yaml`` (``question_start_tag``, ``question_end_tag``, ``answer_tag``):
    ``phi`` (Phi-1.5), ``stablelm``, ``pythia``, ``llama2`` (Llama-2 chat). locuslab/open-unlearning,
    ``configs/model``: ``Llama-2-7b-chat-hf.yaml`` is ``llama2``, ``Llama-2-7b-hf.yaml`` is ``llama2-base``, also
    in MUSE's questions.
"""

PLAIN_TEMPLATE = "{prompt} "
"""The plain format where nothing is said."""


class Prompting(Section):
    """How a prompt and its answer are written."""

    prompt_format: PromptFormat = "auto"
    """``chat``: with the tokenizer's chat template. ``plain``: in ``plain_template``. ``auto``: the chat template
    where the tokenizer has one, else plain. Or a family's published wording: ``phi``, ``stablelm``, ``pythia``
    and ``llama2-base`` (a question and ``Answer:``), ``llama2`` (``[INST]``)."""
    plain_template: Annotated[str, Field(pattern=r"\{prompt\}")] = PLAIN_TEMPLATE
    """What stands before the answer in the ``plain`` format; ``{prompt}`` is replaced."""
    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """System message before the prompt, in the chat template; the template's own default if absent."""

    @model_validator(mode="after")
    def _one_wording(self) -> Self:
        problems = []
        if self.prompt_format in PRESETS and self.plain_template != PLAIN_TEMPLATE:
            problems.append(
                f"plain_template: prompt_format={self.prompt_format} has a wording of its own, got "
                f"{self.plain_template!r}; remove it, or use prompt_format: plain"
            )
        if self.system_prompt is not None and self.prompt_format not in ("auto", "chat"):
            problems.append(
                "system_prompt: is a message of the chat template, got prompt_format="
                f"{self.prompt_format}; use chat, or write it into plain_template"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def template(self) -> str:
        """What is written before an answer where the chat template does not write it."""
        return PRESETS.get(self.prompt_format, self.plain_template)
