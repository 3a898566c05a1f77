"""Time of a sweep: a shell loop, stock Ray Tune, ours on the same work, and ours as shipped.

The same configurations (a grid of learning rates and ranks) on the same rows, two at a time, one thread each:

- *loop*: a new process of ``benchmarks/plain_trial.py`` for each configuration, as published code is run;
- *ray*: Ray Tune with ``OptunaSearch`` around the same function, stock;
- *ours*: ``unlearn-tune sweep`` with every step made and every probe, of all rows: no guard, no stop on target,
  no landing, and no finalists and samples after;
- *again*: the same a second time, which finds the work that trials share, as any later sweep on this model and data;
- *shipped*: with the rules of the sweep file, its finalists and samples.

All by the clock and whole: interpreters, imports, Ray, loading. *ours* and *shipped* begin with a cache that holds the
converted model alone, so that baselines, Fisher information and decompositions are in the time; what they took is
given beside. The published way has the singular vectors of the weights instead, computed in each trial, and no Fisher
information at all.

    python benchmarks/sweep.py search_spaces/demo.yaml --rates 2e-4 4e-4 --ranks 8 32
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from core.config import ModelConfig
from core.data.splits import split_data
from core.model.layers import vocabulary_size
from core.model.loading import local_tokenizer, outlined_network
from core.model.source import locate
from core.store.place import CACHE_VARIABLE, cache_root
from tuning.files import load_sweep
from tuning.ranking import ranked
from tuning.run import load_run
from tuning.space import bind, corner_proposals

HERE = Path(__file__).resolve().parent
Points = Sequence[tuple[float, int]]


def token_rows(sweep: Path, to: Path) -> None:
    """Write the rows of a sweep's trials as token ids by role."""
    spec = load_sweep(sweep)
    trial = bind(spec, next(corner_proposals(spec)), where=str(sweep))
    splits = split_data(
        trial.data,
        local_tokenizer(trial.model),
        vocabulary=vocabulary_size(outlined_network(trial.model)),
    )
    own = "retain" if trial.method.retain_source == "in_distribution" else "general"
    probed = [*splits["forget"], *splits["retain_probe"], *splits["general_probe"]]
    parts = {"forget": splits["forget"], "kept": splits[f"{own}_train"], "probed": probed}
    rows = {name: [list(row.ids) for row in part] for name, part in parts.items()}
    to.write_text(json.dumps(rows), "utf-8")


def timed(work: Callable[[], object]) -> float:
    """Seconds by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def loop(
    folder: str, rows: Path, points: Points, *, steps: int, probe_every: int, at_a_time: int
) -> None:
    """One process a configuration."""

    def run(point: tuple[float, int]) -> None:
        rate, rank = point
        command = [sys.executable, str(HERE / "plain_trial.py"), folder, str(rows)]
        command += ["--rate", str(rate), "--rank", str(rank)]
        command += ["--steps", str(steps), "--probe-every", str(probe_every)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)

    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(run, points))


RAY = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {here!r})
import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from plain_trial import plain_trial
rows = json.load(open({rows!r}))
points = json.loads({points!r})

def trainable(config):
    found = plain_trial({folder!r}, rows, rate=config["rate"], rank=config["rank"],
                        steps={steps}, probe_every={probe_every})
    for value in found:
        tune.report({{"nll": value}})

ray.init(address="local", num_cpus={at_a_time}, include_dashboard=False, log_to_driver=False)
ranks = sorted({{rank for _, rank in points}})
space = {{"rate": tune.loguniform(1e-4, 1e-2), "rank": tune.choice(ranks)}}
given = [{{"rate": rate, "rank": rank}} for rate, rank in points]
search = OptunaSearch(metric="nll", mode="max", points_to_evaluate=given)
tune.Tuner(
    tune.with_resources(trainable, {{"cpu": 1}}),
    param_space=space,
    tune_config=tune.TuneConfig(search_alg=search, num_samples=len(points), max_concurrent_trials={at_a_time}),
    run_config=tune.RunConfig(storage_path={scratch!r}, verbose=0),
).fit()
"""


def stock_ray(
    folder: str,
    rows: Path,
    points: Points,
    *,
    steps: int,
    probe_every: int,
    at_a_time: int,
    scratch: Path,
) -> None:
    """Ray Tune and OptunaSearch, in a process of their own."""
    code = RAY.format(
        here=str(HERE),
        rows=str(rows),
        points=json.dumps([list(p) for p in points]),
        folder=folder,
        steps=steps,
        probe_every=probe_every,
        at_a_time=at_a_time,
        scratch=str(scratch / "ray"),
    )
    environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)


