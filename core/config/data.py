"""Where rows come from, how they are cut and split, and how prompts are written."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from core.config.problems import describe_problems
from core.config.prompting import Prompting
from core.config.section import Place, Positive, Section


class FieldNames(Section):
    """Which fields of a row hold its text: ``text``, or ``prompt`` and ``answer``, or ``messages``.

    Without any of them, the source's first row says it: ``text``; ``messages`` or ``conversations``; ``question``
    and ``answer``; ``instruction`` (with ``input``) and ``output``, or (with ``context``) ``response``; ``prompt``
    and ``answer``, ``completion``, ``response`` or ``gt``.
    """

    text: str | None = None
    """Field with a whole document; every token but the first is predicted and counts."""
    prompt: str | None = None
    """Field with the context of ``answer``; its tokens are read but do not count."""
    input: str | None = None
    """Field with more of the prompt, on a line of its own after it; a row may leave it blank."""
    answer: str | None = None
    """Field with the answer to ``prompt``; its tokens, and the end of text, count."""
    messages: str | None = None
    """Field with a conversation, a list of messages with ``role`` and ``content``, or ``from`` and ``value``; the
    last answer counts, and what was said before is its context."""
    alternative: str | None = None
    """Field with an alternative answer, for ``method.alternatives: field``."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        pair = (self.prompt is not None, self.answer is not None)
        shapes = (self.text is not None, any(pair), self.messages is not None)
        if any(pair) != all(pair) or sum(shapes) > 1 or (self.input is not None and not all(pair)):
            raise ValueError(
                "give either text, or both prompt and answer (and input, if there is one), or messages"
            )
        return self

    @property
    def is_given(self) -> bool:
        """Whether it says where the text is; otherwise the first row does."""
        return any(name is not None for name in (self.text, self.prompt, self.messages))


class RowShare(Section):
    """A share of a source's rows, drawn by seed: other shares of the same seed have other rows."""

    share: tuple[
        Annotated[float, Field(ge=0, le=1)],
        Annotated[float, Field(ge=0, le=1)],
    ]
    """From and to, as parts of 1: ``[0, 0.2]`` and ``[0.2, 1]`` are a fifth and the rest; ``0.2`` is ``[0, 0.2]``."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the draw; the same for all roles that share a source."""

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        share = value.get("share") if isinstance(value, Mapping) else None
        is_number = isinstance(share, int | float) and not isinstance(share, bool)
        return {**value, "share": (0, share)} if is_number else value

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        low, high = self.share
        if not low < high:
            raise ValueError(f"share: from < to must hold, got {[low, high]}")
        return self


def _range_or_share(value: Any) -> Any:
    """Problems at the field itself, instead of one for each form that it may have."""
    if value is None or isinstance(value, RowShare):
        return value
    if isinstance(value, Mapping):
        try:
            return RowShare.model_validate(value)
        except ValidationError as err:
            found = (line.rstrip(".") for line in describe_problems(err, RowShare))
            raise ValueError("; ".join(found)) from err
    match value:
        case [int(low), int() | None as high] if not any(isinstance(v, bool) for v in value):
            if low >= 0 and (high is None or low < high):
                return (low, high)
    raise ValueError(
        "must be [FROM, TO], the first row being 0 and TO left out of it or null for the end, or "
        "{share: [0, 0.2], seed: 0}"
    )


Rows = Annotated[tuple[int, int | None] | RowShare | None, BeforeValidator(_range_or_share)]


class SourceConfig(Section):
    """Where the rows of one role come from."""

    source: Place
    """``embedded:NAME``, ``authors:PART``, a benchmark by name (``tofu:forget10``, ``muse-news:forget``,
    ``wmdp:bio``, ``yao:arxiv-forget``), ``hub:ORG/NAME``, or a path to JSON (``.json``, ``.jsonl``, ``.ndjson``: an
    array, or an object a line), ``.csv``, ``.tsv``, ``.parquet``, ``.txt`` (a paragraph is a row) or ``.npy`` (rows of
    token ids); text may be packed (``.gz``)."""
    mirror: Place | None = None
    """Folder with a copy of the data set's repository, for machines without the hub."""
    split: str = "train"
    """Split of a hub data set; a benchmark's name says it already, and a file has none: see ``rows``."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    revision: str | None = None
    """Commit hash, tag or branch of a hub data set."""
    fields: FieldNames = FieldNames()
    """Fields that hold the text; the first row says it if absent."""
    rows: Rows = None
    """Which rows of the source, so that one file serves several roles: ``[0, 200]``, the first 200; ``[200, null]``,
    the others; or a share of all rows drawn by a seed, ``{share: [0, 0.2], seed: 0}``, in which equal rows stay
    together. All if absent."""
    n: Positive | None = None
    """Use at most this many of these rows, the first ones in the source's order that are not blank; all if absent."""
    max_tokens: Annotated[int, Field(ge=2, le=1_000_000)] = 256
    """Longer rows are cut after this many tokens, or into rows of this many."""
    overlong: Literal["cut", "chunk"] | None = None
    """``chunk``: a longer document becomes several rows (a last one under 5 tokens is dropped), as Yao et al. do;
    ``cut``: what follows is left out. If absent, ``chunk`` for the forget set, so that all of it is forgotten, and
    ``cut`` for the others. An answer belongs to its prompt: it is always cut."""

    def differs(self, field: str) -> bool:
        """Whether a field has another value than it has if it is absent."""
        return bool(getattr(self, field) != type(self).model_fields[field].default)

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
