"""What a cell function takes: gates and states by position, per-unit parameters by keyword."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..limits import MAX_GATES, MAX_PARAMETERS, MAX_STATES
from .errors import CellError, Place, cell_error, place_of

__all__ = ["Signature", "read_signature"]

_EXAMPLE = "def cell(i, f, g, o, c, *, p=0.0): ... return h, c"


@dataclass(frozen=True)
class Signature:
    """Names of a cell function's arguments; which positional ones are states shows in what it returns."""

    name: str
    positional: tuple[str, ...]
    parameters: tuple[str, ...]
    defaults: tuple[float | None, ...]
    place: Place | None = None

    def error(self, text: str, raised: BaseException | None = None) -> CellError:
        """What is wrong with the function as a whole, or where ``raised`` came from."""
        return cell_error(self.name, text, place=self.place, raised=raised)


def read_signature(function: Callable[..., Any]) -> Signature:
    """Reads and checks the signature.

    Raises:
        TypeError: not a function.
        CellError: a signature that no cell has.
    """
    if not callable(function):
        raise TypeError(f"function must be a function of tensors, got {type(function).__name__}")
    name = getattr(function, "__name__", type(function).__name__)
    place = place_of(function)
    wrong = functools.partial(cell_error, name, place=place)
    _check_kind(function, wrong)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError) as error:
        raise wrong(f"its arguments cannot be read; write it in Python, as {_EXAMPLE}") from error
    positional, keyword_only, defaults = [], [], []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise wrong(
                f"it takes {stars}{parameter.name}, but a cell has a fixed number of arguments; name each "
                f"gate and state, and each parameter after a *: {_EXAMPLE}",
            )
        if parameter.kind is parameter.KEYWORD_ONLY:
            keyword_only.append(parameter.name)
            defaults.append(_default(parameter, wrong))
        elif parameter.default is not parameter.empty:
            raise wrong(
                f"the positional argument {parameter.name!r} has the default {parameter.default!r}, but "
                "gates and states are always given; write it without a default or, for a parameter with "
                f"one value a unit, after a *: {_EXAMPLE}",
            )
        else:
            positional.append(parameter.name)
    if len(keyword_only) > MAX_PARAMETERS:
        raise wrong(
            f"it has {len(keyword_only)} keyword-only parameters, but a cell may have at most "
            f"{MAX_PARAMETERS}; "
            "merge some, or write numbers that are not learned as Python numbers",
        )
    if not 2 <= len(positional) <= MAX_GATES + MAX_STATES:
        got = f"{len(positional)} ({', '.join(positional)})" if positional else "none"
        raise wrong(
            f"a cell takes 1 to {MAX_GATES} gates and then 1 to {MAX_STATES} states as positional "
            f"arguments, got {got}; write it as {_EXAMPLE}",
        )
    return Signature(name, tuple(positional), tuple(keyword_only), tuple(defaults), place)


def _check_kind(function: Callable[..., Any], wrong: Callable[[str], CellError]) -> None:
    kinds = [
        (inspect.iscoroutinefunction, "an async function"),
        (inspect.isasyncgenfunction, "an async generator function"),
        (inspect.isgeneratorfunction, "a generator function"),
    ]
    for test, kind in kinds:
        if test(function):
            raise wrong(
                f"it is {kind}, but a cell must return h and its new states at once; write {_EXAMPLE}"
            )


def _default(parameter: inspect.Parameter, wrong: Callable[[str], CellError]) -> float | None:
    value = parameter.default
    if value is parameter.empty:
        return None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise wrong(
        f"the parameter {parameter.name!r} has the default {value!r} ({type(value).__name__}), but a "
        "default is the number that every unit starts with; write a Python number or no default",
    )
