"""The guidelines as data: claim, source, sweeps, statistic and rule of each, read from YAML and checked."""

import inspect
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

import search_spaces
from core.config import describe_problems
from core.config.section import Positive, Section
from core.errors import ConfigError, UserError
from tuning.config import Reason
from tuning.files import read_yaml
from tuning.guidelines.inference import Region
from tuning.guidelines.published import Source
from tuning.guidelines.statistics import STATISTICS

FOLDER = Path(str(search_spaces.__file__)).parent / "guidelines"
PRESETS_FILE = "presets.yaml"

PresetName = Literal["quick", "gpu", "full"]
GuidelineId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Rule(Section):
    """What a claim says about one effect of its statistic; the mean over units must lie between the ends."""

    above: float | None = None
    """Lower end."""
    below: float | None = None
    """Upper end."""
    resolution: Annotated[float, Field(gt=0.0)]
    """How finely one unit's number is measured: scatter below this is not believed."""
    meaning: Reason
    """What the effect is, with its unit."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        low, high = self.region.low, self.region.high
        if self.above is None and self.below is None:
            raise ValueError("give above, below or both, got neither")
        if low >= high:
            raise ValueError(f"above must lie below below, got above={low:g} below={high:g}")
        return self

    @property
    def region(self) -> Region:
        """The same as numbers."""
        return Region(
            low=-math.inf if self.above is None else self.above,
            high=math.inf if self.below is None else self.below,
            resolution=self.resolution,
        )

    @property
    def words(self) -> str:
        """The rule in words."""
        ends = [("above", self.above), ("below", self.below)]
        return " and ".join(f"{name} {end:g}" for name, end in ends if end is not None)


class PresetUse(Section):
    """How a guideline is tested under a preset."""

    published: tuple[Source, ...] = ()
    """Published trials in place of sweeps."""
    base: str | None = None
    """Entry of ``presets.yaml`` that the sweeps stand on; the preset's own name if absent."""
    changes: dict[str, Any] = Field(default={})
    """Keys of a sweep file that replace those of all sweeps; null removes a key."""
    settings: dict[str, Any] = Field(default={})
    """Settings of the statistic that replace the guideline's."""


class Guideline(Section):
    """A tuning guideline, and how it is tested."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of this format."""
    number: Positive
    """Place in the list."""
    id: GuidelineId
    """Short name; the file's name without its number."""
    claim: Reason
    """What is claimed, in our words."""
    source: Reason
    """Who claims it, and where."""
    reads: Reason
    """What the test is, and what it is not: for people who would lean on its verdict."""
    statistic: str
    """Name of the statistic."""
    settings: dict[str, Any] = Field(default={})
    """Its settings."""
    verdict: Annotated[dict[str, Rule], Field(min_length=1)]
    """Rule for each effect of the statistic; the claim is supported if all hold."""
    shared: dict[str, Any] = Field(default={})
    """Keys of a sweep file that all sweeps of the guideline share."""
    sweeps: dict[str, dict[str, Any]] = Field(default={})
    """Sweeps by name: keys of a sweep file that are their own. Rates and seeds come from the preset."""
    presets: Annotated[dict[PresetName, PresetUse], Field(min_length=1)]
    """Presets under which it can be tested."""

    @field_validator("statistic")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in STATISTICS:
            raise ValueError(f"no such statistic; known: {', '.join(STATISTICS)}")
        return value

    @model_validator(mode="after")
    def _statistic_takes_the_settings(self) -> Self:
        for name in self.presets:
            try:
                signature = inspect.signature(STATISTICS[self.statistic])
                signature.bind({}, **self.settings_under(name))
            except TypeError as err:
                raise ValueError(
                    f"settings: {self.statistic} under preset {name}: {err}; change the settings"
                ) from err
        return self

    @model_validator(mode="after")
    def _has_evidence(self) -> Self:
        lacking = [name for name, use in self.presets.items() if not use.published]
        if lacking and not self.sweeps:
            raise ValueError(
                f"presets.{lacking[0]}: has neither published trials nor sweeps; give one of them"
            )
        return self

    def settings_under(self, preset: PresetName) -> dict[str, Any]:
        """Settings of the statistic under a preset."""
        return self.settings | self.presets[preset].settings

    def use(self, preset: PresetName) -> PresetUse:
        """How it is tested under a preset.

        Raises:
            UserError: If it cannot be.
        """
        if preset not in self.presets:
            raise UserError(
                f"--preset: {self.id} has no preset {preset}; it has {', '.join(self.presets)}"
            )
        return self.presets[preset]


class Base(Section):
    """What the sweeps of a preset stand on."""

    machine: Reason
    """What it is meant to run on."""
    minutes: Positive
    """What one guideline may take there, by intention."""
    seeds: Annotated[tuple[int, ...], Field(min_length=2)]
    """Seeds, the units that intervals are over."""
    rates: dict[Literal["lora", "full"], Annotated[tuple[float, ...], Field(min_length=2)]]
    """Learning rates by ``adapter.kind``."""
    sweep: dict[str, Any]
    """Keys of a sweep file that all sweeps share."""


@cache
def bases() -> dict[str, Base]:
    """What presets stand on, by name.

    Raises:
        ConfigError: With every problem at once.
    """
    path = FOLDER / PRESETS_FILE
    found = {}
    for name, values in read_yaml(path).items():
        try:
            found[name] = Base.model_validate(values)
        except ValidationError as err:
            raise ConfigError(f"{path}: {name}", describe_problems(err, Base)) from err
    return found


@cache
def guidelines() -> tuple[Guideline, ...]:
    """All guidelines, by number.

    Raises:
        ConfigError: With every problem of the first file that has any.
    """
    found = [parse_guideline(read_yaml(path), where=str(path)) for path in files()]
    return tuple(sorted(found, key=lambda g: g.number))


def files() -> list[Path]:
    """Files of guidelines."""
    return sorted(p for p in FOLDER.glob("*.yaml") if p.name != PRESETS_FILE)


def parse_guideline(values: Mapping[str, Any], *, where: str) -> Guideline:
    """Check plain values.

    Raises:
        ConfigError: With every problem at once.
    """
    try:
        return Guideline.model_validate(values)
    except ValidationError as err:
        raise ConfigError(where, describe_problems(err, Guideline)) from err


def pick(name: str) -> Guideline:
    """The guideline of an id or a number.

    Raises:
        UserError: If there is none.
    """
    for guideline in guidelines():
        if name in (guideline.id, str(guideline.number)):
            return guideline
    raise UserError(
        f"GUIDELINE: no guideline {name!r}; `unlearn-tune reproduce` lists numbers and ids"
    )
