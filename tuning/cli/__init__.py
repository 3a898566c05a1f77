"""The command line. Results go to stdout, everything else to stderr.

Nothing heavy is imported at the top: ``--help``, ``status``, ``best`` and ``validate`` answer at once. A module here
holds the verbs of one group, which are the application's once it is imported.
"""

import io
import os
import sys

from core.errors import EndedError, UserError, readable
from core.store.ballast import is_full
from core.store.refusal import refusal
from tuning.cli.application import FAILED, REFUSED, app, say
from tuning.surroundings import SPIN, begin_in_utf8, without_carriage_returns

# isort: off
# In the order in which --help lists their verbs.
from tuning.cli import sweeps
from tuning.cli import mending
from tuning.cli import results
from tuning.cli import models
from tuning.cli import reproducing
from tuning.cli import checks
from tuning.cli import clusters
# isort: on

__all__ = [
    "app",
    "checks",
    "clusters",
    "main",
    "mending",
    "models",
    "reproducing",
    "results",
    "sweeps",
]


def main() -> None:
    """Entry point: a user's mistake ends with status 2 and without a traceback."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read once, when torch is loaded
    begin_in_utf8()
    without_carriage_returns()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a sign that the terminal has not is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as err:
        say(f"error: {readable(err)}")
        sys.exit(REFUSED)
    except EndedError as err:
        say(f"error: {err}")
        sys.exit(FAILED)
    except OSError as err:
        if is_full(err):
            say(
                f"error: the disk is full, or the quota used up ({err.filename}); nothing finished is lost. Free some "
                "space, then go on with: unlearn-tune resume RUN"
            )
            sys.exit(FAILED)
        said = refusal(err)
        if said is None:
            raise
        say(f"error: {said}")
        sys.exit(REFUSED)
