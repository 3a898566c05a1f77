"""Write the locks with hashes beside this file from ``requirements.lock``: ``python locks/write.py``.

``linux.txt`` has every pin of ``requirements.lock`` with the hash of each file that the package index serves of that
version, whatever the platform; ``cuda.txt`` what the CUDA build of torch asks for beside, and ``build.txt`` what sdists
are built with. Needs uv, and the index; no package is downloaded.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
PINS: Final = HERE.parent / "requirements.lock"

OTHER_BUILDS: Final[Mapping[str, Mapping[str, str]]] = {
    "torch==2.13.0": {
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b": (
            "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
        ),
    },
}
"""Files of a pinned version that the package index does not serve, and their hashes, taken from the files themselves.

The CPU builds of torch come from another index; that of Python 3.11 on x86-64 is known here.
"""

_PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def main() -> None:
    """Write the three files."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{HERE.parent / '.venv-tools/bin'}")
    uv = uv or shutil.which("uv")
    if uv is None:
        sys.exit("error: uv: needed to ask the index for hashes; run `make tools`")
    pinned = _compiled(uv, PINS.read_text(encoding="utf-8"), "--no-deps", "--generate-hashes")
    everything = _compiled(uv, PINS.read_text(encoding="utf-8"))
    known = _names(pinned)
    beside = {n: f"{n}=={v}" for n, v in _pins(everything).items() if _plain(n) not in known}
    if unpinned := [n for n in beside if not _plain(n).startswith(("nvidia-", "cuda-", "triton"))]:
        sys.exit(
            f"error: {PINS.name}: lacks {', '.join(unpinned)}, which its packages need; add them"
        )
    for pin, builds in OTHER_BUILDS.items():
        if f"\n{pin} " not in f"\n{pinned}":
            sys.exit(f"error: {Path(__file__).name}: OTHER_BUILDS: {pin} is not pinned any more")
        lines = "".join(f"    --hash=sha256:{digest} \\\n" for digest in builds)
        pinned = pinned.replace(f"{pin} \\\n", f"{pin} \\\n{lines}")
    cuda = _compiled(uv, "\n".join(beside.values()), "--no-deps", "--generate-hashes")
    setuptools = re.search(r"^setuptools==(?:.*\\\n)+.*\n", pinned, re.MULTILINE)
    assert setuptools is not None
    _write("linux.txt", "every pin of requirements.lock, with the hashes of all its files", pinned)
    _write("cuda.txt", "what the CUDA build of torch needs beside linux.txt", cuda)
    _write("build.txt", "what the packages without a wheel are built with", setuptools[0])


def _compiled(uv: str, requirements: str, *options: str) -> str:
    command = [uv, "pip", "compile", "-", "--quiet", "--no-annotate", "--no-header", *_PLATFORM]
    done = subprocess.run(
        [*command, *options], input=requirements, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"error: uv: {done.stderr.strip()}")
    return done.stdout


def _pins(text: str) -> dict[str, str]:
    return {found[1]: found[2] for found in _PIN.finditer(text)}


def _names(text: str) -> set[str]:
    return {_plain(name) for name in _pins(text)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _write(name: str, what: str, text: str) -> None:
    header = f"# {name}: {what}. Written by `make hashes`; not by hand.\n"
    (HERE / name).write_text(header + text, encoding="utf-8")
    sys.stdout.write(f"{name}: {len(_pins(text))} packages\n")


if __name__ == "__main__":
    main()
