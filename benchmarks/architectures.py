"""Which architectures of transformers work here: a table, measured on tiny models with random weights.

For every architecture that transformers has for causal language models, and every one that reads images beside text
whose defaults can be made small: a model is written to a folder, loaded as any model is, and tried.

- reading: counted logits of a padded batch are those of single rows; ``end to end`` where rows need no padding;
- decoding: greedy answers are those of one pass over the whole row for each token;
- adapters: attached, nothing changes; one backward pass reaches every adapted layer; the share of the weights of
  attention and MLP that they cover;
- Fisher: every adapted layer's own weight has a gradient;
- export: stock PEFT gives the same logits with what was saved, also after ``merge_and_unload``.

    python benchmarks/architectures.py --write docs/reference/models.md
    python benchmarks/architectures.py qwen3_5_text mamba
"""

import argparse
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_architectures import VOCABULARY, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from core.config import EngineConfig, ModelConfig
from core.data.tokens import TokenRow
from core.errors import UserError, first_line
from core.model.architecture import auto_class
from core.model.decoding import generate, way_of
from core.model.layers import coverage, linear_shape, n_positions, resolve_targets
from core.model.loading import LoadedModel, load_model
from core.model.reading import PADDED
from core.training.adapter import DifferenceAdapter, InitialFactors, load_adapter
from core.training.trained import float32_on_cpu

RANK, SCALING, NEW_TOKENS = 4, 2.0, 6
LARGEST = 3_000_000
"""Weights of a model that is still tiny."""
CPU = torch.device("cpu")
ENGINE = EngineConfig(dtype="fp32", device="cpu")


@dataclass
class Findings:
    """What was found of an architecture; empty where it was not tried."""

    kind: str
    name: str = ""
    reading: str = ""
    positions: str = ""
    decoding: str = ""
    adapters: str = ""
    fisher: str = ""
    export: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def row(self) -> str:
        """A line of the table."""
        cells = (
            self.reading,
            self.positions,
            self.decoding,
            self.adapters,
            self.fisher,
            self.export,
        )
        return f"| `{self.kind}` | {self.name} | {' | '.join(cells)} | {'; '.join(self.notes)} |"


def made(kind: str) -> Any:
    """A tiny network with random weights, larger than at a usual start: it depends on all that it reads.

    Raises:
        ValueError: If it is not tiny.
    """
    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in auto_class(config).from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} weights are left with the sizes that are known here")
    torch.manual_seed(0)
    network = auto_class(config).from_config(config).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0.0, 0.3)
    return network


def byte_tokenizer() -> Any:
    """One token a byte, and an end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {c: i for i, c in enumerate(alphabet, start=1)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def rows() -> list[TokenRow]:
    """Random rows of unequal length."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in (21, 9, 14)]
    return [TokenRow(tuple(ids), n_context=2) for ids in drawn]


def logits_of(network: nn.Module, ids: Sequence[int]) -> Tensor:
    """Logits ``(T, V)`` of one row."""
    logits: Tensor = network(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits[0]


def is_near(found: Tensor, wanted: Tensor) -> bool:
    """The same, up to rounding."""
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def try_reading(model: LoadedModel, found: Findings) -> None:
    """A padded batch against single rows."""
    network = model.network
    batch = PADDED.read(network, network, PADDED.lay(rows(), CPU)).logits_NV
    alone = [logits_of(network, row.ids)[row.n_context - 1 : -1] for row in rows()]
    same = is_near(batch, torch.cat(alone))
    found.reading = ("end to end" if model.reader.end_to_end else "padded") if same else "wrong"


@torch.no_grad()
def try_decoding(model: LoadedModel, found: Findings) -> None:
    """Answers against one whole pass for each token."""
    network = model.network
    prompts = [list(row.ids) for row in rows()]
    answers = generate(
        network, prompts, max_new_tokens=NEW_TOKENS, stop_ids=(), batch_size=len(prompts)
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        for token in answer:
            best = logits_of(network, prompt).topk(2)
            if token != int(best.indices[-1, 0]) and best.values[-1].diff().abs() > 1e-3:
                found.decoding = "wrong"
                return
            prompt.append(token)
    found.decoding = way_of(network)


def factors_of(network: nn.Module, names: Sequence[str]) -> dict[str, InitialFactors]:
    """Random initial factors that are not zero."""
    generator = torch.Generator().manual_seed(1)
    shapes = {name: linear_shape(network.get_submodule(name)) for name in names}
    return {
        name: InitialFactors(
            a=0.1 * torch.randn(RANK, inputs, generator=generator),
            b=0.1 * torch.randn(outputs, RANK, generator=generator),
        )
        for name, (outputs, inputs) in shapes.items()
    }


def try_adapters(model: LoadedModel, found: Findings, folder: Path) -> None:
    """Attached, trained for a step, saved, and loaded by stock PEFT."""
    network, ids = model.network, rows()[0].ids
    names = resolve_targets(network, "all", rank=1)
    names = [n for n in names if min(linear_shape(network.get_submodule(n))) >= RANK]
    covered = coverage(network, "all", names)
    with torch.no_grad():
        before = logits_of(network, ids)
    adapter = DifferenceAdapter(
        network, factors_of(network, names), rank=RANK, scaling=SCALING, dtype=model.dtype
    )
    with torch.no_grad():
        starts = torch.equal(logits_of(adapter.model, ids), before)
    logits_of(adapter.model, ids).logsumexp(-1).sum().backward()
    reached = [name for name, *pair in adapter.increments() if any(map(moved, pair))]
    found.adapters = f"{covered.share:.0%}" if starts else "wrong"
    if len(reached) < len(names):
        found.notes.append(f"no gradient reaches {leaves(set(names) - set(reached))}")
    if covered.left_out:
        found.notes.append(f"without adapter: {', '.join(covered.left_out[:2])}")
    with torch.no_grad():
        for _, *pair in adapter.increments():
            for increment in pair:
                increment.add_(0.05 * torch.randn(increment.shape))
        trained = logits_of(adapter.model, ids)
    adapter.save(folder, adapter.exported(float32_on_cpu), base="tiny")
    adapter.detach()
    stock: Any = load_adapter(network, folder)
    with torch.no_grad():
        is_same = is_near(logits_of(stock, ids), trained)
        is_merged = is_near(logits_of(stock.merge_and_unload(), ids), trained)
    found.export = ("yes" if is_merged else "not merged") if is_same else "wrong"


def moved(parameter: nn.Parameter) -> bool:
    """Whether a gradient reached it."""
    return parameter.grad is not None and bool(parameter.grad.any())


def leaves(names: set[str]) -> str:
    """Last parts of names, in short."""
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})[:3])


