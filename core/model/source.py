"""Where a model comes from, and what names its weights. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from core.config import ModelConfig
from core.errors import FileError, ModelError, in_a_line
from core.model import packaged
from core.store import upkeep
from core.store.place import cache_root
from core.store.texts import read_json


def problem(source: str, *, field: str) -> str | None:
    """What is wrong with a model source as far as can be told without loading it, or ``None``.

    Args:
        source: As in :class:`core.config.ModelConfig`, of ``source`` as of ``retain_only``.
        field: Where it was given, for the message: ``model.source``, ``--initial``.
    """
    kind, _, name = source.partition(":")
    if kind == "package":
        if name in packaged.PACKAGED_MODELS:
            return None
        known = ", ".join(f"package:{n}" for n in packaged.PACKAGED_MODELS)
        return f"{field}: no packaged model {source!r}; known: {known}"
    if kind == "hub":
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
            return None
        return f"{field}: {source!r} is no hub id; give hub:ORG/NAME"
    if Path(source).is_dir():
        if (Path(source) / "config.json").is_file():
            return None
        return f"{field}: folder {source!r} holds no config.json; it is no model folder"
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) and not Path(source).parent.is_dir():
        return None  # a hub id without hub:
    return f"{field}: {source!r} is no folder and no hub id; give package:NAME, hub:ORG/NAME or a model folder"


def tokenizer_problem(source: str, *, field: str = "model.tokenizer") -> str | None:
    """What is wrong with another source of the tokenizer as far as can be told without loading it, or ``None``.

    A folder need not hold a model; what is no folder is judged as a model's source.
    """
    folder = Path(source)
    if not folder.is_dir():
        return problem(source, field=field)
    if any(path.is_file() for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        return None
    return (
        f"{field}: folder {source!r} holds no tokenizer; give one with tokenizer.json, tokenizer.model or a "
        "vocabulary, as save_pretrained writes them"
    )


def locate(config: ModelConfig, *, field: str = "model.source") -> tuple[str, str | None]:
    """Folder or hub id to load from, and the revision.

    Args:
        config: The model.
        field: Where its source was given, for the message.

    Raises:
        ModelError: If :func:`problem` finds one, or a packaged model cannot be downloaded.
    """
    found = problem(config.source, field=field)
    if found is not None:
        raise ModelError(found)
    kind, _, name = config.source.partition(":")
    if kind == "package":
        return str(packaged.model_folder(name, field=field)), None
    if kind == "hub":
        return name, config.revision
    folder = Path(config.source)
    if not folder.is_dir():
        return config.source, config.revision
    if cache_root().resolve() in folder.resolve().parents:  # a link to what `prepare` trained
        upkeep.mark_used(folder.resolve())
    return config.source, None


def missing_package(config: ModelConfig) -> str | None:
    """What to install before the model can be loaded as it is asked for, or ``None``."""
    if config.quantisation == "none" or find_spec("bitsandbytes") is not None:
        return None
    return (
        f"model.quantisation: {config.quantisation} needs the package bitsandbytes, which is not installed here; "
        'pip install "unlearn-tune[bitsandbytes]", or leave quantisation out'
    )


def public_name(config: ModelConfig) -> str:
    """What others know the model by: its hub id, ``package:NAME``, or the folder that the user gave.

    Not the place that it is loaded from: that of a packaged model is the cache of one machine.
    """
    return config.source.removeprefix("hub:")


_TOKENIZER_FILES = ("tokenizer*.json", "*.model", "*.tiktoken", "vocab.*", "*vocab.txt")

CONTENT = "content-sha256:"
"""What the identity of a model folder begins with."""


@lru_cache
def model_identity(config: ModelConfig, commit: str | None = None) -> str:
    """What names this model: the hash of what a folder's files compute, or the commit of a hub model.

    Of a folder count: name, type, shape and bytes of every tensor; the architecture; the tokenizer; the chat
    template; the defaults of generation. What computes nothing does not: how tensors are dealt out to files,
    versions and places of origin, and how a tokenizer was loaded or last called.

    Raises:
        ModelError: If a file of the folder cannot be read as what its name says.
    """
    location, revision = locate(config)
    if not Path(location).is_dir():
        return f"{location}@{commit or revision or 'unknown'}"
    return CONTENT + _hash(_parts(Path(location)))


_ORIGIN = frozenset(
    (
        *(
            "_name_or_path",
            "_model_name_or_path",
            "name_or_path",
            "transformers_version",
            "_commit_hash",
        ),
        *(
            "_from_auto",
            "_from_model_config",
            "is_local",
            "local_files_only",
            "cache_dir",
            "force_download",
        ),
        *(
            "proxies",
            "token",
            "use_auth_token",
            "revision",
            "subfolder",
            "trust_remote_code",
            "gguf_file",
        ),
        *(
            "tokenizer_file",
            "vocab_file",
            "merges_file",
            "special_tokens_map_file",
            "processor_class",
        ),
    )
)
"""Keys that say where a file is from and how it was loaded."""
_JSON: Mapping[str, frozenset[str]] = {
    "config.json": _ORIGIN,
    "generation_config.json": _ORIGIN,
    "tokenizer_config.json": _ORIGIN,
    "tokenizer.json": frozenset({"truncation", "padding"}),  # of its last call
    "special_tokens_map.json": frozenset(),
    "added_tokens.json": frozenset(),
    "vocab.json": frozenset(),
    "chat_template.json": frozenset(),
}
"""Top-level keys of JSON files that compute nothing."""
_RAW = (
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
_CHUNK = 1 << 22


def _parts(folder: Path) -> dict[str, object]:
    """What a model folder computes with, by name."""
    parts: dict[str, object] = {}
    for name, incidental in _JSON.items():
        if (folder / name).is_file():
            values = _read_json(folder / name)
            parts[name] = {k: v for k, v in values.items() if k not in incidental}
    for pattern in _RAW:
        for path in folder.glob(pattern):
            parts[str(path.relative_to(folder))] = _hash_bytes(path)
    tensors = [found for path in folder.glob("*.safetensors") for found in _tensors(path)]
    return parts | {"tensors": sorted(tensors)}


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Name of each tensor of a safetensors file, and the hash of its type, shape and bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            places = sorted((*facts["data_offsets"], name) for name, facts in header.items())
            if any(end > path.stat().st_size - 8 - size for _, end, _ in places):
                raise ValueError("it ends before its last tensor")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
            raise ModelError(
                f"model.source: {path} is no safetensors file ({in_a_line(err)}); copy or download it again "
                "(`git lfs pull` where it came by git)"
            ) from err
        for begin, end, name in places:
            digest = hashlib.sha256(f"{header[name]['dtype']} {header[name]['shape']}".encode())
            file.seek(8 + size + begin)
            for start in range(begin, end, _CHUNK):
                digest.update(file.read(min(_CHUNK, end - start)))
            yield name, digest.hexdigest()


def _read_json(path: Path) -> dict[str, object]:
    try:
        values = read_json(path)
    except FileError as err:
        raise ModelError(f"model.source: {err}; copy or download it again") from err
    return values if isinstance(values, dict) else {"": values}


def _hash_bytes(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(parts: Mapping[str, object]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
