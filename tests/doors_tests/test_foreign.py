"""Whatever another's code raises becomes the user's error; what is no word on the input flies."""

from __future__ import annotations

import pytest
import torch

from core.errors import DataError, ModelError, foreign, in_a_line


class LibraryError(Exception):
    """An error of a kind that no list has."""


def refused(err: Exception) -> Exception:
    return DataError(f"row 1: {in_a_line(err)}; change it")


@pytest.mark.parametrize(
    ("err", "message"),
    [
        pytest.param(ValueError("no number"), "row 1: no number; change it", id="value"),
        pytest.param(OSError(2, "gone", "x"), r"row 1: \[Errno 2\] gone: 'x'; change it", id="os"),
        pytest.param(KeyError("x"), "row 1: KeyError: 'x'; change it", id="key"),
        pytest.param(
            AttributeError("no y"), "row 1: AttributeError: no y; change it", id="attribute"
        ),
        pytest.param(ImportError("no z"), "row 1: ImportError: no z; change it", id="import"),
        pytest.param(StopIteration(), "row 1: StopIteration; change it", id="silent"),
        pytest.param(LibraryError("a\nb"), "row 1: LibraryError: a; change it", id="own-kind"),
    ],
)
def test_an_error_of_any_kind_is_said_in_a_line(err: Exception, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}$") as caught, foreign(refused):
        raise err
    assert caught.value.__cause__ is err


@pytest.mark.parametrize(
    "err",
    [
        pytest.param(ModelError("model.source: no"), id="already-a-user's"),
        pytest.param(MemoryError(), id="memory"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), id="gpu-memory"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory"), id="cpu-memory"),
        pytest.param(KeyboardInterrupt(), id="interrupt"),
    ],
)
def test_what_is_no_word_on_the_input_flies(err: BaseException) -> None:
    with pytest.raises(type(err)) as caught, foreign(refused):
        raise err
    assert caught.value is err
