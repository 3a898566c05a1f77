"""Door to transformers: load a causal language model and its tokenizer, and look at its layers."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core import packaged
from core.config import EngineConfig, ModelConfig, TargetGroup
from core.errors import ModelError

_GROUP_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "attention": re.compile(r"(^|\.)[^.]*(attn|attention)[^.]*\."),
    "mlp": re.compile(r"(^|\.)([^.]*(mlp|ffn|feed_forward)[^.]*\.|fc\d+$)"),
}

_CHECKSUM_CHUNK = 1 << 22  # words at a time: the wide copies stay small


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A frozen target model in memory.

    Attributes:
        network: The causal language model, in evaluation mode (no dropout), nothing requires a gradient.
        tokenizer: Its tokenizer.
        identity: Hash or commit that names these weights.
        dtype: Floating-point type of the weights.
        device: Where it lies.
    """

    network: nn.Module
    tokenizer: Any
    identity: str
    dtype: torch.dtype
    device: torch.device


def load_model(config: ModelConfig, engine: EngineConfig) -> LoadedModel:
    """Load the target model in the engine's precision on the engine's device.

    Raises:
        ModelError: If the model is not found or cannot be read.
    """
    location, revision = locate(config)
    dtype, device = resolve_dtype(engine), resolve_device(engine)
    arguments = {"revision": revision, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **arguments)
        network = transformers.AutoModelForCausalLM.from_pretrained(
            location, dtype=dtype, use_safetensors=True, **arguments
        )
    except (OSError, ValueError) as err:
        raise ModelError(
            f"model.source: cannot load {config.source!r}: {_first_line(err)}; give a folder written by "
            "save_pretrained (safetensors), a hub id that this machine can reach, or package:smollm2"
        ) from err
    nn.Module.to(network, device).eval().requires_grad_(False)
    return LoadedModel(
        network=network,
        tokenizer=tokenizer,
        identity=model_identity(config, getattr(network.config, "_commit_hash", None)),
        dtype=dtype,
        device=device,
    )


def locate(config: ModelConfig) -> tuple[str, str | None]:
    """Folder or hub id to load from, and the revision.

    Raises:
        ModelError: If the source is neither a packaged model, a model folder, nor a hub id.
    """
    source = config.source
    if source.startswith("package:"):
        return str(packaged.model_folder(source.removeprefix("package:"))), None
    if source.startswith("hub:"):
        return source.removeprefix("hub:"), config.revision
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ModelError(
                f"model.source: folder {source!r} holds no config.json; it is no model folder"
            )
        return source, None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).parent.is_dir():
        return source, config.revision
    raise ModelError(
        f"model.source: {source!r} is no folder and no hub id; give package:NAME, hub:ORG/NAME or a model folder"
    )


