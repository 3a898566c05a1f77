"""What a finished model is evaluated on: which roles there are, and their sources."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from core.config.data import SourceConfig
from core.config.problems import describe_problems
from core.config.prompting import Prompting
from core.config.written_numbers import with_numbers
from core.errors import ConfigError


class EvaluationData(Prompting):
    """Sources by role; a suite says which it needs."""

    forget: SourceConfig | None = None
    """What is to be forgotten."""
    retain: SourceConfig | None = None
    """What is to stay."""
    holdout: SourceConfig | None = None
    """Text of the forget set's kind that no model saw."""
    general: SourceConfig | None = None
    """Ordinary text of other domains."""
    real_authors: SourceConfig | None = None
    """TOFU's questions about real authors, with wrong options."""
    world_facts: SourceConfig | None = None
    """TOFU's questions about the world, with wrong options."""
    verbatim: SourceConfig | None = None
    """MUSE: beginnings of forget texts and what follows; the forget set's halves if absent."""
    forget_qa: SourceConfig | None = None
    """MUSE: questions about the forget set."""
    retain_qa: SourceConfig | None = None
    """MUSE: questions about the retain set."""
    wmdp_bio: SourceConfig | None = None
    """WMDP: multiple-choice questions of biology."""
    wmdp_cyber: SourceConfig | None = None
    """WMDP: of cybersecurity."""
    wmdp_chem: SourceConfig | None = None
    """WMDP: of chemistry."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The roles that are there."""
        return {name: value for name, value in self if isinstance(value, SourceConfig)}


def parse_data(values: Mapping[str, Any], *, where: str) -> EvaluationData:
    """Build :class:`EvaluationData` from plain values.

    Args:
        values: A mapping of roles; or the ``data`` section of a sweep or trial file, whose approximate
            set serves as holdout set and whose splits have no meaning here.
        where: The file that the values come from, for the error message.

    Raises:
        ConfigError: With every problem at once.
    """
    renamed = {
        "holdout" if name == "approximate" and "holdout" not in values else name: value
        for name, value in values.items()
        if name not in ("probe_rows", "report_rows", "split_seed")
    }
    try:
        return EvaluationData.model_validate(with_numbers(renamed, EvaluationData))
    except ValidationError as err:
        raise ConfigError(where, describe_problems(err, EvaluationData)) from err
