"""Where rows come from, how they are cut and split, and how prompts are written."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from core.config.prompting import Prompting
from core.config.section import Positive, Section


class FieldNames(Section):
    """Which fields of a row hold its text: either ``text``, or ``prompt`` and ``answer``."""

    text: str | None = None
    """Field with a whole document; every token but the first is predicted and counts."""
    prompt: str | None = None
    """Field with the context of ``answer``; its tokens are read but do not count."""
    answer: str | None = None
    """Field with the answer to ``prompt``; its tokens, and the end of text, count."""
    alternative: str | None = None
    """Field with an alternative answer, for ``method.alternatives: field``."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        pair = (self.prompt is not None, self.answer is not None)
        if (self.text is not None) == all(pair) or any(pair) != all(pair):
            raise ValueError("give either text, or both prompt and answer")
        return self


class SourceConfig(Section):
    """Where the rows of one role come from."""

    source: Annotated[str, Field(min_length=1)]
    """``embedded:NAME``, ``authors:PART``, a benchmark by name (``tofu:forget10``, ``muse-news:forget``,
    ``wmdp:bio``, ``yao:arxiv-forget``), ``hub:ORG/NAME``, or a path to ``.jsonl``, ``.parquet``, ``.txt`` (a
    paragraph is a row) or ``.npy`` (rows of token ids)."""
    mirror: str | None = None
    """Folder with a copy of the data set's repository, for machines without the hub."""
    split: str = "train"
    """Split of a hub data set; a benchmark's name says it already."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    revision: str | None = None
    """Commit hash, tag or branch of a hub data set."""
    fields: FieldNames = FieldNames(text="text")
    """Fields that hold the text."""
    n: Positive | None = None
    """Use at most this many rows, the first ones in the file's order; all if absent."""
    max_tokens: Annotated[int, Field(ge=2, le=1_000_000)] = 256
    """Longer rows are cut after this many tokens, or into rows of this many."""
    overlong: Literal["cut", "chunk"] | None = None
    """``chunk``: a longer document becomes several rows (a last one under 5 tokens is dropped), as Yao et al. do;
    ``cut``: what follows is left out. If absent, ``chunk`` for the forget set, so that all of it is forgotten, and
    ``cut`` for the others. An answer belongs to its prompt: it is always cut."""

    def is_chunked(self, role: str) -> bool:
        """Whether long documents become several rows where this is the source of ``role``."""
        return (self.overlong or ("chunk" if role == "forget" else "cut")) == "chunk"


class PartRows(Section):
    """Rows of a part of the retain and of the general set; one number stands for both."""

    retain: Positive
    """Rows of the retain set's part."""
    general: Positive
    """Rows of the general set's part."""

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return {"retain": value, "general": value} if is_number else value


class DataConfig(Prompting):
    """Forget, retain, approximate and general sets, and how the held-out parts are cut."""

    forget: SourceConfig
    """What must go; trained on and judged whole."""
    retain: SourceConfig
    """Text of the same domain that must stay; split into train, probe and report parts."""
    approximate: SourceConfig | None = None
    """Text of the forget set's kind that the model never saw; its level is the target of forgetting. May be absent
    only where ``model.retain_only`` gives the target."""
    general: SourceConfig
    """Ordinary text of other domains; split into train, probe and report parts."""
    probe_rows: PartRows = PartRows(retain=32, general=32)
    """Rows of the probe parts of retain and general set, measured again and again during a trial: one number,
    or one for each of the two. The interval of a drop narrows with the square root of the rows; 48 are a good
    start, where the data have them.

    The approximate set is measured once, and whole.
    """
    report_rows: PartRows = PartRows(retain=64, general=64)
    """Rows of the report parts; neither losses nor probes see them, finalists are reported on them."""
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the splits; separate from the trial's seed, so that repeats over seeds share the splits."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The roles that are there, in a fixed order."""
        return {name: value for name, value in self if isinstance(value, SourceConfig)}


class PreparationData(Prompting):
    """What a prepared model is fine-tuned on."""

    forget: SourceConfig
    """Rows that only the target model sees."""
    retain: SourceConfig
    """Rows that target model and retain-only model see."""
