"""Door to transformers: load a causal language model and its tokenizer."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from core.config import EngineConfig, ModelConfig, Quantisation
from core.errors import ModelError, foreign, in_a_line
from core.model.architecture import auto_class, refuse_looking_ahead
from core.model.layers import linear_shape, n_positions, resolve_targets, vocabulary_size
from core.model.quantised import keep_codes
from core.model.reading import PADDED, Reader, reader_of
from core.model.source import locate, missing_package, model_identity
from core.model.tokenizer import load_tokenizer

_CHECKSUM_CHUNK = 1 << 20  # words at a time: they and their places stay in a cache


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A frozen target model in memory.

    Attributes:
        network: The causal language model, in evaluation mode (no dropout), nothing requires a gradient.
        tokenizer: Its tokenizer.
        identity: Hash or commit that names these weights.
        dtype: Floating-point type of the weights.
        device: Where it lies.
        reader: How it reads rows.
        quantisation: How the frozen linear layers are held.
    """

    network: nn.Module
    tokenizer: Any
    identity: str
    dtype: torch.dtype
    device: torch.device
    reader: Reader = PADDED
    quantisation: Quantisation = "none"

    @property
    def precision(self) -> str:
        """What names the numbers that the weights are, beside :attr:`identity`: their type, and how they are held."""
        held = "" if self.quantisation == "none" else f"+{self.quantisation}"
        return f"{self.dtype}{held}"

    @property
    def determinants(self) -> dict[str, str]:
        """What of the model determines the numbers that it gives for a row, for the key of an artifact."""
        return {"model": self.identity, "dtype": self.precision, "device": self.device.type}


def load_model(
    config: ModelConfig, engine: EngineConfig, *, field: str = "model.source"
) -> LoadedModel:
    """Load a model in the engine's precision on the engine's device.

    Args:
        config: The model.
        engine: Precision and device.
        field: Where its source was given, for the message.

    Raises:
        ModelError: If the model is not found or cannot be read.
    """
    location, revision = locate(config, field=field)
    missing = missing_package(config)
    if missing is not None:
        raise ModelError(missing)
    dtype, device = resolve_dtype(engine), resolve_device(engine)
    arguments = {"revision": revision, "trust_remote_code": False}
    with foreign(partial(_not_loaded, config, field=field)):
        architecture = transformers.AutoConfig.from_pretrained(location, **arguments)  # nosec B615
        tokenizer = load_tokenizer(config, field=field)
        network, loading = auto_class(architecture).from_pretrained(
            location,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **_held(config, dtype, device),
            **arguments,
        )
    _refuse_missing(network, loading["missing_keys"], config, field=field)
    keep_codes(nn.Module.to(network, device)).eval().requires_grad_(False)
    refuse_looking_ahead(network, source=config.source, field=field)
    return LoadedModel(
        network=network,
        tokenizer=tokenizer,
        identity=model_identity(config, getattr(network.config, "_commit_hash", None)),
        dtype=dtype,
        device=device,
        reader=reader_of(network, device),
        quantisation=config.quantisation,
    )


