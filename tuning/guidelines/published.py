"""Published trials of unlearning as evidence, read in place from a folder that a variable names."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, Literal

from core.errors import DataError, FileError, UserError
from core.store.texts import read_json
from tuning.guidelines.evidence import MOST_DAMAGE, Evidence, Observed, Reading
from tuning.guidelines.trajectories import RATE

DATA_VARIABLE = "UNLEARN_TUNE_DATA"
Source = Literal["tofu", "budgeted"]
"""``tofu``: 150 models of TOFU, forget10, Llama-3.2-1B (gnueaj/unlearning-depth-score). ``budgeted``: 4,080 trials
of five published losses and three variants of RepSelect on 17 pairs of data set and model (filyp/open-unlearning)."""

LOSSES = ("GradDiff", "NPO", "RMU", "SimNPO", "UNDIAL")
"""Published losses of the budgeted searches; the variants of RepSelect are left out."""
KEPT_UTILITY = 0.95
"""Share of the full model's utility that a feasible TOFU model keeps."""
_TOFU = "tofu-150-models.json"
_BUDGETED = re.compile(r"(?P<data>.+?)\.results(?:_(?P<part>\w+))?\.(?P<model>.+)\.json")


def published(sources: Sequence[Source]) -> Evidence:
    """Evidence from the published trials; names of sweeps begin with their source.

    Raises:
        UserError: If the variable is not set, or the files are not there or hold something else.
    """
    folder = _folder()
    read = {"tofu": _tofu, "budgeted": _budgeted}
    found: dict[str, Sequence[Observed]] = {}
    for source in sources:
        found |= read[source](folder)
    return found


def _folder() -> Path:
    named = os.environ.get(DATA_VARIABLE)
    if not named:
        raise UserError(
            f"{DATA_VARIABLE}: names the folder with the published trials, and is not set; put "
            f"{_TOFU} (gnueaj/unlearning-depth-score, docs/data/method_results.json) and DATASET.results.MODEL.json "
            "(filyp/open-unlearning, community/benchmarks) below trials/ of a folder, and name that"
        )
    folder = Path(named)
    for found in (folder / "trials", folder):
        if (found / _TOFU).is_file():
            return found
    raise UserError(
        f"{DATA_VARIABLE}: {folder} has no {_TOFU}, nor has its folder trials; check it"
    )


def _tofu(folder: Path) -> dict[str, Sequence[Observed]]:
    """A sweep for each method; a trial has a reading after 5 epochs and one after 10, trained apart.

    The score is OpenUnlearning's criterion of selection, the harmonic mean of memorisation and relative utility; the
    damage is the share of the utility that is lost.
    """
    by_trial: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for model in _json(folder / _TOFU)["models"]:
        if model["method"] not in ("full", "retain"):
            name = model["model"].rpartition("_ep")[0]
            by_trial.setdefault((model["method"], name), []).append(model)
    found: dict[str, list[Observed]] = {}
    for (method, _), models in by_trial.items():
        models.sort(key=lambda m: int(m["epoch"].removeprefix("ep")))
        found.setdefault(f"tofu/{method}", []).append(
            Observed(
                unit=method,
                params={RATE: float(models[0]["lr"])},
                readings=tuple(map(_tofu_reading, models)),
                limit=1.0 - KEPT_UTILITY,
            )
        )
    return dict(found)


def _tofu_reading(model: Mapping[str, Any]) -> Reading:
    parts = {name: float(model[key]) for name, key in _PARTS.items()}
    parts = {name: min(1.0, max(0.0, value)) for name, value in parts.items()}
    return Reading(
        step=int(model["epoch"].removeprefix("ep")),
        score=harmonic_mean([parts["memorisation"], parts["utility"]]),
        damage=min(MOST_DAMAGE, 1.0 - float(model["utility_rel"])),
        metrics=parts,
    )


_PARTS = {"memorisation": "mem", "privacy": "privacy", "utility": "utility_rel"}


def _budgeted(folder: Path) -> dict[str, Sequence[Observed]]:
    """A sweep for each pair of data set and model and each loss; the score is minus the logged value.

    Trials stop at a budget of damage, so that nothing else is limited.
    """
    found: dict[str, Sequence[Observed]] = {}
    for path, cell in _cells(folder):
        searches = _json(path)
        for loss in LOSSES:
            found[f"budgeted/{cell}/{loss}"] = [
                Observed(
                    unit=cell,
                    params={RATE: float(trial["params"]["args.learning_rate"])},
                    readings=(Reading(step=1, score=-float(trial["value"]), damage=0.0),),
                    limit=0.0,
                )
                for trial in searches[loss]["trials"]
            ]
    if not found:
        raise UserError(f"{folder}: no DATASET.results.MODEL.json is there; see {DATA_VARIABLE}")
    return found


def _cells(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.glob("*.results*.json")):
        match = _BUDGETED.fullmatch(path.name)
        if match:
            data = "-".join(part for part in (match["data"], match["part"]) if part)
            yield path, f"{data} {match['model']}"


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileError as err:
        raise DataError(f"{err}; fetch it again") from err
