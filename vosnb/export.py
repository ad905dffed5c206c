"""The verb `export`: masks as other programs want them, whole or not at all; and what reads them back.

The JSON files hold run lengths, compressed to text as pycocotools does it, so that masks come back bit by bit. An object is a category
of its own name and, since COCO knows no identity over time, has a `track_id`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Clip
from .errors import InputError
from .files import check_new, missing, replacing, replacing_parts
from .masks import Masks
from .paint import Color, with_colors
from .progress import progress
from .prompts import LARGEST, check_id, rle_decode, rle_encode

__all__ = ["FORMATS", "export", "read_coco", "read_masks", "read_youtube_vis"]

_MARGIN = 8  # pixels around an object whose colour is kept beneath the alpha: encoders mix the colours of neighbours
_FRAME = ".jpg"  # what COCO calls a frame of ours; the name is what counts


def export(
    masks: Masks | str | Path | np.ndarray,
    clip: Clip | str | Path | None,
    out: str | Path,
    format: str | Sequence[str] = "png",
    *,
    ids: Collection[int] | None = None,
    objects: Mapping[int, Mapping[str, str]] | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> dict[str, Path]:
    """Writes `masks` in one or more formats and returns {format: path}.

    | format | is | in `out` |
    |---|---|---|
    | png | a palette PNG per frame, pixel value = object id | masks/FRAME.png |
    | png-per-object | 0/255 per object, as SA-V has them; objects may overlap | objects/001/FRAME.png |
    | coco | COCO instances, run lengths; objects may overlap | coco.json |
    | youtube-vis | YouTube-VIS annotations, run lengths; objects may overlap | youtube_vis.json |
    | video | the masks over the frames, H.264 | overlay.mp4 |
    | webm | the objects alone, VP9 with alpha | alpha.webm |
    | cutout | the objects alone, an RGBA PNG per frame | cutouts/FRAME.png |
    | csv | areas, places, outlines, interfaces (see `measure`), in pixels | measures/objects.csv, … |

    `masks`: `Masks`, an array (T, H, W), or what `read_masks` reads. `clip`: its frames, (T, H, W, 3); needed by video, webm and
    cutout, else None will do (then csv counts time in frames). `ids`: only these objects. `objects`: their names and colours,
    {1: {"name": "girl", "color": "#e6194b"}}, added to what `masks.objects` knows.
    `out` is a folder, and may hold other things; with one format that is a single file, a name that ends as the file does
    (film.webm) is that file. All formats appear, or none.

    `InputError`, before anything is written: an unknown format, no clip where one is needed, a clip of another size or length,
    a place that is taken (unless `overwrite`, which replaces these formats alone).
    """
    names = [format] if isinstance(format, str) else list(dict.fromkeys(format))
    if not names or not set(names) <= set(FORMATS):
        raise InputError("formats among " + ", ".join(FORMATS), ", ".join(map(repr, names)) or "none", "choose from these")
    out, masks = Path(out), _masks(masks)
    clip = clip if clip is None or isinstance(clip, Clip) else Clip(clip)
    if ids is not None:
        if unknown := sorted(set(map(check_id, ids)) - set(masks.ids)):
            raise InputError(f"objects among {list(masks.ids)}", unknown, "choose from these")
        masks = masks.only(ids)
    _check(masks, clip, names)
    source = _Source(
        masks, clip, {obj: {**masks.objects.get(obj, {}), **(objects or {}).get(obj, {})} for obj in masks.ids}, show_progress
    )
    one = FORMATS[names[0]]
    if len(names) == 1 and out.suffix and out.suffix.lower() == Path(one.path).suffix:
        check_new(out, overwrite)
        with replacing(out) as temporary:
            one.write(source, temporary)
        return {names[0]: out}
    with replacing_parts(out, [FORMATS[name].path for name in names], overwrite) as making:
        for name in names:
            FORMATS[name].write(source, making / FORMATS[name].path)
    return {name: out / FORMATS[name].path for name in names}


def read_masks(source: str | Path) -> Masks:
    """Masks from a folder of PNGs (one per frame, or a folder of them per object), or from a COCO or YouTube-VIS JSON file."""
    path = Path(source)
    if path.suffix.lower() != ".json" or path.is_dir():
        return Masks(path)
    return read_youtube_vis(path) if "videos" in _json(path) else read_coco(path)


@dataclass(frozen=True)
class _Source:
    """What is exported. `objects`: what is known of each object that occurs."""

    masks: Masks
    clip: Clip | None
    objects: Mapping[int, Mapping[str, str]]
    show: bool

    @property
    def colors(self) -> dict[int, Color]:
        return {obj: about["color"] for obj, about in self.objects.items() if "color" in about}

    @property
    def times(self) -> np.ndarray | None:
        return None if self.clip is None or self.clip.rate_is_constant else self.clip.times

    def layers(self, what: str) -> Iterator[tuple[int, dict[int, np.ndarray]]]:
        """(frame, {object: (H, W) bool}), with progress."""
        frames = range(len(self.masks))
        yield from ((t, self.masks.layers(t)) for t in progress(frames, len(frames), what, show=self.show))

    def cut(self, what: str, margin: int = 0) -> Iterator[np.ndarray]:
        """Every frame as (H, W, 4) uint8: opaque on the objects, colours only there and up to `margin` pixels around."""
        import cv2

        pairs = progress(zip(self.clip, self.masks, strict=True), len(self.masks), what, show=self.show)
        element = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
        for image, labels in pairs:
            alpha = np.where(labels > 0, np.uint8(255), np.uint8(0))
            shown = cv2.dilate(alpha, element) if margin else alpha
            yield np.dstack([np.where(shown[..., None] > 0, image, np.uint8(0)), alpha])


def _masks(given: Any) -> Masks:
    if isinstance(given, Masks):
        return given
    return read_masks(given) if isinstance(given, (str, Path)) else Masks(given)


def _check(masks: Masks, clip: Clip | None, names: Sequence[str]) -> None:
    if not len(masks):
        raise InputError("masks of at least one frame", "none", "check the folder")
    if len(set(masks.names)) < len(masks):
        raise InputError("frame names that differ", "one twice", "rename the frames")
    if needy := [name for name in names if FORMATS[name].needs_clip and clip is None]:
        raise InputError(f"the clip, for {', '.join(needy)}", "none", "give the video or the folder of frames (--clip)")
    if "csv" in names and not masks.ids:
        raise InputError("an object to measure", "empty masks", "leave csv out")
    if clip is not None and (clip.length, clip.height, clip.width) != masks.shape:
        t, h, w = masks.shape
        got = f"one of {clip.length} frames, {clip.width}×{clip.height}"
        raise InputError(f"the clip of these masks, {t} frames, {w}×{h}", got, "give the clip that was segmented")


# -- pictures and films --------------------------------------------------------------------------------------------------


def _png(source: _Source, path: Path, per_object: bool = False) -> None:
    source.masks.save(path, per_object=per_object, palette=with_colors(source.colors))


def _video(source: _Source, path: Path) -> None:
    source.masks.video(source.clip, path, colors=source.colors)


def _webm(source: _Source, path: Path) -> None:
    from .video import write_alpha_video

    write_alpha_video(path, source.cut("alpha film", _MARGIN), source.clip.fps, source.times)


def _cutout(source: _Source, path: Path) -> None:
    from PIL import Image

    path.mkdir()
    for name, image in zip(source.masks.names, source.cut("cut-outs"), strict=True):
        Image.fromarray(image).save(path / f"{name}.png", compress_level=3)


def _csv(source: _Source, path: Path) -> None:
    from .measure import measure

    measure(source.masks, times=None if source.clip is None else source.clip.times).save(path, colors=source.colors)


# -- COCO and YouTube-VIS --------------------------------------------------------------------------------------------------


def _coco(source: _Source, path: Path) -> None:
    height, width = source.masks.shape[1:]
    images = [
        {"id": t + 1, "file_name": f"{name}{_FRAME}", "height": height, "width": width}
        for t, name in enumerate(source.masks.names)
    ]
    found: list[dict[str, Any]] = []
    for t, layers in source.layers("COCO"):
        for obj, mask in layers.items():
            rle, area, box = _run_lengths(mask)
            found.append({
                "id": len(found) + 1, "image_id": t + 1, "category_id": obj, "track_id": obj, "segmentation": rle, "area": area,
                "bbox": box, "iscrowd": 0,
            })  # fmt: skip
    _write_json(
        path,
        {"info": {"description": "made by vosnb"}, "images": images, "annotations": found, "categories": _categories(source)},
    )


def _youtube_vis(source: _Source, path: Path) -> None:
    length, height, width = source.masks.shape
    name = "clip" if source.clip is None else source.clip.name
    size = {"height": height, "width": width, "length": length}
    video = {"id": 1, "file_names": [f"{name}/{frame}{_FRAME}" for frame in source.masks.names], **size}
    found = {
        obj: {
            "id": obj, "video_id": 1, "category_id": obj, "track_id": obj, "iscrowd": 0, **size, "segmentations": [None] * length,
            "areas": [None] * length, "bboxes": [None] * length,
        }
        for obj in source.objects
    }  # fmt: skip
    for t, layers in source.layers("YouTube-VIS"):
        for obj, mask in layers.items():
            of = found[obj]
            of["segmentations"][t], of["areas"][t], of["bboxes"][t] = _run_lengths(mask)
    data = {"videos": [video], "annotations": list(found.values()), "categories": _categories(source)}
    _write_json(path, {"info": {"description": "made by vosnb"}, **data})


def _categories(source: _Source) -> list[dict[str, Any]]:
    return [
        {"id": obj, "supercategory": "object", **about, "name": about.get("name", f"object {obj}")}
        for obj, about in source.objects.items()
    ]


def _run_lengths(mask: np.ndarray) -> tuple[dict[str, Any], int, list[int]]:
    """A mask (H, W) bool as COCO has it: {"size": [H, W], "counts": text}, its area, its box [x, y, width, height]."""
    import cv2

    rle = {"size": list(mask.shape), "counts": _to_text(rle_encode(mask))}
    return rle, int(np.count_nonzero(mask)), list(cv2.boundingRect(mask.astype(np.uint8)))


def _to_text(counts: Sequence[int]) -> str:
    """COCO's text of run lengths: from the fourth on, the difference to the one before last; five bits a character, the lowest first,
    0x20 where more follow, from "0" on."""
    text = bytearray()
    for i, count in enumerate(counts):
        rest, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, rest = rest & 0x1F, rest >> 5
            more = rest != (-1 if bits & 0x10 else 0)  # the highest bit written is the sign
            text.append(48 + bits + (0x20 if more else 0))
    return text.decode("ascii")


def _from_text(text: str) -> list[int]:
    """The inverse. Text that is none of COCO's gives runs that do not add up."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        if shift > 40:
            return []
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= (1 << shift) if code & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def read_coco(path: str | Path) -> Masks:
    """Masks from COCO instances: an image is a frame, in the order of the file; its name is the file's without the suffix.

    Segmentations are run lengths, compressed or not; objects may overlap. The object is `track_id`, or, without one,
    the category, of which an image then has one instance. `InputError` for anything else, images of different sizes, and damage.
    """
    data = _json(path)
    with _reading(path):
        images = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
        names = [Path(image["file_name"]).stem for image in data["images"]]
        frames: dict[Any, dict[int, np.ndarray]] = {image: {} for image in images}
        shape = _one_size(list(images.values()), path)
        for one in data["annotations"]:
            obj = check_id(one.get("track_id", one["category_id"]))
            if obj in frames[one["image_id"]]:
                raise InputError(
                    f"one instance of object {obj} per image in {path}", f"two on image {one['image_id']}",
                    "give each instance a track_id: COCO itself does not say who is who on the next frame",
                )  # fmt: skip
            frames[one["image_id"]][obj] = _mask(one["segmentation"], shape, path)
        about = _about(data)
    return Masks(frames.values(), names, shape=shape, objects=about)


