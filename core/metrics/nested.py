"""Drops estimated from a part of a set's rows: in which order rows are read, and how sure the estimate is.

Plain numbers, no tensors. Shapes: n rows read, of N.
"""

import math
import random
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.special import stdtrit

from core.metrics.intervals import Interval, Sums, Values
from core.metrics.probes import Level, level
from core.seeding import derive_seed

DECISIVE: Final = 0.99
"""Confidence of the interval that decides. Each stage is another chance to be wrong, so that 0.95 is too little: on
recorded trials it changed 3 outcomes in 100, and 0.99 none for a fiftieth more rows."""

SIZES: Final = (4, 8, 16, 28, 48)
"""Rows read at first, then in all; beyond the last, each is about 5/3 of the one before."""

NLL, CORRECT, TOKENS = 0, 1, 2


def nested_order(n_rows: int, identity: str) -> tuple[int, ...]:
    """Places of a set's rows in the order in which they are read: a shuffle that the rows themselves determine.

    Args:
        n_rows: N.
        identity: Hash of the rows; every trial and rank that has the same rows reads the same ones first, so
            that trials are compared on the same rows.
    """
    places = list(range(n_rows))
    random.Random(derive_seed(0, "nested rows", identity)).shuffle(places)  # noqa: S311
    return tuple(places)


def next_size(n_read: int, n_rows: int) -> int:
    """Rows read in all after the next stage: the first size above ``n_read``, at most all ``n_rows``.

    A remainder smaller than half of what is read is taken along: another stage would cost more than it saves.
    """
    size = next((size for size in SIZES if size > n_read), n_read * 5 // 3)
    return n_rows if n_rows < 1.5 * size else size


def estimated_level(now: Sums, before: Sums, whole: Level) -> Level:
    """A set's level from a part of its rows: the whole set's before, and the paired change of those read.

    Args:
        now: Row sums of the rows read under the model being unlearned.
        before: The same under the target model.
        whole: Level of all rows under the target model.
    """
    here, then = level(now), level(before)
    return Level(
        nll=whole.nll + (here.nll - then.nll),
        accuracy=whole.accuracy + (here.accuracy - then.accuracy),
    )


def drop_interval(now: Sums, before: Sums, *, n_rows: int, column: int = NLL) -> Interval:
    r"""99 % interval of a set's drop in nats per token, or of its fall of accuracy, from a part of its rows.

    With :math:`x_i` the change of row i and :math:`t_i` its tokens, the drop is a ratio of sums, and its
    variance, to first order and for rows drawn without replacement,

    .. math::
        \hat d = \frac{\sum x_i}{\sum t_i}, \qquad
        \hat v = \Bigl(1 - \frac nN\Bigr) \frac{n}{(\sum t_i)^2} \cdot
            \frac{\sum (x_i - \hat d \, t_i)^2}{n - 1}

    and the interval is :math:`\hat d \pm t_{n-1} \sqrt{\hat v}`. It is about *these N rows*, not the texts that
    they stand for: with all of them read it has no width.

    Args:
        now: Row sums of the rows read under the model being unlearned, ``(n, 3)``.
        before: The same under the target model.
        n_rows: N.
        column: :data:`NLL`, or :data:`CORRECT` for the fall of the share of correct tokens.

    Returns:
        Lower and upper end; infinite with one row of several, NaN where a sum is.

    References:
        Cochran, "Sampling Techniques", 3rd edition, 1977, sections 2.6 and 6.4.
    """
    sign = 1.0 if column == NLL else -1.0
    changes = sign * (now[:, column] - before[:, column])
    tokens = now[:, TOKENS]
    n, total = len(tokens), float(tokens.sum())
    drop = float(changes.sum()) / total
    if n == n_rows or math.isnan(drop):
        return drop, drop
    if n == 1:
        return -math.inf, math.inf
    rest: Values = changes - drop * tokens
    variance = (1.0 - n / n_rows) * n / total**2 * float(np.square(rest).sum()) / (n - 1)
    reach = float(stdtrit(n - 1, (1.0 + DECISIVE) / 2.0)) * math.sqrt(variance)
    return drop - reach, drop + reach


def decides(interval: Interval, bounds: Sequence[float]) -> bool:
    """Whether an interval lies on one side of each bound; one that is no number decides nothing."""
    low, high = interval
    return all(high < bound or low > bound for bound in bounds)
