"""What a person said about an object on a frame: points, a box, a mask. And the JSON file that holds all of it.

Coordinates are pixels of the original frame, x before y, the origin at the top left. Points lie in [0, W) × [0, H);
boxes are (x0, y0, x1, y1) with x1 and y1 exclusive. Object ids are 1 … 255, labels 1 (object) or 0 (background), as in SAM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import missing, replacing

__all__ = ["Box", "Point", "Prompt", "Prompts"]

LARGEST = 8192 * 8192  # pixels of a mask in a file; a larger one is a mistake or a bomb


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"a finite number for {what}", repr(value), "give pixels of the original frame, x before y")
    return number


def check_id(obj: Any) -> int:
    """An object id as an int; `InputError` unless it is a whole number from 1 to 255."""
    if isinstance(obj, bool) or not isinstance(obj, (int, np.integer)) or not 1 <= obj <= 255:
        raise InputError("an object id from 1 to 255 (0 is background)", repr(obj), "number the objects from 1")
    return int(obj)


@dataclass(frozen=True)
class Point:
    """A click at (x, y) pixels; label 1 is on the object, 0 on the background."""

    x: float
    y: float
    label: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _number(self.x, "a point's x"))
        object.__setattr__(self, "y", _number(self.y, "a point's y"))
        if isinstance(self.label, bool) or self.label not in (0, 1):
            raise InputError("a point's label 1 (object) or 0 (background)", repr(self.label), "relabel the point")
        object.__setattr__(self, "label", int(self.label))


@dataclass(frozen=True)
class Box:
    """A box in pixels, (x0, y0) inclusive, (x1, y1) exclusive."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        for name in ("x0", "y0", "x1", "y1"):
            object.__setattr__(self, name, _number(getattr(self, name), f"a box's {name}"))
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise InputError(
                "a box x0,y0,x1,y1 with x0 < x1 and y0 < y1", f"{self.x0:g},{self.y0:g},{self.x1:g},{self.y1:g}",
                "give left, top, right, bottom, in this order",
            )  # fmt: skip

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return self.x0, self.y0, self.x1, self.y1


