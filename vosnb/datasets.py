"""Data sets as they lie on a disk: videos with their frames, their prompts and, where it is public, their ground truth.

    for video in dataset("DAVIS", "davis2017", "val"):
        masks = propagate(video.clip, video.prompts(), "sam2long")

Nothing is copied or converted. Prompts are taken from the annotations: of each object its first one, on whatever frame that is.
Frames and annotations go together by name, so annotations may be sparse.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Clip
from .errors import InputError, few
from .files import natural, pngs
from .frames import IMAGE_SUFFIXES
from .masks import Masks, read_labels
from .metrics import ids_in
from .prompts import Prompts

__all__ = ["KINDS", "Dataset", "Kind", "Video", "dataset", "folders", "names_in"]

VOID = 255


@dataclass(frozen=True)
class Kind:
    """Where a data set keeps things, below its root; the first place that is there counts. {split} is val, train, …

    `all_frames`: the same frames at the full rate, where a second package has them.  `lists`: of names; `meta`: JSON that names videos
    and objects.  `per_object`: each object has a folder of its own.  `binary`: whatever is not background is object 1.
    `first_frame`: all that is to be tracked is annotated on the first frame.
    """

    images: tuple[str, ...]
    annotations: tuple[str, ...]
    all_frames: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    meta: tuple[str, ...] = ()
    per_object: bool = False
    binary: bool = False
    first_frame: bool = False


def _davis(*lists: str, **settings: bool) -> Kind:
    sizes = ("480p", "Full-Resolution", "1080p", "")
    images, annotations = (tuple(f"{folder}/{size}".rstrip("/") for size in sizes) for folder in ("JPEGImages", "Annotations"))
    return Kind(images, annotations, lists=lists, **settings)


def _split(*meta: str, all_frames: tuple[str, ...] = ()) -> Kind:
    """A folder per split, or the root is one; some write valid for val."""
    tops = ("{split}/", "{split}id/", "")
    images, annotations = (tuple(f"{top}{folder}" for top in tops) for folder in ("JPEGImages", "Annotations"))
    return Kind(images, annotations, all_frames, meta=tuple(f"{top}{name}" for top in tops for name in meta))


KINDS: dict[str, Kind] = {
    "davis2016": _davis("ImageSets/2016/{split}.txt", "ImageSets/480p/{split}.txt", binary=True, first_frame=True),
    "davis2017": _davis("ImageSets/2017/{split}.txt", first_frame=True),
    "youtube-vos": _split(
        "meta.json", all_frames=("{split}_all_frames/JPEGImages", "{split}id_all_frames/JPEGImages")
    ),  # 2018 and 2019
    "lvos": _split("{split}_meta.json", "{split}id_meta.json"),  # v1 and v2
    "mose": _split("meta.json"),  # v1 has no such file, v2 has
    "sa-v": Kind(
        tuple(f"{top}JPEGImages_24fps" for top in ("sav_{split}/", "")),
        tuple(f"{top}Annotations_6fps" for top in ("sav_{split}/", "")),
        lists=("sav_{split}/sav_{split}.txt", "sav_{split}.txt"),
        per_object=True,
    ),
    "folder": _davis("ImageSets/{split}.txt"),  # any folder that looks like DAVIS
}


@dataclass(frozen=True)
class Video:
    """One video: the folder of its frames and the folder of its annotations.

    `saved`: names of the frames whose masks a result holds; None: all.  `ids`: the objects to be tracked, where the data set says so.
    The rest is as in `Kind`.
    """

    name: str
    images: Path
    annotations: Path
    per_object: bool = False
    binary: bool = False
    first_frame: bool = False
    saved: frozenset[str] | None = None
    ids: tuple[int, ...] | None = None

    @property
    def clip(self) -> Clip:
        return Clip(self.images, name=self.name)

    @property
    def truth(self) -> Masks:
        """The annotations that there are, perhaps of the first frame only. Void (255) is among them."""
        return Masks(self.annotations)

    @property
    def frames(self) -> int:
        """How many frames there are, without opening any."""
        return len(_stems(self.images))

    def prompts(self, every: bool = False) -> Prompts:
        """Each object's first annotation, or `every` one, as masks on the clip's frames.

        Where each object has a folder, `objects` says which. Masks of 0 and 255 alone are of one object, 1; beside ids, 255 is void.
        `InputError`: an annotation of another size than the frames', damaged, or without a frame of its name; no object at all.
        """
        clip = self.clip
        place = {name: t for t, name in enumerate(clip.names)}
        found: dict[int, dict[int, np.ndarray]] = {}
        seen: set[int] = set()
        folders, binary = self._folders(), self.binary
        for t, obj, path in self._annotated(place, folders):
            if obj in seen and not every:
                continue
            labels = read_labels(path, size=(clip.height, clip.width), phantom="trust")
            binary |= not seen and ids_in(labels) == {VOID}
            if obj is not None or binary:
                masks = {obj or 1: labels > 0} if labels.any() else {}
            else:
                masks = {i: labels == i for i in sorted(ids_in(labels) - {VOID}) if every or i not in seen}
            if masks:
                found.setdefault(t, {}).update(masks)
                seen.update(masks)
            if not every and (self.ids is not None and seen.issuperset(self.ids)):
                break
        if not found:
            raise InputError(
                "at least one annotated object",
                f"none in {self.annotations}",
                f"check the annotations of {self.name}, or leave it out",
            )
        return Prompts(found, {obj: {"folder": name} for obj, name in folders.items()})

    def cost(self) -> float:
        """Roughly the seconds it takes on a GPU, to order videos by: frames × (a + b · objects)."""
        objects = len(self._folders() or self.ids or ())
        if not objects and (files := pngs(self.annotations)):
            with suppress(InputError):  # a damaged file is told of when the video's turn comes
                objects = len(ids_in(read_labels(min(files, key=natural), phantom="trust")) - {VOID})
        return self.frames * (0.03 + 0.05 * max(objects, 1))

    def _folders(self) -> dict[int, str]:
        """{object: its folder's name}; as 0 is background, folders that begin with 000 are objects 1, 2, …, as in `Masks`."""
        if not self.per_object:
            return {}
        names = sorted((p.name for p in self.annotations.iterdir() if p.is_dir() and p.name.isdecimal()), key=int)
        shift = int(bool(names) and int(names[0]) == 0)
        return {int(name) + shift: name for name in names}

    def _annotated(self, place: dict[str, int], folders: dict[int, str]) -> Iterator[tuple[int, int | None, Path]]:
        """(frame, object or None for all, file) in order of time."""
        parts = {obj: self.annotations / name for obj, name in folders.items()} or {None: self.annotations}
        files = [(place.get(path.stem), obj, path) for obj, folder in parts.items() for path in pngs(folder)]
        if strange := [path for t, _, path in files if t is None]:
            raise InputError(
                f"a frame for each annotation in {self.images}",
                f"none for {few(sorted(strange))}",
                "give frames and masks the same names",
            )
        files.sort(key=lambda file: file[0])
        return iter(files[:1] if self.first_frame else files)


@dataclass(frozen=True)
class Dataset(Sequence[Video]):
    """Videos in the order of their list, or of their names. `data["bear"]`, `data[0]`, `data[:4]`; iterates."""

    kind: str
    videos: tuple[Video, ...]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, slice):
            return Dataset(self.kind, self.videos[key])
        if not isinstance(key, str):
            return self.videos[key]
        found = next((video for video in self.videos if video.name == key), None)
        if found is None:
            raise InputError(f"a video of {len(self)}: {few(self.names)}", repr(key), "correct the name")
        return found

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(video.name for video in self.videos)

    def only(self, names: Iterable[str]) -> Dataset:
        """Those of these names, in their order."""
        return Dataset(self.kind, tuple(self[name] for name in names))

    def __repr__(self) -> str:
        return f"Dataset {self.kind}: {len(self)} videos ({few(self.names)})"


