"""Whether a run is the one that is meant: what a sweep file, a model or data may not have changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from core.config import ModelConfig
from core.errors import UserError
from core.measuring.scale import ScaleMetric
from core.model.source import CONTENT, model_identity
from tuning import records
from tuning.config import SweepSpec, specification_changes
from tuning.run import Run, load_run
from tuning.shared_folder import QUESTION
from tuning.space import bind, corner_proposals

_BEFORE_LEDGER = {records.LOCK_FILE, records.SPEC_FILE, records.STORAGE_FILE}
_HALVES = (*(f".{name}." for name in (records.SPEC_FILE, records.LEDGER_FILE)), QUESTION)
"""How the names begin that a kill leaves of files that were being committed, or asked for on other nodes."""


def model_folders(spec: SweepSpec) -> dict[str, str]:
    """What names the models that lie in folders of this machine, without torch."""
    model = bind(spec, next(corner_proposals(spec)), where="sweep").model
    sources = {"model": model.source, "model.retain_only": model.retain_only}
    return {
        name: model_identity(ModelConfig(source=source))
        for name, source in sources.items()
        if source is not None and Path(source).is_dir()
    }


def refuse_other_contents(before: Mapping[str, str], now: Mapping[str, str], run_dir: Path) -> None:
    """Refuse to go on with another model or other rows than those of a run.

    Raises:
        UserError: With what changed; or that the run names a model folder by the hash of its files, as
            releases did that counted bytes which compute nothing.
    """
    changed = [k for k, v in now.items() if before.get(k, v) != v]
    by_files = [
        k for k in changed if before[k].startswith("sha256:") and now[k].startswith(CONTENT)
    ]
    if changed and changed == by_files:
        raise UserError(
            f"{run_dir}: an earlier release began this run and named {' and '.join(by_files)} by the bytes of "
            "all files; this one names it by what computes (weights, tokenizer, templates), and cannot tell "
            "whether it is the same; go on with the release that began it, or start a new run"
        )
    if changed:
        raise UserError(
            f"{run_dir}: {', '.join(changed)} changed since the run began; restore the old contents "
            "(for prompts, data.prompt_format too), or start a new run"
        )


def refuse_existing(spec: SweepSpec, run_dir: Path) -> None:
    """Refuse to start where a run is, and say what differs and how to go on.

    Raises:
        UserError: If the folder exists.
    """
    if not run_dir.exists():
        return
    found = {p.name for p in run_dir.iterdir() if not p.name.startswith(_HALVES)}
    if found <= _BEFORE_LEDGER and not records.is_driven(run_dir):
        return  # its driver was killed before anything was tried
    message = f"{run_dir} exists already; go on with `unlearn-tune resume {run_dir}`, or give another --name"
    if (run_dir / records.LEDGER_FILE).is_file():
        changes = _changes(spec, load_run(run_dir))
        if changes:
            message += "\nThe sweep file differs from the run's:\n" + "\n".join(changes)
    raise UserError(message)


def refuse_changed(spec: SweepSpec, run: Run) -> None:
    """Refuse a sweep file that no longer is the run's.

    Raises:
        UserError: With the difference.
    """
    changes = _changes(spec, run)
    if changes:
        raise UserError(
            f"{run.path}: the sweep file changed since the run began; undo the change, or start a new run "
            "with --name:\n" + "\n".join(changes)
        )


def _changes(spec: SweepSpec, run: Run) -> list[str]:
    for metric in run.spec.trial_selection().limited_metrics:
        if metric in get_args(ScaleMetric):  # resolved when the run began
            spec = spec.with_auto_as(metric)
    before, now = run.spec.binding(), spec.binding()
    now["engine"] = {**now["engine"]}
    for key in ("dtype", "device"):  # resolved when the run began
        if now["engine"].get(key, "auto") == "auto" and key in before["engine"]:
            now["engine"][key] = before["engine"][key]
    return specification_changes(before, now)
