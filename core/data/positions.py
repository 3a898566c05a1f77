"""Rows that are longer than a model with a table of positions can read."""

from collections.abc import Iterable, Sequence

from core.data.tokens import TokenisedRow, TokenRow
from core.errors import DataError


def refuse_long(rows: Iterable[TokenisedRow], positions: int | None, *, role: str) -> None:
    """Refuse rows of a role that the model has no positions for.

    Args:
        rows: Rows, cut as the role's source says.
        positions: Of the model; nothing is refused if absent.
        role: ``forget``, ``retain`` and so on.

    Raises:
        DataError: With the row, its tokens and the model's positions.
    """
    for row in rows:
        longest = max((len(piece.ids) for piece in row.pieces), default=0)
        if positions is not None and longest > positions:
            raise DataError(
                f"data.{role}: {row.row.place or repr(row.row.answer[:60])} has {longest} tokens after cutting, and "
                f"the model has {positions} positions; lower data.{role}.max_tokens to {positions}"
            )


def refuse_long_pieces(rows: Sequence[TokenRow], positions: int | None, *, what: str) -> None:
    """Refuse rows that were put together from others, such as a question with each of its choices.

    Args:
        rows: Token ids.
        positions: Of the model; nothing is refused if absent.
        what: What they are, for the message.

    Raises:
        DataError: With the longest one's tokens and the model's positions.
    """
    longest = max((len(row.ids) for row in rows), default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"{what}: a row has {longest} tokens, and the model has {positions} positions; lower max_tokens to "
            f"{positions}, or leave longer rows out"
        )