def dataset(root: str | Path, kind: str = "folder", split: str = "val") -> Dataset:
    """The videos of a data set of that kind, one of `KINDS`, below `root`; of the split's list where there is one, else all.

    `InputError` where the folder is not what `kind` says, or lacks frames or annotations of a video that is listed.
    """
    root = Path(root)
    if kind not in KINDS:
        raise InputError("a data set among " + ", ".join(KINDS), repr(kind), "choose one of these")
    if not root.is_dir():
        raise InputError(f"the folder of {kind}", f"{root}, which is none", "check the path")
    layout = KINDS[kind]
    find = partial(_find, root, split)
    images, annotations = find(layout.images), find(layout.annotations)
    if images is None or annotations is None:
        wanted = " and ".join(places[0].format(split=split) for places in (layout.images, layout.annotations))
        raise InputError(
            f"{wanted} in {root}, as {kind} has them", _looks(root, split), "check the path, the kind and the split"
        )
    listed, meta_file = find(layout.lists), find(layout.meta)
    meta = _meta(meta_file) if meta_file else {}
    dense = find(layout.all_frames)
    names = names_in(listed) if listed else list(meta) or None
    made = folders(dense or images, annotations, names, per_object=layout.per_object, kind=kind)
    return Dataset(
        kind,
        tuple(
            Video(
                video.name, video.images, video.annotations, layout.per_object, layout.binary, layout.first_frame,
                _stems(images / video.name) if dense else None, meta.get(video.name),
            )
            for video in made
        ),
    )  # fmt: skip


