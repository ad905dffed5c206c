"""Files appear whole or not at all: written beside their final name, then renamed."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

__all__ = ["replacing", "replacing_folder"]

PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG)


def _beside(path: Path) -> Path:
    """A name in the same folder (so that renaming is atomic) with the same suffix (writers look at it)."""
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


def _sweep(path: Path) -> None:
    """Removes what a process that was killed left beside `path`."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*.part{glob.escape(path.suffix)}"):
        pid = left.name.removesuffix(path.suffix).removesuffix(".part").rpartition(".")[2]
        if pid.isdecimal() and (int(pid) == os.getpid() or not _runs(int(pid))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write; renames it to `path` on success, removes it on failure.

    `InputError` where the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary = _beside(path)
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder", str(path))
    try:
        with _told(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """The same for a folder. An existing one that is not empty is refused unless `overwrite`."""
    path = Path(path)
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} to be new or empty", "one with files in it", "choose another name or say overwrite")
    temporary = _beside(path)
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.mkdir()
    try:
        with _told(path):
            yield temporary
            old = _beside(path).with_suffix(".old")
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """The operating system's refusals in the three parts of an `InputError`."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"to be allowed to write {path}", f"'{error.strerror}'", "choose a folder of your own") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"room on the disk for {path}", "a full disk", "free some space; nothing half-written was left"
            ) from error
        if error.errno in PLACE:
            raise InputError(
                f"a writable place at {path}", f"'{error.strerror}' at {error.filename}", "choose another name"
            ) from error
        raise
