"""`vosnb compare` and `vosnb measure`: text to values, the verb, and a few lines about the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import check_result

__all__ = ["compare", "measure", "read_settings"]


def compare(
    clip: str, first: Path, out: Path, by: str, truth: Path | None, settings: Sequence[str], frame: int, frames: int, direction: str,
    aux: Sequence[int],
) -> None:  # fmt: skip
    """`InputError` before any work where a value does not fit."""
    from .clip import Clip
    from .compare import PAGE
    from .compare import compare as verb
    from .masks import Masks, read_labels
    from .prompts import Prompts

    check_result(out, (), clip, first, truth)
    page = out / "index.html"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "masks").is_dir() and not page.is_file())):
        raise InputError(f"{out} to be new, empty or an earlier comparison", "something else", "choose another with --out")
    if page.is_file() and PAGE not in page.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{out} to be new, empty or an earlier comparison", "another page", "choose another with --out")
    if frames < 0:
        raise InputError("--frames of 0 or more", frames, "0 is all")
    film = Clip(clip)
    film = film[:frames] if frames else film
    if first.suffix.lower() == ".json":
        prompts = Prompts.load(first)
    else:
        prompts = Prompts({frame: read_labels(first, size=(film.height, film.width))})
    known = None if truth is None else Masks(truth)
    known = known[:frames] if known is not None and frames else known
    names = [name.strip() for name in by.split(",") if name.strip()]
    found = verb(film, prompts, names, known, settings=read_settings(settings), aux=tuple(aux), direction=direction, out=out)
    found.save(out)
    print(found.table().to_string(float_format="{:.3f}".format))
    if truth is None:
        print("without ground truth: agreement is not accuracy")
    print("they disagree most on frames " + ", ".join(film.names[t] for t in found.frames()))
    print(page)


def measure(
    masks: Sequence[Path], out: Path, pixel: float, unit: str, fps: float | None, gap: float, across: str, overwrite: bool
) -> None:
    """`InputError` before any work where a value does not fit."""
    from .masks import Masks
    from .measure import measure as verb

    check_result(out, (), *masks)
    if fps is not None and not fps > 0:
        raise InputError("frames per second above 0", fps, "25 is a usual rate")
    found = {path.name: Masks(path) for path in masks}
    if len(found) < len(masks):
        raise InputError("folders of different names, which name the strategies", [str(p) for p in masks], "rename one")
    length = len(next(iter(found.values())))
    times = None if fps is None else [t / fps for t in range(length)]
    given = found if len(found) > 1 else next(iter(found.values()))
    result = verb(given, pixel=pixel, unit=unit, times=times, gap=gap, across=across)
    last = result.band().query(f"frame == {length - 1}").drop(columns=["frame", "time"])
    print(last.to_string(index=False, float_format="{:.4g}".format))
    print(result.save(out, overwrite=overwrite))


def read_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """["xmem.size=240"] → {"xmem": {"size": "240"}}."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        strategy, dot, setting = name.strip().rpartition(".")
        if not (strategy and dot and setting and equals):
            raise InputError("--set STRATEGY.name=value", repr(text), "write for example --set xmem.size=240")
        found.setdefault(strategy, {})[setting] = value
    return found
