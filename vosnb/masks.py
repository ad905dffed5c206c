"""Label maps out: (T, H, W) uint8, pixel value = object id, 0 = background. On disk a folder of indexed PNGs, DAVIS palette.

`Masks` holds those of a clip, in memory or in a folder; `MaskWriter` writes them behind on a thread; `read_labels` takes in
one mask from elsewhere and says what is wrong with it.
"""

from __future__ import annotations

import csv
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .errors import InputError
from .files import check_new, natural, pngs, replacing, replacing_folder
from .paint import Color, davis_palette, overlay
from .prompts import check_id
from .strategies import Score

if TYPE_CHECKING:
    import pandas as pd

    from .clip import Clip

__all__ = ["MaskWriter", "Masks", "read_labels", "write_labels", "write_scores"]

LARGEST = 8192 * 8192  # pixels; a larger PNG is a mistake or a bomb
_CODE = np.array([65536, 256, 1])  # a colour as one number
_SCORES = "scores.csv"
_COLUMNS = ["frame", "name", "object", "iou", "present", "disagreement"]

# -- one label map on disk -----------------------------------------------------------------------------------------------


def write_labels(path: str | Path, labels: np.ndarray, palette: np.ndarray | None = None) -> Path:
    """A label map (H, W) of ids 0 … 255 as an indexed 8-bit PNG (mode P); `palette` (256, 3) uint8, by default DAVIS's."""
    labels = _checked(labels)
    with replacing(path) as temporary:
        _save(temporary, labels, palette)
    return Path(path)


def _save(path: Path, labels: np.ndarray, palette: np.ndarray | None = None) -> None:
    image = Image.fromarray(labels)
    image.putpalette((davis_palette() if palette is None else np.asarray(palette, np.uint8)).tobytes())
    image.save(path, "PNG", compress_level=3)  # as quick as 1 and smaller; 6 takes 2.5 times as long


