"""The error of a cell function that cannot become a kernel, and where in the user's code it is."""

from __future__ import annotations

import linecache
import os
import sys
from types import FrameType

import torch

__all__ = ["CellError", "cell_error", "user_frame"]

#: Code of torch and of this package is never the user's line.
_NOT_THE_USERS = (
    os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
)


class CellError(ValueError):
    """A function that cannot be a cell. The text names the function and, where known, the file and line."""


def user_frame() -> FrameType | None:
    """The innermost frame below this call that is the user's own: no file of torch or of this package.

    None where the search arrives at ``trace`` before it: the call is one of autograd's.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if not _is_ours(frame):
            return frame
        if frame.f_code.co_name == "trace" and _is_ours(frame, of_torch=False):
            return None
        frame = frame.f_back
    return None


def _is_ours(frame: FrameType, of_torch: bool = True) -> bool:
    file = os.path.abspath(frame.f_code.co_filename)
    return file.startswith(_NOT_THE_USERS if of_torch else _NOT_THE_USERS[1])


def cell_error(
    name: str, text: str, *, frame: FrameType | None = None, raised: BaseException | None = None
) -> CellError:
    """A CellError about the cell function ``name``.

    It points at the line that ``frame`` runs, or at the user's innermost line that ``raised`` went through.
    """
    where = f"cell function {name!r}: {text}"
    line = frame.f_lineno if frame is not None else 0
    step = raised.__traceback__ if raised is not None else None
    while step is not None:
        if not _is_ours(step.tb_frame):
            frame, line = step.tb_frame, step.tb_lineno
        step = step.tb_next
    if frame is None:
        return CellError(where)
    file = frame.f_code.co_filename
    source = linecache.getline(file, line, frame.f_globals).strip()
    return CellError(f"{file}:{line}: {where}" + (f"\n    {source}" if source else ""))
