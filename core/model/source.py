"""Where a model comes from, and what names its weights. Imports no torch."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from core.config import ModelConfig
from core.errors import ModelError
from core.model import packaged


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
