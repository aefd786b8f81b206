"""What every build is made of, for whatever compiler: generated sources, and the package's headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import headers
from .build_error import HeadersChangedError
from .entries import digest

__all__ = ["Ingredients"]


class Ingredients:
    """Sources, and the headers that they may include as these were when this was made.

    Args:
        sources: file name -> text.
        includes: the folder of the headers.
        parts: of that folder, what may be included.
    """

    def __init__(
        self, sources: Mapping[str, str], includes: Path, parts: Sequence[str] = headers.CPU
    ) -> None:
        self._sources, self._includes, self._parts = sources, includes, parts
        self._headers = headers.digests(includes, parts)

    def inputs(self) -> dict[str, Any]:
        """What :meth:`customlstm.jit.cache.Builder.inputs` has of them."""
        from .. import __version__  # not at the top: this may be imported while the package is
        from .._binary import INTERFACE

        return {
            "customlstm": __version__,
            "interface": INTERFACE,
            "sources": {name: digest(text) for name, text in self._sources.items()},
            "headers": self._headers,
        }

    def check_unchanged(self, subject: str) -> None:
        """After a build: published, it would pass for a build of headers that it was not made from.

        Raises:
            HeadersChangedError: they are not those of :meth:`inputs` any more.
        """
        if headers.digests(self._includes, self._parts) != self._headers:
            raise HeadersChangedError(
                f"headers below {self._includes} changed while {subject} was compiled. Call again"
            )
