"""Time of an optimiser step and of a probe: ours, plain PyTorch, and the matrix products alone.

The same rows three times, in turn, one thread on a CPU or one GPU:

- *ours*: the step and the probe that a trial of the sweep file makes, DeepSpeed and bookkeeping included;
- *plain*: the same rows padded to the longest, through transformers with a stock PEFT adapter, the same
  losses on all logits, AdamW; the probe in batches of 16 rows, without gradients;
- *bound*: the matrix products of the layers and of the output layer alone, for the real tokens and the
  predictions that count: forward, and for a step the gradient of the input. Nobody can be faster without
  leaving a product out.

CPU seconds are given on a CPU: with one thread they do not depend on what else runs on the machine, but for
the memory that others use. The median of the repetitions counts.

    python benchmarks/step.py search_spaces/demo.yaml --output benchmarks/results/step
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from core.config import TrialConfig
from core.data.batches import batches_by_length, collate, reading_order
from core.data.tokens import TokenRow
from core.losses import FORGET_LOSSES, RETAIN_LOSSES, Outputs
from core.measuring.probing import probing
from core.model.layers import linear_shape, resolve_targets, vocabulary_size
from core.model.loading import LoadedModel, forward_of
from core.training.place import own_engine
from core.training.ranks import join_alone
from core.training.steps import Steps
from core.training.warm import Warm
from tuning.files import load_sweep
from tuning.space import bind, corner_proposals

PLAIN_PROBE_ROWS = 16
Work = Callable[[], object]


def trial_of(path: Path) -> TrialConfig:
    """The first published point of a sweep file, else its first corner."""
    spec = load_sweep(path)
    values = spec.start_from[0].values if spec.start_from else next(corner_proposals(spec))
    return bind(spec, values, where=str(path))


def seconds(work: Work, device: torch.device) -> float:
    """CPU seconds of some work on a CPU, seconds by the clock on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def plain_step(
    network: nn.Module, config: TrialConfig, forget: Sequence[TokenRow], retain: Sequence[TokenRow]
) -> Work:
    """A step as a script would make it, on all rows at once."""
    device = next(network.parameters()).device
    batch = collate([*forget, *retain], device)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.learning_rate, weight_decay=0.0)
    forget_loss = FORGET_LOSSES[config.method.forget_loss]
    retain_loss = RETAIN_LOSSES[config.method.retain_loss]

    def step() -> None:
        logits = forward_of(network)(batch.ids, batch.mask)
        at = len(forget)
        loss = forget_loss.compute(_seen(logits[:at], batch.labels[:at]), None, config.method)
        if retain_loss is not None:
            loss = loss + retain_loss.compute(_seen(logits[at:], batch.labels[at:]), config.method)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _seen(logits_BTV: Tensor, labels_BT: Tensor) -> Outputs:
    return Outputs(logits=logits_BTV, labels_BT=labels_BT)


def plain_probe(network: nn.Module, rows: Sequence[TokenRow], device: torch.device) -> Work:
    """Cross-entropy of rows in padded batches."""

    @torch.no_grad()
    def probe() -> None:
        for _, batch in batches_by_length(rows, device, size=PLAIN_PROBE_ROWS):
            logits = forward_of(network)(batch.ids, batch.mask)[:, :-1]
            nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), batch.labels[:, 1:].flatten(), reduction="none"
            )

    return probe


def products(
    model: LoadedModel, rows: Sequence[TokenRow], *, config: TrialConfig, backward: bool
) -> tuple[Work, float]:
    """The matrix products of all layers for these rows, and their floating-point operations."""
    device, dtype = model.device, model.dtype
    n_tokens, n_counted = sum(len(row.ids) for row in rows), sum(row.n_counted for row in rows)
    names = resolve_targets(model.network, "all", rank=1)
    shapes = [(n_tokens, *linear_shape(model.network.get_submodule(name))) for name in names]
    width = linear_shape(model.network.get_submodule(names[0]))[1]
    shapes.append((n_counted, vocabulary_size(model.network), width))
    weights = [torch.randn(o, i, device=device, dtype=dtype) for _, o, i in shapes]
    sizes = {(n, i) for n, _, i in shapes} | {(n, o) for n, o, _ in shapes}
    states = {size: torch.randn(size, device=device, dtype=dtype) for size in sizes}

    @torch.no_grad()
    def multiply() -> None:
        for (n, outputs, inputs), weight in zip(shapes, weights, strict=True):
            torch.mm(states[n, inputs], weight.T)
            if backward:
                torch.mm(states[n, outputs], weight)

    operations = sum(2.0 * n * o * i for n, o, i in shapes) * (2 if backward else 1)
    return multiply, operations


