"""What a sweep file says of the evaluation of its finalists."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from core.config.section import Section

SuiteName = Literal[
    "probes",
    "memorization",
    "mia",
    "tofu",
    "utility",
    "muse",
    "wmdp",
    "mmlu",
    "fluency",
    "relearning",
    "quantisation",
    "paraphrase",
]


class EvaluationLimit(Section):
    """A limit on a metric of ``evaluate``, which finalists must keep."""

    metric: Annotated[str, Field(pattern=r"^[a-z]+\.[^.\s]\S*$")]
    """``SUITE.METRIC``, as ``evaluate`` names them; such as ``mia.auc_min_k``."""
    at_most: float | None = None
    """Largest allowed value."""
    at_least: float | None = None
    """Smallest allowed value; one of the two is given."""

    @model_validator(mode="after")
    def _one_limit_of_a_known_suite(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            given = "neither" if self.at_most is None else "both"
            raise ValueError(f"{self.metric} needs one of at_most and at_least, got {given}")
        if self.suite not in SuiteName.__args__:  # type: ignore[attr-defined]
            known = ", ".join(SuiteName.__args__)  # type: ignore[attr-defined]
            raise ValueError(
                f"metric: begins with the name of a suite ({known}), got {self.suite!r}"
            )
        return self

    @property
    def suite(self) -> str:
        """The suite that measures it."""
        return self.metric.partition(".")[0]

    @property
    def words(self) -> str:
        """The limit in words."""
        return (
            f"at most {self.at_most:g}"
            if self.at_most is not None
            else f"at least {self.at_least:g}"
        )

    def violation(self, value: float) -> float:
        """How far a value lies beyond the limit; negative inside, NaN of NaN."""
        if self.at_most is not None:
            return value - self.at_most
        assert self.at_least is not None
        return self.at_least - value


class EvaluationSpec(Section):
    """Suites of ``evaluate`` for finalists, beside the reporting split; the untouched model is evaluated first."""

    suites: tuple[SuiteName, ...] = ()
    """Suites of ``evaluate``, on the sweep's data; those that ``constraints`` name are added."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """First rows of each role that are used; all if null."""
    constraints: tuple[EvaluationLimit, ...] = ()
    """Limits: a finalist that breaks one stands behind those that keep all."""

    @property
    def all_suites(self) -> tuple[str, ...]:
        """Suites to run, each once."""
        return tuple(dict.fromkeys([*self.suites, *(c.suite for c in self.constraints)]))