def _checked(labels: Any) -> np.ndarray:
    """The label map as contiguous (H, W) uint8."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or 0 in labels.shape or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise InputError(
            "a label map (H, W) of integers", f"shape {labels.shape}, {labels.dtype}", "pixel value = object id, 0 = background"
        )
    if labels.dtype != np.uint8 and labels.dtype != bool and (labels.min() < 0 or labels.max() > 255):
        raise InputError("object ids from 0 to 255", f"{labels.min()} … {labels.max()}", "renumber the objects")
    return np.ascontiguousarray(labels, np.uint8)


def read_labels(
    path: str | Path,
    *,
    ids: Iterable[int] | None = None,
    phantom: str = "refuse",
    size: tuple[int, int] | None = None,
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """A PNG mask of any making as a label map (H, W) uint8.

    - Indexed PNG: the indices are the ids. Grey: the values are the ids; but a mask of just 0 and 255 is object 1.
    - RGB (the palette was lost): colours of `palette` (256, 3), by default DAVIS's, are ids; black and white is object 1.
      Transparent pixels are background.

    Smoothing a mask makes *phantom* objects along its edges. A pixel is phantom if its colour is no id; if its id is not among
    `ids`, where these are given; and, in a file that shows smoothing (a colour that is no id, or many pixels whose value lies
    strictly between those on either side), if its id nowhere fills 3 × 3 pixels or if it is such an in-between pixel of a thin
    line. A small object with hard edges is therefore kept.

    `phantom`: "refuse" raises with the phantom ids and their areas; "snap" gives each phantom pixel the nearest true label;
    "trust" believes an indexed PNG as it is and treats other files as "refuse" does. `ids` also states that these
    objects are real, however thin.

    `InputError`: phantom ids (unless snapped), another size than `size` (H, W), no PNG, a damaged or huge one, ids above 255,
    a photo.
    """
    if phantom not in ("refuse", "snap", "trust"):
        raise InputError("phantom 'refuse', 'snap' or 'trust'", repr(phantom), "choose one of these")
    values, indexed = _decode(Path(path), size)
    if indexed and phantom == "trust" and ids is None:
        return values
    if not indexed and ids is None and values.ndim == 2 and ((values == 0) | (values == 255)).all():
        return (values == 255).astype(np.uint8)
    known = None if ids is None else [0, *(check_id(i) for i in ids)]
    labels, values = _as_ids(values, davis_palette() if palette is None else np.asarray(palette, np.uint8))
    ramp = _between(values)
    edges = np.count_nonzero(np.diff(labels, axis=0)) + np.count_nonzero(np.diff(labels, axis=1))
    smoothed = bool((labels < 0).any()) or np.count_nonzero(ramp) >= max(8, edges / 20)
    solid = _solid(values)
    if not indexed and values.ndim == 2 and (known is None or 255 not in known):
        labels = _black_and_white(labels, solid if smoothed else np.ones_like(solid))

    stray = labels < 0 if known is None else ~np.isin(labels, known)
    unexpected = stray.any()
    if smoothed:
        if known is None:
            stray |= ~np.isin(labels, np.unique(labels[solid]))
        if stray.mean() > 0.5 or solid.mean() < 0.5:
            raise InputError(f"a mask in {path}", "what looks like a picture", "give a PNG whose pixels are object ids")
        stray |= ramp & ~solid
        foreign = labels < 0
        if values.ndim == 3 and np.count_nonzero(foreign & solid) > np.count_nonzero(foreign) / 2:
            raise InputError(
                f"colours of the palette in {path}", f"areas of other ones: {_areas(values, foreign)}",
                "say whose they are: palette=with_colors({1: '#ff0000', …})",
            )  # fmt: skip
    if not stray.any():
        return labels.astype(np.uint8)
    if phantom == "snap" and not stray.all():
        from scipy.ndimage import distance_transform_edt

        rows, columns = distance_transform_edt(stray, return_distances=False, return_indices=True)
        return labels[rows, columns].astype(np.uint8)
    if known is None or unexpected:
        raise InputError(
            f"only whole objects in {path}" if known is None else f"only objects {known[1:]} in {path}",
            f"phantom ids{', as smoothing makes them' if smoothed else ''}: {_areas(values, stray)}",
            "snap them to their neighbours (phantom='snap', --snap), or say which ids are real (ids=…)",
        )
    return labels.astype(np.uint8)


def _decode(path: Path, size: tuple[int, int] | None) -> tuple[np.ndarray, bool]:
    """(H, W) or, in colour, (H, W, 3) uint8; and whether these are indices. The header is judged before unpacking."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError as error:
        raise InputError("a PNG mask", f"{path}: {error.strerror}", "check the path") from error
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError("a PNG mask", f"{path}, which is none", "export it as PNG: JPEG changes the values, others lose them")
    width, height, bits, kind = struct.unpack(">IIBB", head[16:26])
    if size is not None and (height, width) != tuple(size):
        raise InputError(
            f"a mask of {size[1]}×{size[0]}",
            f"{width}×{height} in {path}",
            "make it at the frame's own size, nearest neighbour",
        )
    if width * height > LARGEST:
        raise InputError(
            f"a mask of at most {LARGEST} pixels", f"{width}×{height} in {path}", "make it at the frame's own size"
        )
    try:
        with Image.open(path, formats=["PNG"]) as image:
            values = np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error) as error:
        raise InputError("a whole PNG", f"{path}, which is damaged ({error})", "export it again") from error
    if kind in (4, 6):  # with alpha
        color = values[..., 0] if kind == 4 else values[..., :3]
        color[values[..., -1] < 128] = 0
        return color, False
    if kind == 0 and bits > 8:
        if values.max() > 255:
            raise InputError(
                "object ids from 0 to 255", f"a 16-bit PNG with values up to {values.max()}", "renumber the objects"
            )
    elif kind == 0 and bits < 8 and values.dtype != bool:
        values //= 255 // (2**bits - 1)  # Pillow stretches 2 and 4 bits to 0 … 255
    return values.astype(np.uint8), kind == 3