@dataclass(frozen=True, eq=False)
class Prompt:
    """Everything said about one object on one frame: any mix of points, at most one box, at most one mask.

    `mask` is (H, W) bool at the size of the frame. It may be empty: the object is known and not visible here.
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        points = tuple(self.points) if isinstance(self.points, Iterable) else (self.points,)
        wrong = [p for p in points if not isinstance(p, Point)]
        if wrong or not isinstance(self.box, Box | None):
            raise InputError(
                "points=(Point(x, y), …) and box=Box(x0, y0, x1, y1)", repr(wrong or self.box)[:80], "wrap it in one of these"
            )
        object.__setattr__(self, "points", points)
        if self.mask is not None:
            mask = np.asarray(self.mask)
            if mask.ndim != 2 or 0 in mask.shape:
                raise InputError("a mask of shape (H, W)", f"shape {mask.shape}", "give one object's mask, one channel")
            mask = mask.astype(bool)  # a copy, so that freezing it freezes nobody else's array
            mask.setflags(write=False)
            object.__setattr__(self, "mask", mask)
        if not self.points and self.box is None and self.mask is None:
            raise InputError("at least one point, a box or a mask", "an empty prompt", "leave the object out instead")

    @classmethod
    def of(cls, value: Prompt | Box | Point | np.ndarray | list | tuple) -> Prompt:
        """A prompt from what people naturally write: a Box, a Point, a list of Points and a Box, a mask."""
        if isinstance(value, Prompt):
            return value
        if isinstance(value, Box):
            return cls(box=value)
        if isinstance(value, Point):
            return cls(points=(value,))
        if isinstance(value, np.ndarray):
            return cls(mask=value)
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, (Point, Box)) for v in value):
            boxes = [v for v in value if isinstance(v, Box)]
            if len(boxes) <= 1:
                return cls(points=tuple(v for v in value if isinstance(v, Point)), box=boxes[0] if boxes else None)
        raise InputError(
            "a Prompt, Box, Point, (H, W) mask or a list of Points and at most one Box",
            repr(value)[:80],
            "wrap it in one of these",
        )

    def check(self, height: int, width: int) -> None:
        """`InputError` where a coordinate lies outside the frame or the mask has another size."""
        size = f"a frame of {width}×{height} (width×height)"
        for p in self.points:
            if not (0 <= p.x < width and 0 <= p.y < height):
                swapped = 0 <= p.y < width and 0 <= p.x < height
                raise InputError(
                    f"a point inside {size}", f"({p.x:g}, {p.y:g})", "x comes before y" if swapped else "move the point"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box.xyxy
            if not (x0 >= 0 and x1 <= width and y0 >= 0 and y1 <= height):
                swapped = y0 >= 0 and y1 <= width and x0 >= 0 and x1 <= height
                raise InputError(
                    f"a box inside {size}",
                    f"{x0:g},{y0:g},{x1:g},{y1:g}",
                    "x comes before y" if swapped else "clip the box to the frame",
                )
        if self.mask is not None and self.mask.shape != (height, width):
            h, w = self.mask.shape
            raise InputError(
                f"a mask for {size}",
                f"a mask of {w}×{h}",
                "make the mask at the frame's own size (no resizing is done for you)",
            )

    def _key(self) -> tuple:
        return self.points, self.box, None if self.mask is None else (self.mask.shape, self.mask.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True)
class Prompts(Mapping[int, dict[int, Prompt]]):
    """All prompts of a clip: `prompts[frame][obj]` is a `Prompt`. Frozen; `with_prompt` and `without` make a changed copy.

    `objects` maps an id to what is known of it: `name`, `color`, and `begins`, the frame that it is followed from in both directions
    where that is not its first prompted one (see `propagate`). `video` holds what is known of the clip (name, sha256, width,
    height, fps, frames). `Prompts.load(path)` and `save(path)` are exact inverses.
    """

    prompts: Mapping[int, Any] = field(default_factory=dict)
    objects: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.prompts, Mapping):
            got = type(self.prompts).__name__
            raise InputError(
                "prompts by frame, {0: a label map or {object id: prompt}}", got, "say which frame it belongs to: {0: …}"
            )
        frames: dict[int, dict[int, Prompt]] = {}
        for frame, given in self.prompts.items():
            if isinstance(frame, bool) or not isinstance(frame, (int, np.integer)) or frame < 0:
                raise InputError("a frame number ≥ 0", repr(frame), "count frames from 0")
            given = getattr(given, "all_labels", given)  # a Segmentation, its auxiliary objects included
            if isinstance(given, np.ndarray):
                given = by_label(given)
            if not isinstance(given, Mapping):
                raise InputError(
                    f"for frame {frame} a label map (H, W) or {{object id: prompt}}",
                    type(given).__name__,
                    "name the objects: {1: Box(…)}",
                )
            if given:
                asked = {check_id(obj): Prompt.of(prompt) for obj, prompt in given.items()}
                frames[int(frame)] = dict(sorted(asked.items()))
        object.__setattr__(self, "prompts", dict(sorted(frames.items())))
        names = {check_id(obj): dict(about) for obj, about in self.objects.items()}
        for obj in self.ids:
            names.setdefault(obj, {})
        object.__setattr__(self, "objects", dict(sorted(names.items())))
        object.__setattr__(self, "video", dict(self.video))

    @classmethod
    def of(cls, value: Prompts | Mapping[int, Any]) -> Prompts:
        return value if isinstance(value, Prompts) else cls(value)

    def __getitem__(self, frame: int) -> dict[int, Prompt]:
        return self.prompts[frame]

    def __iter__(self) -> Iterator[int]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of all prompted objects, ascending."""
        return tuple(sorted({obj for given in self.prompts.values() for obj in given}))

    def with_prompt(self, frame: int, obj: int, prompt: Any) -> Prompts:
        return Prompts(
            {**self.prompts, frame: {**self.prompts.get(frame, {}), obj: Prompt.of(prompt)}}, self.objects, self.video
        )

    def without(self, frame: int, obj: int) -> Prompts:
        kept = {o: p for o, p in self.prompts.get(frame, {}).items() if o != obj}
        return Prompts({**self.prompts, frame: kept}, self.objects, self.video)

    def check(self, frames: int | None, height: int, width: int) -> None:
        """`InputError` unless there is a prompt and each lies in a clip of that many frames of that size."""
        if not self.prompts:
            raise InputError("at least one prompted object", "no prompt at all", "give a first-frame mask, a box or a point")
        for frame, given in self.prompts.items():
            if frames is not None and frame >= frames:
                raise InputError(f"a prompted frame below {frames} (the clip's length)", frame, "frames count from 0")
            for prompt in given.values():
                prompt.check(height, width)

    # -- the file --------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The prompt file's text: sorted keys, one prompt a line, so that a change reads well in a diff."""
        lines = [
            _line(frame, obj, entry)
            for frame, given in self.prompts.items()
            for obj, p in given.items()
            for entry in _entries(p)
        ]
        objects = [json.dumps({"id": obj, **about}, sort_keys=True, ensure_ascii=False) for obj, about in self.objects.items()]
        return (
            '{"version": 1,\n"video": ' + json.dumps(self.video, sort_keys=True, ensure_ascii=False)
            + ',\n"objects": [' + ",".join("\n" + o for o in objects)
            + '],\n"prompts": [' + ",".join("\n" + line for line in lines) + "]}\n"
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Prompts:
        hint = "see vosnb.prompts for the form of the file"
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError("a prompts JSON file", f"text that is not JSON ({error})", hint) from None
        if not isinstance(data, dict) or data.get("version") != 1 or not isinstance(data.get("prompts"), list):
            got = f"version {data.get('version')!r}" if isinstance(data, dict) else type(data).__name__
            raise InputError('a prompts file {"version": 1, "prompts": […]}', got, hint)
        found: dict[int, dict[int, dict]] = {}
        try:
            for entry in data["prompts"]:
                parts = found.setdefault(entry["frame"], {}).setdefault(check_id(entry["obj"]), {})
                kind = entry["kind"]
                if kind == "point":
                    parts["points"] = (*parts.get("points", ()), Point(entry["x"], entry["y"], entry["label"]))
                elif kind in ("box", "mask") and kind in parts:
                    raise InputError(
                        f"one {kind} per object and frame",
                        f"two for object {entry['obj']} on frame {entry['frame']}",
                        "drop one",
                    )
                elif kind == "box":
                    parts["box"] = Box(*entry["xyxy"])
                elif kind == "mask":
                    parts["mask"] = rle_decode(entry["counts"], entry["size"])
                else:
                    raise InputError("a prompt of kind point, box or mask", repr(kind), hint)
            objects = {o["id"]: {k: v for k, v in o.items() if k != "id"} for o in data.get("objects", [])}
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "prompts with frame, obj, kind and coordinates", f"an entry where {error!r} went wrong", hint
            ) from None
        if not isinstance(video := data.get("video", {}), dict):
            raise InputError('"video": {…}, what is known of the clip', repr(video)[:80], hint)
        prompts = {frame: {obj: Prompt(**parts) for obj, parts in given.items()} for frame, given in found.items()}
        return cls(prompts, objects, video)

    def save(self, path: str | Path) -> Path:
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Prompts:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError("a prompts JSON file", f"{path}, which is not text", "give the .json that export wrote") from None
        except FileNotFoundError:
            raise InputError("a prompts JSON file", f"{path}, which does not exist", missing(path)) from None
        return cls.from_json(text)


