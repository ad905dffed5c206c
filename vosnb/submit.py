"""Zip files for the servers that score data sets whose truth is not public; and a checker that refuses a wrong one.

DAVIS and MOSE want the videos' folders at the top of the zip, YouTube-VOS and LVOS below one folder Annotations, SA-V a folder per
object. Every mask is a PNG of the frame's size: indexed with DAVIS' palette (SA-V: 0 and 255), its ids among those prompted.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from .datasets import Dataset, Video
from .errors import InputError
from .files import check_result, natural, replacing
from .masks import read_labels
from .metrics import ids_in
from .paint import davis_palette

__all__ = ["TOPS", "check", "submit"]

TOPS = {"davis2017": "", "mose": "", "sa-v": "", "youtube-vos": "Annotations/", "lvos": "Annotations/"}
SHOWN = 6  # of what is wrong


def submit(masks: str | Path, data: Dataset, out: str | Path) -> Path:
    """Packs the results of all videos of `data`, a folder of PNGs per video below `masks`, into the zip file `out`.

    Only the frames that count go in; PNGs that are grey, or have another palette, are written anew. `InputError`: a mask that is
    missing, of another size, or has an id that was not prompted; nothing is written then.
    """
    masks, out = Path(masks), Path(out)
    _top(data)
    check_result(out, (".zip",), masks)
    with replacing(out) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, path in _wanted(data):
                if not (file := masks / path).is_file():
                    raise InputError(
                        f"a mask of every frame that counts in {masks}", f"no {path}", "finish the run: repeat its command"
                    )
                archive.writestr(zipfile.ZipInfo(name), _encoded(file, binary=data[0].per_object))
        check(temporary, data)
    return out


def check(file: str | Path, data: Dataset) -> None:
    """`InputError`, with what is wrong, unless the zip file is one that the data set's server takes."""
    top, file = _top(data), Path(file)
    wrong: list[str] = []
    try:
        with zipfile.ZipFile(file) as archive:
            there = {name for name in archive.namelist() if not name.endswith("/")}
            wanted = {name for name, _ in _wanted(data)}
            wrong += [f"no {name}" for name in sorted(wanted - there)]
            wrong += [f"{name}, which does not belong there" for name in sorted(there - wanted)]
            if not top and len(data) == 1:
                wrong.append("one video alone, which servers take for a folder around all")
            for video in data:
                wrong += _wrong_masks(archive, there & wanted, video, top)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError("a zip file", f"{file} ({error})", "pack it anew with `vosnb submit`") from error
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError(
            f"a zip file as {data.kind}'s server takes it", "; ".join(wrong[:SHOWN]) + more, "pack it anew with `vosnb submit`"
        )


def _top(data: Dataset) -> str:
    if data.kind not in TOPS:
        raise InputError("a data set among " + ", ".join(TOPS), repr(data.kind), "others have no server")
    return TOPS[data.kind]


def _wanted(data: Dataset) -> Iterator[tuple[str, str]]:
    """(name in the zip file, path below the results) of every mask."""
    for video in data:
        for path in _masks_of(video):
            yield f"{TOPS[data.kind]}{path}", path


def _masks_of(video: Video) -> list[str]:
    """VIDEO/FRAME.png of the frames that are to be saved; per object VIDEO/OBJECT/FRAME.png of the annotated ones."""
    if not video.per_object:
        names = video.saved if video.saved is not None else video.clip.names
        return [f"{video.name}/{name}.png" for name in sorted(names, key=lambda name: natural(Path(name + ".png")))]
    files = sorted(video.annotations.glob("*/*.png"))
    return [f"{video.name}/{path.parent.name}/{path.name}" for path in files if not path.name.startswith(".")]


def _encoded(file: Path, binary: bool) -> bytes:
    """The file's bytes where they are as they should be, else written anew."""
    labels, data = read_labels(file, phantom="trust"), file.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        if _right_kind(image, binary):
            return data
    image = Image.fromarray(np.where(labels > 0, np.uint8(255), np.uint8(0)) if binary else labels)
    if not binary:
        image.putpalette(davis_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _right_kind(image: Image.Image, binary: bool) -> bool:
    if binary:
        return image.mode in ("L", "1") and set(image.getextrema()) <= {0, 255}
    palette = image.getpalette() if image.mode == "P" else None
    return palette is not None and palette == davis_palette().ravel().tolist()[: len(palette)]


def _wrong_masks(archive: zipfile.ZipFile, names: set[str], video: Video, top: str) -> Iterator[str]:
    clip, prompts = video.clip, video.prompts()
    ids = {0, *prompts.ids}
    for name in sorted(name for name in names if name.startswith(f"{top}{video.name}/")):
        try:
            with Image.open(io.BytesIO(archive.read(name)), formats=["PNG"]) as image:
                labels = np.array(image)
                right = _right_kind(image, video.per_object)
        except (OSError, SyntaxError, ValueError) as error:
            yield f"{name}, which is damaged ({error})"
            continue
        if labels.shape[:2] != (clip.height, clip.width):
            yield f"{name} of {labels.shape[1]}×{labels.shape[0]}, not {clip.width}×{clip.height}"
        elif not right:
            yield f"{name}, which is not {'black and white' if video.per_object else 'indexed by the palette of DAVIS'}"
        elif not video.per_object and (strange := ids_in(labels) - ids):
            yield f"{name} with object {', '.join(map(str, sorted(strange)))}, which was not prompted"
