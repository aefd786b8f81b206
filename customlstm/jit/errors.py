"""The error of a cell function that cannot become a kernel, and where in the user's code it is."""

from __future__ import annotations

import inspect
import linecache
import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch

__all__ = ["CellError", "Place", "cell_error", "place_of", "user_frame"]

#: Code of torch and of this package is never the user's line.
_NOT_THE_USERS = (
    os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
)


class CellError(ValueError):
    """A function that cannot be a cell. The text names the function and, where known, the file and line."""


class Place(NamedTuple):
    """A line of a user's file."""

    file: str
    line: int
    source: str


def place_of(function: Callable[..., Any]) -> Place | None:
    """The line with the ``def`` or ``lambda`` of a function; None for what is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType):
        return None
    file, line = code.co_filename, code.co_firstlineno
    source = linecache.getline(file, line).strip()
    # What Python counts as the first line is that of the first decorator.
    while source and not source.startswith(("def ", "async def ")) and code.co_name != "<lambda>":
        line += 1
        source = linecache.getline(file, line).strip()
    return Place(file, line, source) if source else Place(file, code.co_firstlineno, "")


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
    name: str,
    text: str,
    *,
    place: Place | None = None,
    frame: FrameType | None = None,
    raised: BaseException | None = None,
) -> CellError:
    """A CellError about the cell function ``name``.

    It points at the line that ``frame`` runs, or at the user's innermost line that ``raised`` went through,
    or else at ``place``, where the function begins.
    """
    line = frame.f_lineno if frame is not None else 0
    step = raised.__traceback__ if raised is not None else None
    while step is not None:
        if not _is_ours(step.tb_frame):
            frame, line = step.tb_frame, step.tb_lineno
        step = step.tb_next
    if frame is not None:
        file = frame.f_code.co_filename
        place = Place(file, line, linecache.getline(file, line, frame.f_globals).strip())
    what = f"cell function {name!r}: {text}"
    if place is None:
        return CellError(what)
    return CellError(f"{place.file}:{place.line}: {what}" + (f"\n    {place.source}" if place.source else ""))
