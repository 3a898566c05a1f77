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
        UserError: If the variable is absent and this user has no home folder, as in some containers.
    """
    given = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(given or platformdirs.user_cache_dir("unlearn-tune")).absolute()
    except RuntimeError as err:
        raise UserError(
            f"{CACHE_VARIABLE}: the cache lies in the home folder unless this variable names another, and user "
            f"{os.getuid()} has no home folder; set it to a folder that can be written"
        ) from err


def below_home(name: str) -> Path:
    """A file below the user's home; one that is never there if the user has none."""
    return Path(os.path.expanduser(f"~/{name}"))  # noqa: PTH111 - pathlib's raises without a home