def measured(path: Path, *, repetitions: int, threads: int) -> dict[str, Any]:
    """Everything, in turn."""
    config = trial_of(path)
    config = config.model_copy(
        update={"engine": config.engine.model_copy(update={"threads": threads})}
    )
    group, _meeting = join_alone(config.engine)
    warm = Warm()
    model, data = warm.model(config), warm.data(config)
    measure = probing(config, warm, group, part="probe")
    steps = Steps(config, model, data)
    steps.prepare()
    size = steps.plan.global_batch_size
    forget = list(islice(reading_order(data["forget"], seed=0, purpose="forget"), size))
    role = "retain" if config.method.retain_source == "in_distribution" else "general"
    kept = data[f"{role}_train"]
    retain = list(islice(reading_order(kept, seed=0, purpose="retain"), size))
    probed = [*data["forget"], *data["retain_probe"], *data["general_probe"]]
    rank, scaling = config.adapter.rank, config.adapter.scaling
    names = resolve_targets(model.network, config.adapter.targets, rank=rank)
    stock = peft.LoraConfig(r=rank, lora_alpha=int(scaling * rank), target_modules=names)

    step_bound, step_flop = products(model, [*forget, *retain], config=config, backward=True)
    probe_bound, probe_flop = products(model, probed, config=config, backward=False)
    found: dict[str, dict[str, list[float]]] = {
        "step": {"ours": [], "plain": [], "bound": []},
        "probe": {"ours": [], "plain": [], "bound": []},
    }

    def note(what: str, who: str, work: Work) -> None:
        work()
        for _ in range(2):
            found[what][who].append(seconds(work, model.device))

    def of_ours() -> None:
        place = own_engine(config, warm, steps, group=group)
        note("step", "ours", lambda: steps.train(place, group))
        probe = partial(
            measure.during_trial,
            is_last=True,  # all rows
            limits=(),
            decides=lambda found: True,
        )
        with place.alone() as network:
            note("probe", "ours", lambda: probe(network, place.trained.scaled))
        place.leave()

    def of_a_script() -> None:
        adapted: Any = peft.get_peft_model(model.network, stock)
        note("step", "plain", plain_step(adapted, config, forget, retain))
        note("probe", "plain", plain_probe(adapted, probed, model.device))
        adapted.unload()

    for _ in range(repetitions):
        note("step", "bound", step_bound)
        note("probe", "bound", probe_bound)
        of_ours()
        of_a_script()
    tokens = {
        "step": sum(len(r.ids) for r in [*forget, *retain]),
        "probe": sum(len(r.ids) for r in probed),
    }
    operations = {"step": step_flop, "probe": probe_flop}
    return {
        "sweep": str(path),
        "machine": f"{platform.processor() or platform.machine()}, {threads} thread",
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "dtype": str(model.dtype),
        "adapter": f"{config.method.adapter_init}, rank {rank}",
        "repetitions": 2 * repetitions,
        "results": [
            {
                "what": what,
                "rows": 2 * size if what == "step" else len(probed),
                "tokens": tokens[what],
                "tflop": round(operations[what] / 1e12, 3),
                **{who: round(statistics.median(times), 4) for who, times in by_who.items()},
            }
            for what, by_who in found.items()
        ],
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    unit = "s by the clock" if found["device"] != "cpu" else "s of CPU"
    lines = [
        f"{found['sweep']}, {found['adapter']}, {found['dtype']}, {found['device']} ({found['machine']}), "
        f"torch {found['torch']}, median of {found['repetitions']}, {unit}.",
        "",
        "| | rows | tokens | ours | plain | bound | plain / ours | ours / bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["results"]:
        lines.append(
            f"| {row['what']} | {row['rows']} | {row['tokens']} | {row['ours']:.3f} | {row['plain']:.3f} "
            f"| {row['bound']:.3f} | {row['plain'] / row['ours']:.2f} | {row['ours'] / row['bound']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write PATH.json and PATH.md, too")
    options = parser.parse_args()
    found = measured(options.sweep, repetitions=options.repetitions, threads=options.threads)
    print(table(found))
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        options.output.with_suffix(".md").write_text(
            f"# Step and probe\n\n{table(found)}\n", "utf-8"
        )


if __name__ == "__main__":
    main()