def try_fisher(model: LoadedModel, found: Findings) -> None:
    """Gradients of the adapted layers' own weights."""
    names = resolve_targets(model.network, "all", rank=1)
    weights = [model.network.get_submodule(name).weight for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    logits_of(model.network, rows()[0].ids).logsumexp(-1).sum().backward()
    n_reached = sum(weight.grad is not None and bool(weight.grad.any()) for weight in weights)
    found.fisher = "yes" if n_reached == len(weights) else f"{n_reached} of {len(weights)} layers"
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None


def tried(kind: str, tokenizer: Path, folder: Path) -> Findings:
    """Everything about one architecture; an error stands in its column's place or among the notes."""
    found = Findings(kind)
    try:
        network = made(kind)
        found.name = type(network).__name__
        network.save_pretrained(folder / "model")
        model = load_model(
            ModelConfig(source=str(folder / "model"), tokenizer=str(tokenizer)), ENGINE
        )
    except UserError as err:
        said = re.sub(r"'[^']*/model'", "the model", str(err)).partition(";")[0]
        found.notes.append("refused: " + said.removeprefix("model.source: "))
        return found
    except Exception as err:  # a default configuration of transformers may raise anything
        found.notes.append(f"not made: {first_line(err).strip()[:100]}")
        return found
    positions = n_positions(model.network)
    found.positions = "any" if positions is None else "table"
    steps: Sequence[tuple[str, Callable[[], None]]] = (
        ("reading", lambda: try_reading(model, found)),
        ("decoding", lambda: try_decoding(model, found)),
        ("fisher", lambda: try_fisher(model, found)),
        ("adapters", lambda: try_adapters(model, found, folder / "adapter")),
    )
    for column, step in steps:
        try:
            step()
        except Exception as err:  # what does not work is what is looked for
            setattr(found, column, "no")
            found.notes.append(f"{column}: {first_line(err)[:100]}")
    return found


def kinds() -> list[str]:
    """Model types, those of causal language models first."""
    causal = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return causal + [k for k in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if k not in causal]


def main() -> None:
    """Try the architectures and print the table, or write it into a page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", help="model types; all if absent")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = []
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Path(name) / "tokenizer"
        byte_tokenizer().save_pretrained(tokenizer)
        for kind in given.kinds or kinds():
            with tempfile.TemporaryDirectory(dir=name) as folder:
                found.append(tried(kind, tokenizer, Path(folder)))
            print(found[-1].row, flush=True)
    works = [f for f in found if f.reading and f.kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    print(f"{len(works)} of {len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} were tried to the end")
    if given.write is not None:
        shown = [
            f
            for f in found
            if f.kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            or not any(note.startswith("not made") for note in f.notes)
        ]
        write_table(given.write, [f.row for f in shown])


def write_table(page: Path, lines: Sequence[str]) -> None:
    """Replace what stands below the table's head."""
    text = page.read_text(encoding="utf-8")
    head, _, _ = text.partition("|---|---|---|---|---|---|---|---|---|\n")
    page.write_text(
        head + "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
