"""What a user calls the values of a cell function: read from its source, for readable generated code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

__all__ = ["assignments"]


def assignments(function: Callable[..., Any]) -> list[tuple[int, int, str]]:
    """First line, last line and name of every assignment of one value to one name, if there is a source."""
    try:
        lines, start = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or a lambda in the midst of an expression
        return []
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    begun = [node.lineno for node in statements]
    found = []
    for node in statements:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) or len(targets) != 1:
            continue
        if begun.count(node.lineno) > 1:  # a; b on one line: which of them made a value is not known
            continue
        if isinstance(targets[0], ast.Name) and targets[0].id.isascii() and len(targets[0].id) <= 40:
            found.append((node.lineno + start - 1, node.end_lineno + start - 1, targets[0].id))
    return found
