"""Our metrics on the rows of a published evaluation: OpenUnlearning's logs of Llama-3.2-1B on TOFU's forget10.

Each aggregate is computed from the rows of the logs by the functions that `evaluate` uses, and stands beside the
published number. The logs are read where they lie and copied nowhere.

    UNLEARN_TUNE_DATA=FOLDER python benchmarks/published_logs.py

with the logs in ``FOLDER/published-logs`` (nxZhai/BalDRO, ``saves/eval``; MIT).
"""

import gzip
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.metrics.privacy import auc, privleak
from core.metrics.tofu import (
    forget_quality,
    forget_truth_score,
    model_utility,
    truth_ratio,
    utility_truth_score,
)

FULL, RETAIN = (f"llama-3.2-1b-{name}.TOFU_EVAL.json.gz" for name in ("full-forget10", "retain90"))
SETS = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}

ROUNDING = 1e-15
"""Relative difference that another order of a sum makes."""
EPSILON = 2e-10
"""The same where OpenUnlearning adds 1e-10 to a denominator and ours does not."""
WITH_EPSILON = frozenset({"forget truth ratio", "privleak"})

Log = Mapping[str, Any]
Compared = tuple[str, float, float]
"""What, published, ours."""


def read(path: Path) -> Log:
    """A log of every row."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found: Log = json.load(file)
    return found


def column(log: Log, name: str, field: str) -> Tensor:
    """A number of each row, or several of each, in the rows' order."""
    rows = log[name]["value_by_index"]
    values = [rows[key][field] for key in sorted(rows, key=int)]
    return torch.tensor(values, dtype=torch.float64)


def scores(log: Log, name: str, side: str) -> Tensor:
    """Scores of an attack on the forget or the holdout rows."""
    rows = log[name][side]["value_by_index"]
    return torch.tensor([rows[key]["score"] for key in sorted(rows, key=int)], dtype=torch.float64)


def ratios(log: Log, name: str, right: str, wrong: str) -> Tensor:
    """Truth ratios from the losses of the right and the wrong answers."""
    right_B, wrong_BK = -column(log, right, "avg_loss"), -column(log, wrong, "avg_loss")
    found = truth_ratio(right_B, wrong_BK, mean="geometric")
    logged = column(log, name, "score")
    assert torch.allclose(found, logged, rtol=1e-6), name
    return logged


def utility(log: Log) -> float:
    """The harmonic mean of the nine."""
    parts = {}
    for ours, theirs in SETS.items():
        probability = "Q_A_Prob" if ours == "retain" else "Q_A_Prob_normalised"
        parts[f"{ours}_probability"] = float(column(log, f"{theirs}_{probability}", "prob").mean())
        parts[f"{ours}_rouge"] = float(column(log, f"{theirs}_Q_A_ROUGE", "rougeL_recall").mean())
        found = column(log, f"{theirs}_Truth_Ratio", "score")
        parts[f"{ours}_truth_ratio"] = float(utility_truth_score(found).mean())
    return model_utility(parts)


def compared(full: Log, retain: Log) -> Iterator[Compared]:
    """Published numbers beside ours."""
    right, wrong = "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"
    forget = [ratios(log, "forget_truth_ratio", right, wrong) for log in (full, retain)]
    yield (
        "forget quality (p-value)",
        full["forget_quality"]["agg_value"],
        forget_quality(*forget).p_value,
    )
    yield (
        "forget truth ratio",
        full["forget_truth_ratio"]["agg_value"],
        float(forget_truth_score(forget[0]).mean()),
    )
    for name, log in (("full", full), ("retain90", retain)):
        yield f"model utility, {name}", log["model_utility"]["agg_value"], utility(log)
        for attack in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
            found = auc(*(scores(log, attack, side) for side in ("forget", "holdout")))
            yield f"{attack}, {name}", log[attack]["agg_value"], found
    aucs = [
        auc(*(scores(log, "mia_min_k", s) for s in ("forget", "holdout"))) for log in (full, retain)
    ]
    yield "privleak", full["privleak"]["agg_value"], privleak(*aucs)


def main() -> None:
    """Print the table; fail where a number differs beyond rounding."""
    folder = os.environ.get("UNLEARN_TUNE_DATA")
    if folder is None:
        sys.exit("UNLEARN_TUNE_DATA: name the folder that holds published-logs")
    logs = [read(Path(folder) / "published-logs" / name) for name in (FULL, RETAIN)]
    print("| number | published | ours | relative difference |\n|---|---:|---:|---:|")
    apart = []
    for name, published, ours in compared(*logs):
        difference = abs(ours - published) / max(abs(published), 1e-300)
        print(f"| {name} | {published!r} | {ours!r} | {difference:.1e} |")
        if not difference <= (EPSILON if name in WITH_EPSILON else ROUNDING):  # nor is NaN
            apart.append(f"{name} ({difference:.1e})")
    if apart:
        sys.exit(f"further apart than rounding: {', '.join(apart)}")


if __name__ == "__main__":
    main()
