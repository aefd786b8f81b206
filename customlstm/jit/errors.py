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
        file = os.path.abspath(frame.f_code.co_filename)
        if not file.startswith(_NOT_THE_USERS):
            return frame
        if file.startswith(_NOT_THE_USERS[1]) and frame.f_code.co_name == "trace":
            return None
        frame = frame.f_back
    return None


def cell_error(name: str, text: str, *, frame: FrameType | None = None) -> CellError:
    """A CellError about the cell function ``name``, which points at the line that ``frame`` runs."""
    where = f"cell function {name!r}: {text}"
    if frame is None:
        return CellError(where)
    file, line = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(file, line, frame.f_globals).strip()
    return CellError(f"{file}:{line}: {where}" + (f"\n    {source}" if source else ""))
