"""What building can end with, apart from a library."""

from __future__ import annotations

from pathlib import Path


class BuildError(RuntimeError):
    """Code was not built, and no earlier build of it can be used. The text says why, and what to do.

    Attributes:
        log: the complete output of the compiler, a file that is kept; None where no compiler ran.
    """

    def __init__(self, text: str, log: Path | None = None) -> None:
        super().__init__(text)
        self.log = log

    def __reduce__(self) -> tuple[object, ...]:  # args alone, which pickle goes by, would lose the log
        return (type(self), (str(self), self.log))

    def again(self) -> BuildError:
        """A new exception that says the same: one raised twice would collect the tracebacks of both."""
        return type(self)(str(self), self.log)


class NoCompilerError(BuildError):
    """There is no compiler, or what is named as one does not work."""


class BuildDisabledError(BuildError):
    """CUSTOMLSTM_JIT=0, and the cache holds no build."""


class UnsafeFolderError(BuildError):
    """Another user could change what lies in the cache folder."""


class HeadersChangedError(BuildError):
    """The package's headers changed during a build, which says nothing of the next attempt."""


class CacheWarning(UserWarning):
    """Something in the cache, or about its folder, is not as it should be; there is a build all the same."""
