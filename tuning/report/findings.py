"""What trials say of a sweep in sentences: ranges that end too soon, and trials that changed nothing."""

from collections.abc import Sequence

from core.config import metric_facts
from tuning.knobs import edge_hits
from tuning.plots.scales import scales
from tuning.records import TrialRecord
from tuning.run import Run
from tuning.wording import listed


def findings(run: Run) -> list[str]:
    """Sentences, each with the trials that it rests on; empty where there is nothing to say."""
    found = []
    for scale in scales(run.spec.space):
        for hit in edge_hits(run.trials, scale.path, run.spec.space[scale.path]):
            found.append(
                f"{len(hit.at)} of {len(hit.good)} good trials lie at the {hit.end} end of {scale.path}: "
                f"widen it ({_trials(hit.at)})."
            )
    stopped = [t.number for t in run.trials if t.stopped_by == "no_effect"]
    if stopped:
        found.append(
            f"{_trials(stopped, begins=True)} ended without effect: forgetting stayed within its noise."
        )
    doubtful = [t.number for t in run.trials if t.number not in stopped and _may_be_nothing(run, t)]
    if doubtful:
        one = len(doubtful) == 1
        found.append(
            f"{_trials(doubtful, begins=True)} cannot be told from the untouched model: the 95 % "
            f"interval{'' if one else 's'} of {run.spec.objective.metric} hold{'s' if one else ''} 0."
        )
    return found


def _may_be_nothing(run: Run, trial: TrialRecord) -> bool:
    """Whether a trial may have forgotten nothing; where less is better, 0 is not the untouched model's value."""
    ends = trial.value_interval
    if ends is None or not trial.feasible or metric_facts(run.spec.objective.metric).better != "up":
        return False
    return ends[0] <= 0.0 <= ends[1]


def _trials(numbers: Sequence[int], *, begins: bool = False) -> str:
    word = "trial" if len(numbers) == 1 else "trials"
    return f"{word.capitalize() if begins else word} {listed(numbers)}"
