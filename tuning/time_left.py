"""How long a sweep will still take."""

from collections.abc import Sequence


def time_left_s(
    durations: Sequence[float], *, waiting: int, running: int, at_once: int
) -> float | None:
    """Seconds until the last trial ends, if the others take as long as the mean of those that ended.

    A running trial counts as half done, and ``at_once`` trials share the time. What has passed by the
    clock does not enter: while the first trials run side by side, elapsed time over finished trials
    is up to ``at_once`` times the time that a trial really adds.

    Args:
        durations: Seconds of each trial that ended.
        waiting: Trials that have not begun.
        running: Trials that have begun and not ended.
        at_once: Trials that run at the same time; at least 1.

    Returns:
        0 when nothing is left; ``None`` before the first trial ended.
    """
    if not waiting and not running:
        return 0.0
    if not durations:
        return None
    mean = sum(durations) / len(durations)
    return mean * (waiting + 0.5 * running) / at_once