def retain_only_identity(config: ModelConfig) -> str | None:
    """What names the weights of ``model.retain_only``, of a hub model the commit that would be loaded."""
    if config.retain_only is None:
        return None
    other = ModelConfig(source=config.retain_only)
    location, revision = locate(other)
    if Path(location).is_dir():
        return model_identity(other)
    try:
        found = transformers.AutoConfig.from_pretrained(
            location, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as err:
        raise ModelError(
            f"model.retain_only: cannot load {config.retain_only!r}: {_first_line(err)}"
        ) from err
    return model_identity(other, getattr(found, "_commit_hash", None))


@lru_cache
def model_identity(config: ModelConfig, commit: str | None = None) -> str:
    """What names these weights: the hash of a folder's files, or the commit that a hub model was loaded at."""
    location, revision = locate(config)
    if not Path(location).is_dir():
        return f"{location}@{commit or revision or 'unknown'}"
    digest = hashlib.sha256()
    for path in sorted(Path(location).iterdir()):
        if path.suffix in {".safetensors", ".json", ".txt", ".model"}:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def resolve_dtype(engine: EngineConfig) -> torch.dtype:
    """``auto`` is bf16 where the hardware computes in it: CUDA with bf16, or a CPU with bf16 units."""
    if engine.dtype == "auto":
        if resolve_device(engine).type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return torch.bfloat16 if cpu_computes_bf16() else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[engine.dtype]


def cpu_computes_bf16() -> bool:
    """Whether the CPU has bf16 matrix units; without them bf16 is far slower than float32."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool(re.search(r"\b(amx_bf16|avx512_bf16)\b", flags.read_text()))


def resolve_device(engine: EngineConfig) -> torch.device:
    """``auto`` is CUDA where there is one; a rank uses the device that its environment shows it."""
    if engine.device == "cpu" or (engine.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelError("engine.device: cuda is asked for, but torch sees no CUDA device here")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def load_network(folder: Path, like: LoadedModel) -> nn.Module:
    """A model folder of ours in the precision and on the device of ``like``."""
    network = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=like.dtype, use_safetensors=True, trust_remote_code=False
    )
    loaded: nn.Module = nn.Module.to(network, like.device).eval().requires_grad_(False)
    return loaded


@dataclass(frozen=True, kw_only=True)
class TextClassifier:
    """A sequence classifier of transformers and its tokenizer, for what a model writes."""

    network: Any
    tokenizer: Any

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str], label: str) -> list[float]:
        """Probability of the label of each text; of the classifier's first label where none has that name."""
        labels = {name.lower(): i for i, name in self.network.config.id2label.items()}
        index = labels.get(label, 0)
        found = []
        for text in texts:  # one by one: a classifier may know no padding token
            read = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
            logits = self.network(**read.to(self.network.device)).logits
            found.append(float(torch.softmax(logits[0].float(), dim=-1)[index]))
        return found


def load_classifier(source: str, device: torch.device) -> TextClassifier:
    """A text classifier in float32, from the hub or a folder.

    Raises:
        ModelError: If it is not found or cannot be read.
    """
    arguments = {"trust_remote_code": False}
    try:
        location, _ = locate(ModelConfig(source=source))
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **arguments)
        network = transformers.AutoModelForSequenceClassification.from_pretrained(
            location, dtype=torch.float32, use_safetensors=True, **arguments
        )
    except (OSError, ValueError, ModelError) as err:
        raise ModelError(
            f"--fluency-model: cannot load {source!r}: {_first_line(err)}; give a sequence classifier as a "
            "folder with safetensors, or a hub id that this machine can reach"
        ) from err
    return TextClassifier(network=network.to(device).eval(), tokenizer=tokenizer)


def vocabulary_size(network: nn.Module) -> int:
    """Number of token ids that the model knows."""
    return int(cast(Any, network).get_input_embeddings().num_embeddings)


