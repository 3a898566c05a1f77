"""Two processes that meet, as the ranks of a trial do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import multiprocessing

from core.training.ranks import Rendezvous

ROOT = Path(__file__).resolve().parents[1]


def spawned(function: Callable[..., None], *args: Any) -> None:
    """Run ``function(rank, host, port, *args)`` in two processes."""
    meeting = Rendezvous(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # the new processes import the test's module by its name
        patch.setattr(sys, "argv", sys.argv[:1])
        multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            function, args=(meeting.host, meeting.port, *args), nprocs=2
        )