def ours(
    way: str, sweep: Path, points: Points, *, steps: int, probe_every: int, scratch: Path
) -> dict[str, Any]:
    """``unlearn-tune sweep`` over the same points.

    Args:
        way: ``ours`` or ``shipped``, with a cache that has the converted model alone; or ``again``, with that of
            ``ours``.
        sweep: The sweep file that the points are put into.
        points: Learning rates and ranks.
        steps: Steps of a trial.
        probe_every: Steps between probes; ``shipped`` may probe at each.
        scratch: Where cache and run folders lie.
    """
    values = yaml.safe_load(sweep.read_text("utf-8"))
    rates, ranks = (sorted(set(side)) for side in zip(*points, strict=True))
    values["space"] = {
        "optimizer.learning_rate": {"categorical": rates, "why": "the grid of the benchmark"},
        "adapter.rank": {"categorical": ranks, "why": "the grid of the benchmark"},
    }
    values["start_from"] = []
    values["sampler"] = {"name": "grid", "seed": 0}
    values["budget"] |= {"trials": len(points), "max_steps": steps, "probe_every": probe_every}
    if way == "shipped":
        values["budget"]["probe_every"] = 1
    else:
        values["pruning"] = {"retain": None}
        values["stop"] = {"past_target": None, "landing": False}
        values["budget"] |= {"rows_per_probe": "all", "skip_probes": False}
        values["budget"] |= {"finalists": 0, "samples": 0}
    file = scratch / f"{way}.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    cache = scratch / ("cache-shipped" if way == "shipped" else "cache-ours")
    if not cache.exists():
        cache.mkdir()
        shutil.copytree(cache_root() / "models", cache / "models")
    command = [str(Path(sys.executable).parent / "unlearn-tune"), "sweep", str(file)]
    command += ["--name", way]
    environment = os.environ | {CACHE_VARIABLE: str(cache)}
    began = time.time()
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):  # 3: nothing feasible
        raise RuntimeError(done.stderr[-2000:])
    run = load_run(scratch / "runs" / way)
    first = min(path.stat().st_mtime for path in run.path.glob("trials/*/*/trial.yaml"))
    order = ranked(run.trials)
    return {
        "preparation": first - began,
        "steps": sum(trial.steps or 0 for trial in run.trials),
        "best": order[0].value if order and order[0].feasible else None,
    }


def measured(sweep: Path, points: Points, *, steps: int, probe_every: int) -> dict[str, Any]:
    """Each way once, after the other."""
    at_a_time = os.cpu_count() or 1
    model = load_sweep(sweep).model
    folder = locate(ModelConfig.model_validate(model))[0]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        rows = scratch / "rows.json"
        token_rows(sweep, rows)
        shape = {"steps": steps, "probe_every": probe_every}
        beside: dict[str, dict[str, Any]] = {}

        def our(way: str) -> None:
            beside[way] = ours(way, sweep, points, **shape, scratch=scratch)

        ways: dict[str, Callable[[], object]] = {
            "loop": lambda: loop(folder, rows, points, **shape, at_a_time=at_a_time),
            "ray": lambda: stock_ray(
                folder, rows, points, **shape, at_a_time=at_a_time, scratch=scratch
            ),
            **{way: partial(our, way) for way in ("ours", "again", "shipped")},
        }
        seconds = {way: timed(work) for way, work in ways.items()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "sweep": str(sweep),
        "machine": f"{platform.machine()}, {at_a_time} cores",
        "points": [list(point) for point in points],
        "steps": steps,
        "probe_every": probe_every,
        "seconds": {way: round(s, 1) for way, s in seconds.items()},
        "beside": beside,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    seconds, n = found["seconds"], len(found["points"])
    lines = [
        f"{found['date']}, {found['sweep']}, {n} configurations of {found['steps']} steps, a probe every "
        f"{found['probe_every']}; {found['machine']}; seconds by the clock.",
        "",
        "| | whole | of it preparation | a configuration | loop / this | stock Ray / this | best value |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, whole in seconds.items():
        beside = found["beside"].get(way, {})
        preparation, best = beside.get("preparation"), beside.get("best")
        lines.append(
            f"| {way} | {whole:.0f} | {'' if preparation is None else f'{preparation:.0f}'} | {whole / n:.1f} "
            f"| {seconds['loop'] / whole:.2f} | {seconds['ray'] / whole:.2f} "
            f"| {'' if best is None else f'{best:.3f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.5e-4, 3e-4, 6e-4, 1.2e-3])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--probe-every", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write PATH.json and PATH.md, too")
    options = parser.parse_args()
    points = list(product(options.rates, options.ranks))
    found = measured(options.sweep, points, steps=options.steps, probe_every=options.probe_every)
    print(table(found))
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        text = f"# Sweeps\n\n{table(found)}\n"
        options.output.with_suffix(".md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
