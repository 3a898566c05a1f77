"""Read a preparation file, make its models, and say how well they know both sets."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from core.config import PreparationConfig, describe_problems, with_numbers
from core.errors import ConfigError, UserError
from core.store.place import cache_root
from tuning.data_words import count_lines
from tuning.files import read_specification

if TYPE_CHECKING:
    from core.metrics.probes import Level

TOLD_EVERY = 20
"""Steps between two lines of progress."""


def load_preparation(path: Path, *, overrides: Mapping[str, Any]) -> PreparationConfig:
    """Read and check a preparation file; relative paths in it become absolute.

    Raises:
        ConfigError: With every problem at once.
    """
    try:
        values = read_specification(path, overrides)
        return PreparationConfig.model_validate(with_numbers(values, PreparationConfig))
    except ValidationError as err:
        raise ConfigError(str(path), describe_problems(err, PreparationConfig)) from err


def prepare_models(
    config: PreparationConfig,
    *,
    which: Literal["both", "target", "retain_only"],
    out: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Make the models, or find them in the cache.

    Args:
        config: What is made.
        which: One of them, or both.
        out: Folder that gets a link to each, ``target`` and ``retain_only``; none if absent.
        say: Told of the progress.

    Returns:
        For each model its folder and its levels on both sets.
    """
    from core.preparation import prepare_model

    names: tuple[Literal["target", "retain_only"], ...] = (
        ("target", "retain_only") if which == "both" else (which,)
    )
    if out is not None:
        for name in names:
            _refuse_other(out / name)
    found: dict[str, Any] = {}
    for name in names:
        say(f"{name}: preparing")

        def tell(step: int, of: int, loss: float, name: str = name) -> None:
            if step % TOLD_EVERY == 0 or step in (1, of):
                say(f"{name}: step {step}/{of}  loss {loss:.3f} nats per token")

        made = prepare_model(config, name, tell=tell)
        if not found:  # both models are about the same rows
            for line in count_lines(made.counts):
                say(line)
        found[name] = {
            "folder": str(made.folder),
            "forget": _plain(made.forget),
            "retain": _plain(made.retain),
        }
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / name).unlink(missing_ok=True)
            (out / name).symlink_to(made.folder, target_is_directory=True)
    return found


def _refuse_other(link: Path) -> None:
    if link.parent.exists() and not link.parent.is_dir():
        raise UserError(f"--out: {link.parent} is a file; give a folder")
    is_ours = link.is_symlink() and link.readlink().parent == cache_root() / "prepared"
    if (link.exists() or link.is_symlink()) and not is_ours:
        raise UserError(f"--out: {link} exists and is no link of ours; give another folder")


def _plain(level: "Level") -> dict[str, float]:
    return {"nll": level.nll, "accuracy": level.accuracy}
