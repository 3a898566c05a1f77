"""Time of EL_10 on SmolLM2-135M: our decoder against one ``generate`` per prefix length.

Both sides compute the same thing: for every sequence of T tokens and every prefix that can count (lengths 1
to ``T - n``) the greedy continuation up to T tokens, no token ending it. The loop is the way of the published
code: the whole batch, cut to the prefix length, goes through ``network.generate`` with its key-value cache,
once for each length. Ours is :func:`core.model.decoding.suffix_continuations`.

Half of the sequences are made of the shipped forget texts, which the model knows by heart, half of the shipped
retain texts, which it does not: texts are joined, starting at another one for each sequence, and cut to T.

CPU time is printed beside the clock: with one thread it does not depend on what else runs on the machine.

    python benchmarks/extraction_likelihood.py --tokens 64

What it printed stands in ``benchmarks/results/extraction_likelihood.md``.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.config import EngineConfig, ModelConfig
from core.data.sources import EMBEDDED
from core.metrics.memorization import extraction_likelihood, memorization_accuracy
from core.model.decoding import suffix_continuations
from core.model.loading import load_model

Continuations = list[list[list[int]]]


def joined_texts(path: Path, tokenizer: Any, *, count: int, tokens: int) -> list[list[int]]:
    """``count`` sequences of ``tokens`` tokens; sequence k starts at another text of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [tokenizer(json.loads(line)["text"] + "\n")["input_ids"] for line in lines]
    starts = [k * len(texts) // count for k in range(count)]
    turned = [[*texts[start:], *texts[:start]] for start in starts]
    return [list(islice((t for text in row for t in text), tokens)) for row in turned]


def loop(network: Any, ids: Tensor, *, n: int, every: int = 1) -> Continuations:
    """One ``generate`` of the whole batch for each prefix length, or each ``every``-th one."""
    length = ids.shape[1]
    found: Continuations = [[] for _ in ids]
    for i in range(1 + every // 2, length - n + 1, every):
        prefix = ids[:, :i]
        rows = network.generate(
            input_ids=prefix,
            attention_mask=torch.ones_like(prefix),
            max_length=length,
            do_sample=False,
            use_cache=True,
        )
        for row, continuation in zip(found, rows[:, i:].tolist(), strict=True):
            row.append(continuation)
    return found


def timed(compute: Callable[[], Continuations]) -> tuple[float, float, Continuations]:
    """Seconds by the clock, seconds of CPU time, result."""
    clock, cpu = time.perf_counter(), time.process_time()
    found = compute()
    return time.perf_counter() - clock, time.process_time() - cpu, found


def likelihoods(found: Continuations, sequences: Sequence[Sequence[int]], *, n: int) -> Tensor:
    return torch.tensor(
        [
            extraction_likelihood(generated, truth, n=n)
            for generated, truth in zip(found, sequences, strict=True)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--n", type=int, default=10)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-loop", action="store_true")
    parser.add_argument(
        "--sample-loop",
        type=int,
        metavar="K",
        help="time the loop alone, on each K-th prefix length, and print that times K",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(
        ModelConfig(source="package:smollm2"),
        EngineConfig(threads=options.threads, dtype=options.dtype),
    )
    network: Any = model.network
    network.generation_config.eos_token_id = None  # no token ends a continuation
    half = options.sequences // 2
    counts = {"forget": options.sequences - half, "retain": half}
    sequences = [
        ids
        for role, count in counts.items()
        for ids in joined_texts(
            EMBEDDED / f"{role}.jsonl", model.tokenizer, count=count, tokens=options.tokens
        )
    ]
    ids = torch.tensor(sequences, device=model.device)
    with torch.no_grad():
        logits = [network(input_ids=row[None]).logits for row in ids]
        accuracy = torch.cat(
            [memorization_accuracy(x, row[None]) for x, row in zip(logits, ids, strict=True)]
        )
    del logits
    print(
        f"{options.sequences} sequences of {options.tokens} tokens, n={options.n}, {options.dtype}, "
        f"{options.threads} threads, {model.device.type}, torch {torch.__version__}"
    )
    edge = counts["forget"]
    print(f"MA: forget {accuracy[:edge].mean():.3f}, retain {accuracy[edge:].mean():.3f}")
    if options.sample_loop:
        _, cpu_s, theirs = timed(lambda: loop(network, ids, n=options.n, every=options.sample_loop))
        print(
            f"loop at {len(theirs[0])} of {options.tokens - options.n} prefix lengths: {cpu_s:.1f} s of CPU; "
            f"all of them at this mean: {cpu_s / len(theirs[0]) * (options.tokens - options.n):.0f} s of CPU"
        )
        return
    ours_s, ours_cpu_s, ours = timed(
        lambda: list(
            suffix_continuations(
                network, sequences, batch_size=options.batch_size, min_length=options.n
            )
        )
    )
    found = likelihoods(ours, sequences, n=options.n)
    print(
        f"ours {ours_s:.1f} s, {ours_cpu_s:.1f} s of CPU (batch size {options.batch_size})",
        flush=True,
    )
    print(f"EL_{options.n}: forget {found[:edge].mean():.4f}, retain {found[edge:].mean():.4f}")
    if options.without_loop:
        return
    loop_s, loop_cpu_s, theirs = timed(lambda: loop(network, ids, n=options.n))
    reference = likelihoods(theirs, sequences, n=options.n)
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    equal = sum(a == b for a, b in pairs)
    print(f"loop {loop_s:.1f} s, {loop_cpu_s:.1f} s of CPU")
    print(
        f"EL_{options.n}: forget {reference[:edge].mean():.4f}, retain {reference[edge:].mean():.4f}"
    )
    print(f"equal continuations: {equal} of {len(pairs)}")
    print(f"largest difference of EL_{options.n}: {float((found - reference).abs().max()):.2e}")
    print(f"loop / ours: {loop_s / ours_s:.1f} by the clock, {loop_cpu_s / ours_cpu_s:.1f} of CPU")


if __name__ == "__main__":
    main()
