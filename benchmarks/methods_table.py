"""Print the Markdown table of docs/methods.md: the best trial of each forget loss of a run.

unlearn-tune sweep search_spaces/methods.yaml
python benchmarks/methods_table.py runs/methods
"""

import argparse
from pathlib import Path

from tuning.ranking import ranked
from tuning.records import TrialRecord
from tuning.run import Run, load_run

LOSS = "method.forget_loss"
COLUMNS = (
    "forget loss",
    "trials",
    "feasible",
    "closure",
    "retain drop",
    "general drop",
    "closure, reporting split",
    "closure at utility",
    "factor",
    "step",
)


def best_of(run: Run) -> dict[str, tuple[TrialRecord, list[TrialRecord]]]:
    """For each forget loss its best trial and all of its finished ones, best losses first."""
    found: dict[str, tuple[TrialRecord, list[TrialRecord]]] = {}
    for trial in ranked(run.trials):
        loss = str(trial.params[LOSS])
        _, trials = found.setdefault(loss, (trial, []))
        trials.append(trial)
    return found


def table(run: Run) -> list[str]:
    """Lines of the table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for loss, (best, trials) in best_of(run).items():
        report = best.report_metrics or {}
        feasible = sum(bool(t.feasible) for t in trials)
        cells = [f"`{loss}`", str(len(trials)), str(feasible)]
        if best.feasible:
            cells += [
                f"{best.metrics['forget_closure']:.2f}",
                f"{best.metrics['retain_drop']:+.3f}",
                f"{best.metrics['general_drop']:+.3f}",
                *(
                    f"{report[name]:.2f}" if name in report else "–"
                    for name in (
                        "forget_closure",
                        "forget_closure_at_utility",
                        "calibration_factor",
                    )
                ),
                str(best.step),
            ]
        else:
            cells += ["no feasible probe", *[""] * 6]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of search_spaces/methods.yaml")
    print("\n".join(table(load_run(parser.parse_args().run))))


if __name__ == "__main__":
    main()