def read_youtube_vis(path: str | Path, video: str | int | None = None) -> Masks:
    """Masks of one video of a YouTube-VIS file: `video` is its id, or its folder; it may be left out where there is only one.

    The object is `track_id`, or, without one, the annotation's place among the video's, from 1. Everything else as in `read_coco`.
    """
    data = _json(path)
    with _reading(path):
        known = {one["id"]: one for one in data["videos"]}
        folders = {Path(one["file_names"][0]).parent.name: one["id"] for one in known.values()}
        chosen = folders.get(video, video) if video is not None or len(known) != 1 else next(iter(known))
        if chosen not in known:
            raise InputError(f"a video among {', '.join(folders)} of {path}", repr(video), "name one of these")
        names = [Path(file).stem for file in known[chosen]["file_names"]]
        shape = _one_size([(known[chosen]["height"], known[chosen]["width"])], path)
        frames: list[dict[int, np.ndarray]] = [{} for _ in names]
        about, seen = _about(data), {}
        for place, one in enumerate((one for one in data["annotations"] if one["video_id"] == chosen), 1):
            obj = check_id(one.get("track_id", place))
            if obj in seen or len(one["segmentations"]) != len(names):
                got = f"{len(one['segmentations'])} for object {obj}" + (", which was there before" if obj in seen else "")
                raise InputError(f"{len(names)} segmentations for each object in {path}", got, "export it again")
            seen[obj] = about.get(one["category_id"], {})
            for t, segmentation in enumerate(one["segmentations"]):
                if segmentation is not None:
                    frames[t][obj] = _mask(segmentation, shape, path)
    return Masks(frames, names, shape=shape, objects=seen)