def folders(
    images: str | Path,
    annotations: str | Path,
    names: Iterable[str] | None = None,
    *,
    per_object: bool = False,
    kind: str = "folder",
) -> Dataset:
    """Videos from a folder of folders of frames and a folder of folders of masks, by name; by default all that have frames, sorted.

    `InputError` where a folder is none, has no frames or no masks, or holds a folder per object though not `per_object` (or the other
    way round).
    """
    images, annotations = Path(images), Path(annotations)
    for folder, what in ((images, "frames"), (annotations, "masks")):
        if not folder.is_dir():
            raise InputError(f"a folder with a folder of {what} per video", f"{folder}, which is none", "check the path")
    chosen = sorted(p.name for p in images.iterdir() if _is_video(p)) if names is None else list(dict.fromkeys(names))
    if not chosen:
        raise InputError(f"a folder of frames per video in {images}", "none", "check the path, or the list")
    for folder, what in ((images, "frames"), (annotations, "masks")):
        if lost := [name for name in chosen if not _is_video(folder / name)]:
            raise InputError(
                f"a folder of {what} of each video", f"none in {folder} for {few(lost)}", "check the list and the path"
            )
    videos = tuple(Video(name, images / name, annotations / name, per_object) for name in chosen)
    for video in videos[:1]:  # they are all alike
        flat, nested = (
            bool(pngs(video.annotations)),
            any(p.is_dir() and p.name.isdecimal() for p in video.annotations.iterdir()),
        )
        if per_object and not nested:
            raise InputError(
                f"a folder per object in {video.annotations}", "none",
                "that is SA-V's form; where one PNG holds all objects, leave per_object out" if flat else "check the path",
            )  # fmt: skip
        if not per_object and not flat:
            raise InputError(
                f"PNGs in {video.annotations}", "a folder per object" if nested else "none",
                "say per_object (--per_obj_png_file), as SA-V needs it" if nested else "check the path",
            )  # fmt: skip
    return Dataset(kind, videos)


def names_in(file: str | Path) -> list[str]:
    """The videos that a list names, one a line; or, as DAVIS 2016 has it, by the paths of a frame and its mask."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("a text file of names, one a line", f"{file} ({error})", "check the path") from error
    words = (line.strip() for line in lines)
    names = [
        Path(word.split()[0]).parent.name if word.lower().endswith(tuple(IMAGE_SUFFIXES)) else word for word in words if word
    ]
    if not names:
        raise InputError(f"names in {file}", "none", "write one a line")
    return list(dict.fromkeys(names))


def _find(root: Path, split: str, places: tuple[str, ...]) -> Path | None:
    return next((path for place in places if (path := root / place.format(split=split)).exists()), None)


def _looks(root: Path, split: str) -> str:
    """What is there instead."""
    found: dict[str, str] = {}
    for kind, layout in KINDS.items():
        for other in (split, "val", "train", "test"):
            if kind != "folder" and _find(root, other, layout.images[:1]) and _find(root, other, layout.annotations[:1]):
                found.setdefault(kind, kind if other == split else f"{kind}'s {other}")
    like = list(found.values())
    there = f"{few(sorted(p.name for p in root.iterdir())) or 'nothing'} in it"
    return there + (f", which looks like {' or '.join(like)}" if like else "")


def _meta(file: Path) -> dict[str, tuple[int, ...] | None]:
    """{video: the ids of its objects} of YouTube-VOS', LVOS' and MOSE's files."""
    try:
        videos = json.loads(file.read_text(encoding="utf-8"))["videos"]
        return {name: tuple(sorted(int(i) for i in video["objects"])) for name, video in sorted(videos.items())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError('{"videos": {NAME: {"objects": …}}}', f"{file} ({error!r})", "take the data set's own file") from error


def _is_video(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and any(folder.iterdir())


def _stems(folder: Path) -> frozenset[str]:
    images = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    return frozenset(path.stem for path in images)
