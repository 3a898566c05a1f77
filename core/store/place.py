"""Where the cache of shared work lies. Apart from the cache itself, so that looking imports no torch."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "UNLEARN_TUNE_CACHE"
"""Environment variable that names the cache folder."""


def cache_root() -> Path:
    """``$UNLEARN_TUNE_CACHE``, or the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given or platformdirs.user_cache_dir("unlearn-tune")).absolute()