def _as_ids(values: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) int16, −1 where the colour is no id; and the values, (H, W) after all where a colour image is grey ids."""
    if values.ndim == 2:
        return values.astype(np.int16), values
    codes, entries = values @ _CODE, palette @ _CODE
    order = np.argsort(entries, kind="stable")  # of two equal colours the lower id is first
    found = order[np.searchsorted(entries, codes, sorter=order).clip(max=255)]
    labels = np.where(entries[found] == codes, found, -1).astype(np.int16)
    if (labels < 0).any() and (values == values[..., :1]).all():
        return values[..., 0].astype(np.int16), values[..., 0]
    return labels, values


def _black_and_white(labels: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """A grey 0/255 mask as object 1. Smoothed, it has other values too, in thin lines: these get no id."""
    inside, white = labels[solid], labels == 255
    if not white.any() or np.count_nonzero((inside > 0) & (inside < 255)) > np.count_nonzero(white) / 10:
        return labels
    return np.select([labels == 0, white], [0, 1], -1).astype(np.int16)


def _between(values: np.ndarray) -> np.ndarray:
    """(H, W) bool: strictly between what is left and right, or above and below, in a band of at most two pixels."""
    if values.ndim == 3:
        return np.any([_between(channel) for channel in np.moveaxis(values, 2, 0)], axis=0)
    found = np.zeros(values.shape, bool)
    for v, out in ((values, found), (values.T, found.T)):
        pad = np.pad(v, ((2, 2), (0, 0)), mode="edge")
        near, far = (pad[1:-3], pad[3:-1]), (pad[:-4], pad[4:])
        for a, b in ((0, 1), (1, 0)):
            out |= (near[a] < v) & ((v < near[b]) | (v < far[b])) | (far[a] < v) & (v < near[b])
    return found


def _solid(values: np.ndarray) -> np.ndarray:
    """(H, W) bool: within some 3 × 3 block of one value (a border continues outside)."""
    from scipy.ndimage import maximum_filter, minimum_filter

    values = values if values.ndim == 2 else values @ _CODE
    same = minimum_filter(values, 3, mode="nearest") == maximum_filter(values, 3, mode="nearest")
    return maximum_filter(same, 3, mode="constant")


def _areas(values: np.ndarray, stray: np.ndarray) -> str:
    """The values of the stray pixels with their areas, the largest first."""
    found, counts = np.unique(values[stray], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = ["#{:02x}{:02x}{:02x}".format(*v) if np.ndim(v) else str(v) for v in found[order[:6]]]
    listed = ", ".join(f"{name} ({counts[i]} px)" for name, i in zip(names, order, strict=False))
    return listed + (f" and {len(order) - 6} more" if len(order) > 6 else "")


# -- the masks of a clip -------------------------------------------------------------------------------------------------


class Masks:
    """Label maps of a clip, (T, H, W) uint8. `masks[t]` is (H, W); `masks[a:b]`, `masks[::-1]` are views; iterates in order.

    From a folder: the PNGs in natural order, read when asked for; frame names are their stems. Where it holds one numbered
    folder per object instead (SA-V: `000/00000.png`, 0 = not the object), these are merged: where objects overlap, the lower
    id wins. As 0 is background, folders that begin with 000 are objects 1, 2, …; `objects[1]["folder"]` remembers "000".
    Indexed PNGs are believed as they are, others examined, as `read_labels` does with the `phantom` given.

    From arrays: (T, H, W), or an iterable of (H, W), or of what `pack` made with `shape` (H, W), or of {object id: (H, W) bool},
    which may overlap (`layers` gives them back). They are kept as run lengths: about 2 kB a frame at 540p, 0.1 ms to read.

    `names`: one per frame, by default 00000, 00001, …; of a folder, which frames in which order, by default all in natural order
    (with `shape`, a frame may lack all its objects).  `scores`: per frame {object: `Score`}, or None.
    `objects`: what is known of an object, as in `Prompts`: its name, its color.
    """

    def __init__(
        self,
        source: str | Path | np.ndarray | Iterable[np.ndarray | bytes | Mapping[int, np.ndarray]],
        names: Sequence[str] | None = None,
        *,
        shape: tuple[int, int] | None = None,
        scores: Sequence[Mapping[int, Score]] | None = None,
        objects: Mapping[int, Mapping[str, str]] | None = None,
        phantom: str = "trust",
    ):
        self.scores = None if scores is None else list(scores)
        self.objects = dict(objects or {})
        self._read: list[Callable[[], np.ndarray]] = []
        if isinstance(source, (str, Path)):
            self._from_folder(Path(source), phantom, names, shape)
        else:
            self._from_frames(source, shape)
            self.names = [f"{t:05d}" for t in range(len(self._read))] if names is None else list(names)
        for what, given in (("names", self.names), ("scores", self.scores)):
            if given is not None and len(given) != len(self):
                raise InputError(f"{len(self)} {what}, one per frame", len(given), "give as many as there are label maps")

    def _from_frames(self, source: Iterable[np.ndarray | bytes], shape: tuple[int, int] | None) -> None:
        self._size = tuple(shape) if shape else (0, 0)
        for frame in source:
            if isinstance(frame, Mapping):
                self._read.append(_Layers({check_id(obj): self._kept(mask) for obj, mask in frame.items()}, self._size))
            else:
                self._read.append(self._kept(frame))
        if not all(self._size) and self._read:
            raise InputError("the shape (H, W) of frames without a mask", "none", "give shape=(clip.height, clip.width)")

    def _kept(self, frame: np.ndarray | bytes) -> Callable[[], np.ndarray]:
        """A label map, or what `pack` made of it, in memory."""
        if not isinstance(frame, bytes):
            labels = _checked(frame)
            self._size = self._size if all(self._size) else labels.shape
            if labels.shape != self._size:
                raise InputError(f"label maps of shape {self._size}", labels.shape, "give all at the size of the clip")
            frame = self.pack(labels)
        return partial(self.unpack, frame, self._size)

    def _from_folder(self, folder: Path, phantom: str, names: Sequence[str] | None, shape: tuple[int, int] | None) -> None:
        if not folder.is_dir():
            raise InputError("a folder of PNG masks", f"{folder}, which is none", "check the path")
        files = {file.stem: file for file in sorted(pngs(folder), key=natural)}
        numbered = [sub for sub in folder.iterdir() if sub.is_dir() and sub.name.isdecimal() and not files]
        numbered.sort(key=lambda sub: int(sub.name))
        parts = {sub.name: {file.stem: file for file in found} for sub in numbered if (found := pngs(sub))}
        every = list(files.values()) or [file for part in parts.values() for file in part.values()]
        if not every and (names is None or shape is None):
            raise InputError("a folder of PNG masks", f"{folder}, which holds none", "check the path")
        found_names = list(dict.fromkeys(file.stem for file in sorted(every, key=natural)))
        self.names = found_names if names is None else list(names)
        if lost := [name for name in self.names if files and name not in files]:
            raise InputError(f"a PNG per frame in {folder}", f"none for {', '.join(lost[:3])}", "check the names")
        if shape is None:
            with every[0].open("rb") as file:
                shape = struct.unpack(">II", file.read(24).rjust(24, b"\0")[16:])[::-1]
        self._size = tuple(shape)
        read = partial(read_labels, size=self._size, phantom=phantom)
        if files:
            self._read = [partial(read, files[name]) for name in self.names]
        else:
            shift = int("0" in {str(int(name)) for name in parts})
            folders = {check_id(int(name) + shift): name for name in parts}
            self.objects = {**{obj: {"folder": name} for obj, name in folders.items()}, **self.objects}
            self._read = [
                _Layers({o: partial(read, parts[n][frame]) for o, n in folders.items() if frame in parts[n]}, self._size)
                for frame in self.names
            ]
        if self.scores is None and (folder / _SCORES).exists():
            self.scores = _read_scores(folder / _SCORES, self.names)

    @staticmethod
    def pack(labels: np.ndarray) -> bytes:
        """A label map as compressed run lengths; `unpack` is the inverse."""
        flat = _checked(labels).ravel()
        starts = _starts(flat)
        lengths = np.diff(starts, append=flat.size).astype("<u4")
        return zlib.compress(lengths.tobytes() + flat[starts].tobytes(), 1)

    @staticmethod
    def unpack(packed: bytes, shape: tuple[int, int]) -> np.ndarray:
        """The (H, W) uint8 label map that `pack` took."""
        runs = zlib.decompress(packed)
        n = len(runs) // 5
        return np.repeat(np.frombuffer(runs, np.uint8, n, 4 * n), np.frombuffer(runs, "<u4", n)).reshape(shape)

    # -- as an array ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, key: int | slice) -> Any:
        if not isinstance(key, slice):
            return self._read[key]()
        view = object.__new__(Masks)
        view._read, view.names, view._size, view.objects = self._read[key], self.names[key], self._size, self.objects
        view.scores = None if self.scores is None else self.scores[key]
        return view

    def __iter__(self) -> Iterator[np.ndarray]:
        return (read() for read in self._read)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Masks are stored compressed: an array of them is always a copy")
        frames = np.empty(self.shape, np.uint8)
        for t, labels in enumerate(self):
            frames[t] = labels
        return frames.astype(dtype or np.uint8, copy=False)

    def __repr__(self) -> str:
        return f"Masks({len(self)} frames of {self._size[1]}×{self._size[0]})"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self), *self._size)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The ids that occur in any frame, ascending. Reads every frame, once."""
        seen: set[int] = set()
        for read in self._read:
            seen.update((o for o, mask in read.masks().items() if mask.any()) if isinstance(read, _Layers) else _ids_in(read()))
        return tuple(sorted(seen))

    def layers(self, t: int) -> dict[int, np.ndarray]:
        """The objects of frame t, {object id: (H, W) bool}, none of them empty; those that came one by one may overlap."""
        read = self._read[t]
        if isinstance(read, _Layers):
            return {obj: mask for obj, mask in sorted(read.masks().items()) if mask.any()}
        labels = read()
        return {obj: labels == obj for obj in _ids_in(labels)}

    def only(self, ids: Iterable[int]) -> Masks:
        """These objects alone, whatever covered them."""
        chosen = sorted({check_id(obj) for obj in ids})
        frames = ({o: m for o, m in self.layers(t).items() if o in chosen} for t in range(len(self)))
        kept = {o: about for o, about in self.objects.items() if o in chosen}
        scores = self.scores and [{o: score for o, score in given.items() if o in chosen} for given in self.scores]
        return Masks(frames, self.names, shape=self._size, scores=scores, objects=kept)

    def at(self, name: str) -> np.ndarray:
        """The label map of the frame of that name."""
        if name not in self.names:
            raise InputError(
                f"a frame's name, {self.names[0]} … {self.names[-1]}" if self.names else "a frame", repr(name), "correct it"
            )
        return self[self.names.index(name)]

    def scores_table(self) -> pd.DataFrame:
        """One row per frame and object that has begun: frame, name, object, iou, present, disagreement (see `Score`)."""
        import pandas as pd

        return pd.DataFrame(_rows(self.names, self.scores or [{}] * len(self)), columns=_COLUMNS)

    # -- to files ----------------------------------------------------------------------------------------------------------

    def save(
        self, folder: str | Path, *, per_object: bool = False, palette: np.ndarray | None = None, overwrite: bool = False
    ) -> Path:
        """Indexed PNGs named after the frames, or OBJECT/FRAME.png (0/255) `per_object`; and scores.csv if there are scores."""
        with MaskWriter(folder, per_object=per_object, palette=palette, overwrite=overwrite, objects=self.objects) as writer:
            for t, labels in enumerate(self._read):
                split = {obj: np.zeros(self._size, bool) for obj in self.ids} | self.layers(t) if per_object else labels()
                writer.write(self.names[t], split, self.scores[t] if self.scores else None)
        return Path(folder)

    def video(
        self,
        clip: Clip,
        path: str | Path,
        *,
        alpha: float = 0.5,
        contour: bool = True,
        colors: Mapping[int, Color] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """The masks over the frames of `clip`, as an H.264 video with the clip's own frame times; an existing file is replaced
        only with `overwrite`."""
        from .video import write_video

        check_new(path, overwrite)
        if len(clip) != len(self):
            raise InputError(f"a clip of {len(self)} frames, as the masks have", len(clip), "slice one of them")
        frames = (overlay(image, labels, colors, alpha, contour) for image, labels in zip(clip, self, strict=True))
        return write_video(path, frames, clip.fps, None if clip.rate_is_constant else clip.times)


def _only_masks(folder: Path) -> None:
    """`InputError` where overwriting the folder would delete anything but masks."""
    for path in folder.iterdir() if folder.is_dir() else ():
        mine = path.name == _SCORES or path.suffix == ".png" or (path.is_dir() and path.name.isdecimal())
        if not mine and not path.name.startswith("."):
            raise InputError(
                f"only masks in {folder}, to overwrite it", path.name, "choose another folder: it is replaced as a whole"
            )


def _starts(flat: np.ndarray) -> np.ndarray:
    """Where the runs of equal values begin."""
    return np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))