def _json(path: str | Path) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("a COCO or YouTube-VIS JSON file", f"{path}, which does not exist", missing(path)) from None
    except (ValueError, RecursionError) as error:
        raise InputError("a COCO or YouTube-VIS JSON file", f"{path}, which is no JSON ({error})", "export it again") from None
    if not isinstance(data, dict) or "annotations" not in data:
        raise InputError('a JSON file with "annotations"', f"{path}, which has none", "give a COCO or YouTube-VIS file")
    return data


class _reading:
    """Entries that are missing or of another type, as an `InputError` that names the file."""

    def __init__(self, path: str | Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (KeyError, TypeError, IndexError, AttributeError)):
            got = f"an entry where {error!r} went wrong"
            raise InputError(f"the entries of COCO or YouTube-VIS in {self.path}", got, "export it again") from error


def _one_size(sizes: Sequence[tuple[int, int]], path: str | Path) -> tuple[int, int]:
    if len(set(sizes)) != 1 or not all(isinstance(n, int) and n > 0 for n in sizes[0]) or sizes[0][0] * sizes[0][1] > LARGEST:
        raise InputError(f"frames of one size, at most {LARGEST} pixels, in {path}", sorted(set(sizes))[:3], "split the file")
    return sizes[0]


def _about(data: Mapping[str, Any]) -> dict[int, dict[str, str]]:
    """What the file knows of its categories, by id; those that no object of ours can have are left out."""
    kept = {one["id"]: {k: one[k] for k in ("name", "color") if k in one} for one in data.get("categories", [])}
    return {obj: about for obj, about in kept.items() if isinstance(obj, int) and 1 <= obj <= 255}


