"""One error for everything a person can get wrong: what was expected, what came, what to do. And one for a notebook that failed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """Bad input, said in three parts. The command line prints it and exits with 2.

    >>> raise InputError("an object id from 1 to 255", 300, "number the objects from 1")
    Traceback (most recent call last):
    vosnb.errors.InputError: expected an object id from 1 to 255; got 300; number the objects from 1
    """

    def __init__(self, expected: str, got: object, do: str):
        super().__init__(f"expected {expected}; got {got}; {do}")
        self.expected, self.got, self.do = expected, got, do


class RunFailed(RuntimeError):
    """A cell raised, or the kernel died.

    `notebook` is the executed notebook, kept; `cell` counts its code cells from 1; `reason` is the exception's line.
    """

    def __init__(self, notebook: Path, cell: int | None, reason: str):
        where = f"code cell {cell}" if cell else "the kernel"
        super().__init__(f"{notebook.name} stopped in {where}: {reason}; it is kept, as far as it came, at {notebook}")
        self.notebook, self.cell, self.reason = notebook, cell, reason


def few(things: Iterable[object]) -> str:
    """'a, b, c, d and 7 more', for errors and notes."""
    things = list(things)
    return ", ".join(map(str, things[:4])) + (f" and {len(things) - 4} more" if len(things) > 4 else "")