def _ids_in(labels: np.ndarray) -> list[int]:
    flat = labels.ravel()
    return [int(i) for i in np.unique(flat[_starts(flat)]) if i]  # 20 times as quick as of all pixels


def _flat(masks: Mapping[int, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Per-object masks (H, W) as one label map, painted from the highest id down, so that the lowest one stays on top."""
    labels = np.zeros(shape, np.uint8)
    for obj in sorted(masks, reverse=True):
        labels[masks[obj] > 0] = obj
    return labels


@dataclass(frozen=True)
class _Layers:
    """A frame that is kept object by object, so that they may overlap; called, its label map."""

    read: Mapping[int, Callable[[], np.ndarray]]
    shape: tuple[int, int]

    def masks(self) -> dict[int, np.ndarray]:
        return {obj: read() > 0 for obj, read in self.read.items()}

    def __call__(self) -> np.ndarray:
        return _flat(self.masks(), self.shape)


def _rows(names: Sequence[str], scores: Sequence[Mapping[int, Score]]) -> list[tuple]:
    frames = enumerate(zip(names, scores, strict=True))
    return [(t, name, obj, s.iou, s.present, s.disagreement) for t, (name, given) in frames for obj, s in given.items()]


def write_scores(folder: Path, names: Sequence[str], scores: Sequence[Mapping[int, Score]]) -> None:
    """The table of scores beside the masks of these frames, where `Masks(folder)` finds it."""
    with replacing(folder / _SCORES) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        rows.writerows(_rows(names, scores))


def _read_scores(file: Path, names: Sequence[str]) -> list[dict[int, Score]]:
    found: dict[str, dict[int, Score]] = {name: {} for name in names}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                found.setdefault(row["name"], {})[int(row["object"])] = Score(*(float(row[column]) for column in _COLUMNS[3:]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"columns {', '.join(_COLUMNS)} in {file}", f"a row where {error!r} went wrong", "remove the file"
        ) from None
    return [found[name] for name in names]


# -- writing behind ------------------------------------------------------------------------------------------------------


class MaskWriter:
    """Writes label maps on a thread into a folder that appears whole at the end, or not at all:

        with MaskWriter("masks") as writer:
            writer.write("00000", labels)

    `per_object` writes 0/255 masks 001/00000.png, … as SA-V has them (`objects[1]["folder"]` names another folder). At most
    eight frames wait; what goes wrong on the thread, such as a full disk, is raised as `InputError` by a later `write` or at
    the end.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        per_object: bool = False,
        palette: np.ndarray | None = None,
        overwrite: bool = False,
        objects: Mapping[int, Mapping[str, str]] | None = None,
    ):
        self.folder, self.per_object, self.palette, self.overwrite = Path(folder), per_object, palette, overwrite
        self._folders = {obj: about["folder"] for obj, about in (objects or {}).items() if "folder" in about}
        if per_object and (odd := [f for f in self._folders.values() if Path(f).name != f]):
            raise InputError(
                "objects' folders that are plain names", repr(odd[0]), 'such as "000"; correct the prompts or masks'
            )
        self._waiting: deque[Future[None]] = deque()
        self._shape: tuple[int, int] | None = None
        self._scores: dict[str, Mapping[int, Score]] = {}

    def __enter__(self) -> MaskWriter:
        if self.overwrite:
            _only_masks(self.folder)
        self._stack = ExitStack()
        self._target = self._stack.enter_context(replacing_folder(self.folder, self.overwrite))
        self._pool = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="masks"))
        self._stack.push(self._finish)
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def write(
        self, name: str, labels: np.ndarray | Mapping[int, np.ndarray], scores: Mapping[int, Score] | None = None
    ) -> None:
        """One frame: a label map (H, W), or {object: (H, W) bool}, which may overlap `per_object` (else the lower id wins).

        Objects of a mapping get a file even where they are empty; those of a label map, where they occur.
        """
        if Path(name).name != name or name in self._scores:
            raise InputError("a new frame name without folders", repr(name), "give each frame its own name")
        if isinstance(labels, Mapping):
            labels = {check_id(obj): _checked(mask).copy() for obj, mask in labels.items()}
            if not labels and not self.per_object:
                raise InputError("the mask of at least one object", "none", "give a label map of zeros")
        else:
            labels = _checked(labels).copy()  # the caller may go on to change it
        for mask in labels.values() if isinstance(labels, dict) else [labels]:
            self._shape = self._shape or mask.shape
            if mask.shape != self._shape:
                raise InputError(f"masks of shape {self._shape}", mask.shape, "give all at the size of the clip")
        self._scores[name] = scores or {}
        while len(self._waiting) >= 8:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, name, labels))

    def _write(self, name: str, labels: np.ndarray | dict[int, np.ndarray]) -> None:
        """(On the thread.)"""
        if not self.per_object:
            return _save(
                self._target / f"{name}.png", _flat(labels, self._shape) if isinstance(labels, dict) else labels, self.palette
            )
        for obj, mask in (labels if isinstance(labels, dict) else {obj: labels == obj for obj in _ids_in(labels)}).items():
            file = self._target / self._folders.get(obj, f"{obj:03d}") / f"{name}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(file, "PNG", compress_level=3)

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Waits for the thread, or, where the frames ended with an error, drops what waits."""
        while self._waiting:
            future = self._waiting.popleft()
            if kind is None:
                future.result()
            else:
                future.cancel()
        if kind is None and any(self._scores.values()):
            names = sorted(self._scores, key=lambda name: natural(Path(f"{name}.png")))  # not as written: that may be backward
            write_scores(self._target, names, [self._scores[name] for name in names])
