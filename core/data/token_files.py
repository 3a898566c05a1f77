"""Rows of token ids in a ``.npy`` file, read without ever unpickling anything."""

from collections.abc import Iterator
from pathlib import Path

from core.errors import DataError


def read_token_array(path: Path, *, where: str) -> Iterator[tuple[int, ...]]:
    """Rows of an integer array ``(N, T)``: sequences that are already tokenised, all of one length.

    The layout of the Training Data Extraction Challenge, whose sequences are 200 tokens of GPT-Neo.

    Args:
        path: The ``.npy`` file.
        where: Place in the configuration, for messages.

    Yields:
        The ids of one row after the other.

    Raises:
        DataError: If the file is no ``.npy`` file, holds something other than such an array, is shorter or
            longer than its header says, or an id is negative.
    """
    import numpy as np  # validate answers without it

    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ValueError(f"version {version[0]}.{version[1]} of the format")
            shape, _, dtype = read_header(file)
        except ValueError as err:
            raise DataError(f"{where}: {path} is not a .npy file of numbers: {err}") from err
        if dtype.kind not in "iu" or len(shape) != 2:
            raise DataError(
                f"{where}: {path}: an integer array of shape (rows, tokens) expected, got {dtype} of "
                f"shape {shape}"
            )
        expected = file.tell() + shape[0] * shape[1] * dtype.itemsize
        size = path.stat().st_size
        if size != expected:
            raise DataError(
                f"{where}: {path}: its header promises {expected} bytes, the file has {size}; copy it again"
            )
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
    for number, row in enumerate(array.tolist(), start=1):
        if min(row, default=0) < 0:
            raise DataError(f"{where}: {path} row {number}: token ids start at 0, got {min(row)}")
        yield tuple(row)
