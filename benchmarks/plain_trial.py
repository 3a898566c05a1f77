"""One unlearning trial as published code makes it: transformers, PEFT and PyTorch, padded batches, one process.

    python benchmarks/plain_trial.py MODEL_FOLDER ROWS.json --rate 2e-4 --rank 32 --steps 12 --probe-every 3

``ROWS.json`` has token ids by role: ``forget``, ``kept`` (read by the retain loss) and ``probed``. The adapter is
PEFT's own, initialised from the singular vectors of the weights (PiSSA), which is what Fisher-weighted
initialisation is without weights. Losses: inverted hinge and cross-entropy, in float32, as the papers' code has
them. Probes measure the cross-entropy of all probed rows.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

PROBE_BATCH = 16
Ids = Sequence[Sequence[int]]


def padded(rows: Ids) -> dict[str, Tensor]:
    """Ids, mask and labels of rows, padded to the longest."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def inverted_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """One plus the true token's probability minus the strongest rival's."""
    counted = labels[:, 1:] != -100
    probabilities = logits[:, :-1].float().softmax(-1)[counted]
    targets = labels[:, 1:][counted].unsqueeze(-1)
    rivals = probabilities.scatter(-1, targets, -1.0).max(-1).values
    return (1.0 + probabilities.gather(-1, targets).squeeze(-1) - rivals).mean()


def shuffled(rows: Ids, seed: int) -> Iterator[Sequence[int]]:
    """Rows for ever, in another order at each pass."""
    draws = random.Random(seed)
    while True:
        order = list(rows)
        draws.shuffle(order)
        yield from order


def plain_trial(
    folder: str,
    rows: dict[str, Ids],
    *,
    rate: float,
    rank: int,
    steps: int,
    probe_every: int,
    batch: int = 8,
    seed: int = 0,
) -> list[float]:
    """Cross-entropy of the probed rows at each probe, nats per token."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=names, init_lora_weights="pissa_niter_4"
    )
    model = peft.get_peft_model(network.float(), config).to(torch.bfloat16)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    forget, kept = shuffled(rows["forget"], seed), shuffled(rows["kept"], seed)
    found = []
    for step in range(1, steps + 1):
        loss = inverted_hinge(*_passed(model, padded([next(forget) for _ in range(batch)])))
        loss = loss + model(**padded([next(kept) for _ in range(batch)])).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % probe_every == 0:
            found.append(measured(model, rows["probed"]))
    return found


def _passed(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    labels = inputs.pop("labels")
    return model(**inputs).logits, labels


@torch.no_grad()
def measured(model: nn.Module, rows: Ids) -> float:
    """Cross-entropy of rows, nats per token."""
    total = count = 0.0
    for i in range(0, len(rows), PROBE_BATCH):
        inputs = padded(rows[i : i + PROBE_BATCH])
        n_counted = float((inputs["labels"][:, 1:] != -100).sum())
        total += float(model(**inputs).loss) * n_counted
        count += n_counted
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--probe-every", type=int, default=3)
    options = parser.parse_args()
    found = plain_trial(
        options.folder,
        json.loads(options.rows.read_text("utf-8")),
        rate=options.rate,
        rank=options.rank,
        steps=options.steps,
        probe_every=options.probe_every,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