def save_network(model: LoadedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write an ordinary model folder with other weights: safetensors, configuration, tokenizer."""
    folder.mkdir()
    model.network.save_pretrained(folder, state_dict=dict(weights))  # type: ignore[operator]
    model.tokenizer.save_pretrained(folder)


def final_logits(network: nn.Module, hidden_BTD: Tensor) -> Tensor:
    """Logits of the model's own output layer from the last hidden states."""
    head = cast(Any, network).get_output_embeddings()
    return cast(Tensor, head(hidden_BTD))


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Convert a GGUF file to an ordinary float32 model folder with safetensors."""
    source, quantisation = str(gguf.parent), transformers.GgufConfig(dequantize=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, dtype=torch.float32, quantization_config=quantisation
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def model_shape(config: ModelConfig) -> dict[str, int]:
    """``parameters``, ``vocabulary`` and ``linear_in_plus_out`` (over all target layers), without weights.

    Raises:
        ModelError: If the model's configuration is not on this machine.
    """
    location, revision = locate(config)
    try:
        architecture = transformers.AutoConfig.from_pretrained(
            location, revision=revision, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            network = transformers.AutoModelForCausalLM.from_config(architecture)
    except (OSError, ValueError) as err:
        raise ModelError(f"model.source: no configuration of {config.source!r} here") from err
    targets = resolve_targets(network, "all", rank=1)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "vocabulary": int(architecture.vocab_size),
        "linear_in_plus_out": sum(sum(linear_shape(network.get_submodule(n))) for n in targets),
    }


def resolve_targets(
    network: nn.Module, group: TargetGroup, *, rank: int, layers: Sequence[int] | None = None
) -> list[str]:
    """Names of the linear layers of a group, found by looking at the model.

    Args:
        network: A causal language model; ``nn.Linear`` and GPT-2's ``Conv1D`` count as linear.
        group: ``attention``, ``mlp`` or ``all`` (both; never the output layer).
        rank: Rank that has to fit into each of them.
        layers: Blocks that they lie in, from 0; anywhere if absent.

    Raises:
        ModelError: If no layer matches, a layer is smaller than the rank, or a block does not exist.
    """
    output = getattr(network, "get_output_embeddings", lambda: None)()
    linear = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    patterns = [p for g, p in _GROUP_PATTERNS.items() if group in (g, "all")]
    names = [name for name in linear if any(p.search(name) for p in patterns)]
    if not names:
        shown = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
        raise ModelError(
            f"adapter.targets: no linear layer of {type(network).__name__} belongs to {group!r}; "
            f"linear layers found: {shown}"
        )
    if layers is not None:
        names = _within_blocks(network, names, layers)
    for name in names:
        smaller = min(linear_shape(linear[name]))
        if rank > smaller:
            raise ModelError(
                f"adapter.rank: must not exceed the smaller side of a layer, got rank={rank} for {name} "
                f"of shape {linear_shape(linear[name])}; use at most {smaller}, or other adapter.targets"
            )
    return names


def n_blocks(network: nn.Module) -> int:
    """Number of decoder blocks, which ``adapter.layers`` counts from 0.

    Raises:
        ModelError: If the model has no list of blocks.
    """
    return len(_blocks(network)[1])


def _blocks(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the blocks: the longest list of modules that lies in no other list (of experts, say)."""
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and not any(part.isdecimal() for part in name.split("."))
    ]
    if not lists:
        raise ModelError(
            f"adapter.layers: {type(network).__name__} has no list of blocks; leave adapter.layers out"
        )
    return max(lists, key=lambda found: len(found[1]))


def _within_blocks(network: nn.Module, names: Sequence[str], layers: Sequence[int]) -> list[str]:
    path, blocks = _blocks(network)
    missing = sorted(i for i in set(layers) if not 0 <= i < len(blocks))
    if missing:
        raise ModelError(
            f"adapter.layers: {type(network).__name__} has {len(blocks)} blocks, 0 to {len(blocks) - 1}, "
            f"got {', '.join(map(str, missing))}"
        )
    places = tuple(f"{path}.{i}." for i in layers)
    found = [name for name in names if name.startswith(places)]
    if not found:
        raise ModelError(
            f"adapter.layers: no layer of adapter.targets lies in block {', '.join(map(str, layers))} "
            f"of {type(network).__name__}; name other blocks or other adapter.targets"
        )
    return found


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """``(outputs, inputs)`` of a linear layer; also under ZeRO 3, where the weight itself is away."""
    weight = cast(nn.Parameter, module.weight)
    shape = tuple(getattr(weight, "ds_shape", weight.shape))
    return (shape[1], shape[0]) if isinstance(module, Conv1D) else (shape[0], shape[1])


def dense_weight(module: nn.Module) -> Tensor:
    """Weight as ``(outputs, inputs)``: GPT-2's Conv1D stores the transpose."""
    weight = cast(nn.Parameter, module.weight).detach()
    return weight.T if isinstance(module, Conv1D) else weight


def oriented(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor of the weight's own shape, turned to ``(outputs, inputs)``."""
    return tensor.T if isinstance(module, Conv1D) else tensor


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """A checksum over the exact bits of all weights, computed where they lie.

    Two sums of the words of each tensor, plain and weighted by position, as 64-bit integers; a changed
    bit changes them.
    """
    digest = hashlib.sha256()
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, parameter in sorted(weights.items()):
        flat = parameter.detach().reshape(-1).view(words[parameter.element_size()])
        plain = weighted = 0
        for chunk in flat.split(_CHECKSUM_CHUNK):
            wide = chunk.to(torch.int64)
            plain += int(wide.sum())
            weighted += int((wide * torch.arange(1, len(wide) + 1, device=wide.device)).sum())
        digest.update(f"{name} {plain} {weighted}".encode())
    return digest.hexdigest()


def _first_line(err: BaseException) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
