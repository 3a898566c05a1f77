"""The layers of our files, the lowest first. A file imports files of its own layer and of lower ones.

``docs/architecture.md`` shows the same table.
"""

from __future__ import annotations

from import_graph import Layers

CORE: Layers = {
    "ground": ("core/__init__.py", "core/errors.py", "core/seeding.py"),
    "files": (
        "core/store/__init__.py",
        "core/store/durable.py",
        "core/store/place.py",
        "core/store/upkeep.py",
    ),
    "configuration": ("core/config/*.py",),
    "rules": (
        "core/measuring/__init__.py",
        "core/measuring/extent.py",
        "core/measuring/landing.py",
        "core/measuring/reporting.py",
        "core/measuring/scale.py",
        "core/measuring/selection.py",
    ),
    "cache": ("core/store/artifacts.py",),
    "model source": (
        "core/model/__init__.py",
        "core/model/gguf.py",
        "core/model/machine.py",
        "core/model/packaged.py",
        "core/model/source.py",
    ),
    "losses": ("core/losses/*.py",),
    "metrics": ("core/metrics/*.py",),
    "importance": ("core/fila.py", "core/fisher.py", "core/vila.py"),
    "data": ("core/data/*.py",),
    "model": (
        "core/model/attention.py",
        "core/model/decoding.py",
        "core/model/layers.py",
        "core/model/loading.py",
        "core/model/memory.py",
        "core/model/reading.py",
    ),
    "seams of training": (
        "core/training/__init__.py",
        "core/training/passes.py",
        "core/training/ranks.py",
        "core/training/shared_work.py",
        "core/training/trained.py",
    ),
    "parts of training": (
        "core/training/adapter.py",
        "core/training/checkpointing.py",
        "core/training/engine.py",
        "core/training/full_parameters.py",
        "core/training/importance.py",
        "core/training/pack.py",
        "core/training/packed_layer.py",
        "core/training/reading.py",
        "core/training/reference.py",
        "core/training/retain_weight.py",
        "core/training/slot_optimizer.py",
        "core/training/warm.py",
    ),
    "training": (
        "core/training/attaching.py",
        "core/training/initialisation.py",
        "core/training/memory.py",
        "core/training/needs.py",
        "core/training/place.py",
        "core/training/speed.py",
        "core/training/steps.py",
    ),
    "measuring": (
        "core/measuring/baselines.py",
        "core/measuring/calibration.py",
        "core/measuring/history.py",
        "core/measuring/meter.py",
        "core/measuring/probing.py",
        "core/measuring/staged.py",
    ),
    "suites": ("core/suites/*.py",),
    "whole tasks": (
        "core/estimate.py",
        "core/evaluation.py",
        "core/preparation.py",
        "core/worker.py",
    ),
    "launch": ("core/launch.py",),
}

TUNING: Layers = {
    "front door": ("tuning/__init__.py",),
    "rows of a ledger": ("tuning/data_words.py", "tuning/ranking.py", "tuning/records.py"),
    "sweep file": (
        "tuning/config.py",
        "tuning/files.py",
        "tuning/places.py",
        "tuning/points.py",
        "tuning/space.py",
        "tuning/starts.py",
        "tuning/strict_yaml.py",
    ),
    "machines": ("tuning/cluster.py", "tuning/resources.py"),
    "judgement": (
        "tuning/copies.py",
        "tuning/objective.py",
        "tuning/prior.py",
        "tuning/proposals.py",
        "tuning/pruning.py",
        "tuning/samplers.py",
    ),
    "wording": ("tuning/time_left.py", "tuning/wording.py"),
    "records": (
        "tuning/results.py",
        "tuning/run.py",
    ),
    "understanding": (
        "tuning/advice.py",
        "tuning/importance.py",
        "tuning/knobs.py",
        "tuning/next_sweep.py",
        "tuning/pool.py",
    ),
    "figures": ("tuning/plots/*.py",),
    "drawings": ("tuning/plots/drawing/*.py",),
    "report": ("tuning/export.py", "tuning/report.py"),
    "events": ("tuning/events.py",),
    "screen": (
        "tuning/advice_view.py",
        "tuning/best_view.py",
        "tuning/comparison.py",
        "tuning/repetition.py",
        "tuning/progress.py",
        "tuning/views.py",
    ),
    "ledger": ("tuning/ledger.py",),
    "verbs without Ray": (
        "tuning/cached.py",
        "tuning/doctor.py",
        "tuning/dry_run.py",
        "tuning/evaluate.py",
        "tuning/foresight.py",
        "tuning/prepare.py",
        "tuning/train.py",
        "tuning/validate.py",
    ),
    "failures": ("tuning/failures.py",),
    "trial on Ray": (
        "tuning/handing_out.py",
        "tuning/packing.py",
        "tuning/shared_folder.py",
        "tuning/trainable.py",
    ),
    "bridge": ("tuning/bridge.py",),
    "sweep": ("tuning/sweep.py",),
    "command line": ("tuning/cli.py",),
}

LAYERS: Layers = {"search spaces": ("search_spaces/__init__.py",), **CORE, **TUNING}
"""One tower: ``tuning`` stands on ``core``, so that ``core`` cannot know that it is tuned."""
