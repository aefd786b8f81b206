"""One progress bar for all loops, with the numbers that matter behind it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

# In a log file every refresh is a line of its own: a few a minute there, several a second on a terminal.
_INTERVAL = 0.2 if sys.stderr.isatty() else 20.0


def track(items: Iterable[Any], **options: Any) -> tqdm:
    """`tqdm(items, **options)` in the width and rhythm of these examples; `options` as tqdm has them."""
    return tqdm(items, dynamic_ncols=True, mininterval=_INTERVAL, **options)


class Bar:
    """A bar towards `total` (steps, or seconds of a time budget); `update` takes where the loop is now.

    >>> with Bar(1000, "training", unit="step") as bar:
    ...     bar.update(10, "2.31 bits per character, 35.1k characters/s")
    """

    def __init__(self, total: float, description: str, unit: str) -> None:
        layout = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} " + unit + "{postfix}"
        self._bar = tqdm(
            total=total, desc=description, bar_format=layout, dynamic_ncols=True, mininterval=_INTERVAL
        )

    def update(self, position: float, numbers: str = "") -> None:
        """Moves the bar to `position` (never past its end) and shows `numbers` behind it."""
        self._bar.set_postfix_str(numbers, refresh=False)
        self._bar.update(max(0.0, min(position, self._bar.total) - self._bar.n))

    def write(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(text)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.refresh()
        self._bar.close()


def thousands(rate: float) -> str:
    """`34567.0` as `34.6k`."""
    return f"{rate / 1000:.1f}k" if rate >= 1000 else f"{rate:.0f}"