def _mask(segmentation: Any, shape: tuple[int, int], path: str | Path) -> np.ndarray:
    """(H, W) bool."""
    if isinstance(segmentation, list):
        raise InputError(f"run lengths in {path}", "polygons", "convert them: COCO(…).annToRLE of pycocotools")
    size, counts = segmentation["size"], segmentation["counts"]
    if tuple(size) != shape:
        raise InputError(f"masks of {shape[1]}×{shape[0]} in {path}, as its frames are", f"size {size}", "export it again")
    return rle_decode(_from_text(counts) if isinstance(counts, str) else counts, list(size))


@dataclass(frozen=True)
class Format:
    """Where in the folder it lies, whether the frames are needed, and what writes it."""

    path: str
    write: Callable[[_Source, Path], None]
    needs_clip: bool = False


FORMATS = {
    "png": Format("masks", _png),
    "png-per-object": Format("objects", partial(_png, per_object=True)),
    "coco": Format("coco.json", _coco),
    "youtube-vis": Format("youtube_vis.json", _youtube_vis),
    "video": Format("overlay.mp4", _video, needs_clip=True),
    "webm": Format("alpha.webm", _webm, needs_clip=True),
    "cutout": Format("cutouts", _cutout, needs_clip=True),
    "csv": Format("measures", _csv),
}