def _held(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What transformers is told of how weights are held; quantised ones are made on their device."""
    if config.quantisation == "none":
        return {}
    bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantisation,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": bits, "device_map": {"": str(device)}}


def local_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, without the model and without a network.

    Raises:
        ModelError: If it is not on this machine.
    """
    with foreign(partial(_not_here, config, "tokenizer")):
        return load_tokenizer(config, field="model.source", is_local=True)


def load_outline(config: ModelConfig, engine: EngineConfig) -> LoadedModel:
    """The target model as :func:`load_model` gives it, but for its weights: names and shapes only, on no device.

    Raises:
        ModelError: If the model is not found or cannot be read.
    """
    location, revision = locate(config)
    dtype = resolve_dtype(engine)
    arguments = {"revision": revision, "trust_remote_code": False}
    with foreign(partial(_not_loaded, config)):
        architecture = transformers.AutoConfig.from_pretrained(location, **arguments)  # nosec B615
        tokenizer = load_tokenizer(config, field="model.source")
        network = _outlined(architecture, dtype)
    return LoadedModel(
        network=network,
        tokenizer=tokenizer,
        identity=model_identity(config, getattr(architecture, "_commit_hash", None)),
        dtype=dtype,
        device=resolve_device(engine),
    )


def load_partitioned(config: ModelConfig, dtype: torch.dtype, zero: Mapping[str, Any]) -> nn.Module:
    """The target model with a part of every weight on each rank, as ZeRO 3 holds it; every rank takes part.

    The first rank reads the files and hands a layer at a time to all, so that no other rank ever holds
    the whole model, and the first one holds it in the pages of the files only.

    Args:
        config: The model.
        dtype: Type of the weights.
        zero: DeepSpeed's ``zero_optimization``, of stage 3.

    Raises:
        ModelError: If the model is not found or cannot be read.
    """
    location, revision = locate(config)
    state = HfDeepSpeedConfig(  # transformers looks at it while it lives
        {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": dict(zero),
            "bf16": {"enabled": dtype == torch.bfloat16},
        }
    )
    try:
        with foreign(partial(_not_loaded, config)):
            architecture = transformers.AutoConfig.from_pretrained(
                location, revision=revision, trust_remote_code=False
            )
            network = auto_class(architecture).from_pretrained(
                location,
                dtype=dtype,
                use_safetensors=True,
                revision=revision,
                trust_remote_code=False,
            )
    finally:
        del state
        unset_hf_deepspeed_config()  # other models are loaded whole
    partitioned: nn.Module = network.eval().requires_grad_(False)
    return partitioned


def parts_of(network: nn.Module) -> dict[str, Tensor]:
    """This rank's part of every weight of a partitioned model."""
    return {name: cast(Any, p).ds_tensor for name, p in network.named_parameters()}


def _not_here(config: ModelConfig, what: str, err: Exception) -> ModelError:
    return ModelError(f"model.source: no {what} of {config.source!r} here: {in_a_line(err)}")


def _no_classifier(source: str, err: Exception) -> ModelError:
    return ModelError(
        f"--fluency-model: cannot load {source!r}: {in_a_line(err)}; give a sequence classifier as a folder with "
        "safetensors, or a hub id that this machine can reach"
    )


def _refuse_missing(
    network: nn.Module, missing: Collection[str], config: ModelConfig, *, field: str
) -> None:
    """Refuse weights that are not there: transformers draws them at random, and says so in a warning only."""
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{field}: {config.source!r} lacks {len(missing)} weights of {type(network).__name__} ({shown}); give a "
            "model folder with all of them, such as save_pretrained writes"
        )


def _not_loaded(config: ModelConfig, err: Exception, *, field: str = "model.source") -> ModelError:
    return ModelError(
        f"{field}: cannot load {config.source!r}: {in_a_line(err)}; give a folder written by "
        "save_pretrained (safetensors), a hub id that this machine can reach, or package:smollm2"
    )


