"""Files appear whole or not at all: written beside their final name, then renamed."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from .errors import InputError

__all__ = [
    "check_new", "check_result", "frame_numbers", "missing", "natural", "pngs", "replacing", "replacing_folder", "replacing_parts", "runs",
    "scratch",
]  # fmt: skip

HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "host"
_count = count()
PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG)


def natural(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts frames and their masks alike: img2 before img10, whatever the case and the suffix."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], path.stem


def pngs(folder: Path) -> list[Path]:
    """Its PNGs, without what other systems hide (._00000.png)."""
    return [file for file in folder.iterdir() if file.suffix.lower() == ".png" and not file.name.startswith(".")]


def frame_numbers(names: Sequence[str]) -> list[int]:
    """The numbers that frames are called by, 00000, 00005, …; where a name is none, their places from 0."""
    return [int(name) for name in names] if all(name.isdecimal() for name in names) else list(range(len(names)))


def check_result(path: Path | None, suffixes: tuple[str, ...], *sources: str | Path | None) -> None:
    """Before any work: `InputError` where a result has a suffix that we do not write, or would replace what it is made of."""
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError("a name that ends in " + ", ".join(suffixes), path, "choose such a name for the result")
    for source in filter(None, sources):
        used = Path(source).resolve()
        if path.resolve() in (used, *used.parents):
            raise InputError("a place of its own for the result", f"{path}, which is or holds {source}", "choose another name")


def missing(path: str | Path) -> str:
    """What to do about a path that is not there."""
    made_by_demo = Path(path).parts[:2] == ("runs", "demo")  # the notebooks' defaults
    return "run `make demo` first: it makes this" if made_by_demo else "check the path"


def check_new(path: str | Path | None, overwrite: bool) -> None:
    """Before any work: `InputError` where a file is there already and may not be replaced."""
    if path is not None and Path(path).exists() and not overwrite:
        raise InputError(f"{path} to be new", "an existing file", "choose another name, or say overwrite=True")


def _beside(path: Path, suffix: str | None = None) -> Path:
    """A new name in the same folder (so that renaming is atomic) with the same suffix (writers look at it) or the one given."""
    suffix = path.suffix if suffix is None else suffix
    return path.with_name(f".{path.stem}.{HOST}-{os.getpid()}-{next(_count)}.part{suffix}")


def _sweep(path: Path) -> None:
    """Removes what a process of this machine that was killed left beside `path`."""
    left_over = re.compile(rf"\.{re.escape(path.stem)}\.{re.escape(HOST)}-(\d+)-\d+\.part({re.escape(path.suffix)})?")
    for left in path.parent.iterdir():
        match = left_over.fullmatch(left.name)
        if match and int(match[1]) != os.getpid() and not runs(int(match[1])):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def runs(pid: int) -> bool:
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
def scratch(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path`, for what its making needs; removed at the end, or by the next making after a kill."""
    folder = _beside(Path(path), "")
    with _told(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """The same for a folder. An existing one that is not empty is refused unless `overwrite`."""
    shown, path = path, Path(path).resolve()  # a link to a folder stays one
    if Path.cwd().is_relative_to(path):
        raise InputError(
            "a folder other than the current one or one around it", shown, "choose another name: it is replaced as a whole"
        )
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{shown} to be new or empty", "one with files in it", "choose another name, or say overwrite=True")
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
def replacing_parts(folder: str | Path, parts: Sequence[str], overwrite: bool = False) -> Iterator[Path]:
    """The same for `parts`, files and folders in a folder that may hold others: yields a folder to make them in; then they take their
    places, all or, on failure, none. Those that are there already are refused unless `overwrite`."""
    folder = Path(folder)
    if there := [part for part in parts if (folder / part).exists() and not overwrite]:
        raise InputError(
            f"{folder} to be without {', '.join(there)}", "one with it", "choose another name, or say overwrite=True"
        )
    new = not folder.exists()
    try:
        with scratch(folder / "parts") as making, _told(folder):
            _sweep(folder / "parts")
            yield making
            for part in parts:
                if (folder / part).exists():
                    os.replace(folder / part, making / f"old {part}")
                os.replace(making / part, folder / part)
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


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
