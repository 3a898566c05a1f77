"""Where the cache of shared work lies. Apart from the cache itself, so that looking imports no torch."""

import os
from pathlib import Path

import platformdirs

from core.errors import UserError

CACHE_VARIABLE = "UNLEARN_TUNE_CACHE"
"""Environment variable that names the cache folder."""


def cache_root() -> Path:
    """``$UNLEARN_TUNE_CACHE``, or the user's cache folder.

    Raises:
        UserError: If the user has no home, as in a container under a number that nobody has.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).absolute()
    try:
        return Path(platformdirs.user_cache_dir("unlearn-tune")).absolute()
    except RuntimeError as err:
        raise UserError(
            f"the user {os.getuid()} has no home folder for the cache; set {CACHE_VARIABLE}, or HOME, to a folder "
            "that this user can write"
        ) from err


def below_home(name: str) -> Path:
    """A file below the user's home; one that is never there if the user has none."""
    return Path(os.path.expanduser(f"~/{name}"))  # noqa: PTH111 - pathlib's raises without a home