def retain_only_identity(config: ModelConfig) -> str | None:
    """What names the weights of ``model.retain_only``, of a hub model the commit that would be loaded."""
    if config.retain_only is None:
        return None
    other = ModelConfig(source=config.retain_only)
    location, revision = locate(other, field="model.retain_only")
    if Path(location).is_dir():
        return model_identity(other)
    with foreign(partial(_not_loaded, other, field="model.retain_only")):
        found = transformers.AutoConfig.from_pretrained(
            location, revision=revision, trust_remote_code=False
        )
    return model_identity(other, getattr(found, "_commit_hash", None))


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
        raise ModelError(
            "engine.device: cuda is asked for, but torch sees no CUDA device here; take auto or cpu, or let "
            "`unlearn-tune doctor` say why"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def load_network(folder: Path, like: LoadedModel) -> nn.Module:
    """A model folder of ours in the precision and on the device of ``like``."""
    network = auto_class(cast(Any, like.network).config).from_pretrained(
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
        location, _ = locate(ModelConfig(source=source), field="source")
    except ModelError as err:
        raise _no_classifier(source, err) from err
    with foreign(partial(_no_classifier, source)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **arguments)  # nosec B615
        network = transformers.AutoModelForSequenceClassification.from_pretrained(  # nosec B615
            location, dtype=torch.float32, use_safetensors=True, **arguments
        )
    return TextClassifier(network=network.to(device).eval(), tokenizer=tokenizer)


def save_network(model: LoadedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write an ordinary model folder with other weights: safetensors, configuration, tokenizer."""
    folder.mkdir()
    model.network.save_pretrained(folder, state_dict=dict(weights))  # type: ignore[operator]
    model.tokenizer.save_pretrained(folder)


def final_logits(network: nn.Module, hidden_BTD: Tensor) -> Tensor:
    """Logits of the model's own output layer from the last hidden states."""
    head = cast(Any, network).get_output_embeddings()
    return cast(Tensor, head(hidden_BTD))


def outlined_network(config: ModelConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model without its weights: shapes alone, in evaluation mode; nothing requires a gradient.

    Raises:
        ModelError: If the model's configuration is not on this machine.
    """
    location, revision = locate(config)
    with foreign(partial(_not_here, config, "configuration")):
        architecture = transformers.AutoConfig.from_pretrained(
            location, revision=revision, trust_remote_code=False, local_files_only=True
        )
        return _outlined(architecture, dtype)


def _outlined(architecture: Any, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        network = auto_class(architecture).from_config(architecture, dtype=dtype)
    outlined: nn.Module = network.eval().requires_grad_(False)
    return outlined


def outlined_model(config: ModelConfig, engine: EngineConfig) -> LoadedModel:
    """The model without its weights, in the engine's precision, with its tokenizer: what plans are made from.

    Raises:
        ModelError: If its configuration or its tokenizer is not on this machine.
    """
    dtype = resolve_dtype(engine)
    return LoadedModel(
        network=outlined_network(config, dtype),
        tokenizer=local_tokenizer(config),
        identity="",
        dtype=dtype,
        device=torch.device("cpu"),
    )


def model_shape(config: ModelConfig) -> dict[str, int]:
    """``parameters``, ``vocabulary`` and ``linear_in_plus_out`` (over all target layers), without weights.

    ``positions``, too, of a model that has a table of them.

    Raises:
        ModelError: If the model's configuration is not on this machine.
    """
    network = outlined_network(config)
    targets = resolve_targets(network, "all", rank=1)
    positions = n_positions(network)
    return ({} if positions is None else {"positions": positions}) | {
        "parameters": sum(p.numel() for p in network.parameters()),
        "vocabulary": vocabulary_size(network),
        "linear_in_plus_out": sum(sum(linear_shape(network.get_submodule(n))) for n in targets),
    }


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """A checksum over the exact bits of all weights, computed where they lie.

    Two sums of the 64-bit words of each tensor, plain and weighted by position, modulo 2^64; a changed bit
    changes them. Bytes that fill no word count one by one.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(weights.items()):
        octets = parameter.detach().reshape(-1).view(torch.uint8)
        if octets.storage_offset() % 8:
            octets = octets.clone()  # words begin at every eighth byte
        whole = len(octets) // 8 * 8
        sums = [0, 0]
        for part in (octets[:whole].view(torch.int64), octets[whole:].to(torch.int64)):
            for i, chunk in enumerate(part.split(_CHECKSUM_CHUNK)):
                start = i * _CHECKSUM_CHUNK + 1
                places = torch.arange(start, start + len(chunk), device=chunk.device)
                sums[0] += int(chunk.sum())
                sums[1] += int(places.mul_(chunk).sum())
        digest.update(f"{name} {sums[0]} {sums[1]}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Forward:
    """Logits of a network from ids and mask."""

    network: Any

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(B, T, V)``."""
        logits: Tensor = self.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits


def forward_of(network: nn.Module) -> Forward:
    """A network as a function from ids and mask to logits."""
    return Forward(network)
