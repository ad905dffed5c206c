"""Progress that suits where it is shown: a bar in a terminal, a widget in a live notebook, a few plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

__all__ = ["progress", "say"]


def progress(
    items: Iterable[T], total: int | None = None, label: str = "", unit: str = "frame", show: bool = True
) -> Iterator[T]:
    """Passes `items` through and shows how far it is. Set `VOSNB_HEADLESS=1` for plain lines (the notebook runner does)."""
    if not show:
        yield from items
    elif not os.environ.get("VOSNB_HEADLESS") and (_in_notebook() or sys.stderr.isatty()):
        from tqdm.auto import tqdm

        yield from tqdm(items, total=total, desc=label, unit=unit, mininterval=0.1)
    else:
        yield from _lines(items, total, label, unit)


def say(line: str) -> None:
    """A remark: below the cell in a notebook, beside the results elsewhere."""
    print(line, file=sys.stdout if _in_notebook() else sys.stderr, flush=True)


def _in_notebook() -> bool:
    """Whether a kernel runs this (merely having imported ipykernel is not enough)."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def _lines(items: Iterable[T], total: int | None, label: str, unit: str, every: float = 10.0) -> Iterator[T]:
    """A line every ten seconds and one at the end, where the whole took over two seconds."""
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every:
            last = now
            print(
                f"{label}: {done}{'/' + str(total) if total else ''} {unit}s, {_pace(done, now - start)}",
                file=sys.stderr,
                flush=True,
            )
    seconds = time.monotonic() - start
    if seconds > 2:
        print(f"{label}: {done} {unit}s in {seconds:.1f} s", file=sys.stderr, flush=True)


def _pace(done: int, seconds: float) -> str:
    return f"{done / seconds:.1f}/s" if done > seconds else f"{seconds / done:.1f} s each"