def by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    """A label map (H, W) of integers to {object id: (H, W) bool}; 0 is background."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise InputError(
            "a label map (H, W) of integers", f"shape {labels.shape}, {labels.dtype}", "pixel value = object id, 0 = background"
        )
    return {check_id(int(i)): labels == i for i in np.unique(labels) if i}


def rle_encode(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, starting with the zeros."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *counts] if flat[0] else counts


def rle_decode(counts: list[int], size: list[int]) -> np.ndarray:
    """The inverse of `rle_encode`; `size` is [height, width]."""
    whole = all(type(n) is int and n >= 0 for n in (*counts, *size)) and len(size) == 2  # Python's: they cannot overflow
    height, width = size if whole else (0, 0)
    if not 0 < height * width <= LARGEST or sum(counts) != height * width:
        raise InputError(
            f"run lengths that add up to {height}×{width}, at most {LARGEST} pixels"
            if whole
            else "whole numbers ≥ 0 in counts and size",
            sum(counts) if whole else repr((size, counts))[:80],
            "the mask in the file is damaged: export it again",
        )
    runs = np.asarray(counts, dtype=np.int64)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((width, height)).T


def _entries(prompt: Prompt) -> Iterator[dict[str, Any]]:
    if prompt.box is not None:
        yield {"kind": "box", "xyxy": [_short(v) for v in prompt.box.xyxy]}
    for p in prompt.points:
        yield {"kind": "point", "x": _short(p.x), "y": _short(p.y), "label": p.label}
    if prompt.mask is not None:
        yield {"kind": "mask", "size": list(prompt.mask.shape), "counts": rle_encode(prompt.mask)}


def _line(frame: int, obj: int, entry: dict[str, Any]) -> str:
    return json.dumps({"frame": frame, "obj": obj, **entry})


def _short(value: float) -> int | float:
    return int(value) if value.is_integer() else value
