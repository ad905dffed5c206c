"""A data set through a strategy: a folder of masks per video, by the batch engine. `vosnb vos` is its command line."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .datasets import Dataset
from .errors import InputError
from .masks import MaskWriter
from .propagate import stream
from .strategies import Strategy

__all__ = ["Vos"]

WITHOUT_FILE = ("grabcut", "mini-random")  # models that need no checkpoint
LATE_FLAG = "--track_object_appearing_later_in_video"


@dataclass(frozen=True)
class Vos:
    """A `batch.Job`: every video of `data` from its annotations, forward.

    `every`: prompts from all annotations, not only each object's first.  `late`: that objects appear later is expected; else it is told
    of (they are tracked in any case).
    """

    data: Dataset
    strategy: Strategy
    every: bool = False
    late: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _settled(self.strategy))

    def plan(self) -> dict[str, Any]:
        video = self.data[0]
        return {
            "job": "vos",
            "strategy": _described(self.strategy),
            "images": str(video.images.parent.resolve()),
            "annotations": str(video.annotations.parent.resolve()),
            "per_object": video.per_object,
            "prompts": "every annotation" if self.every else "first annotations",
        }

    def items(self) -> Mapping[str, float]:
        return {video.name: video.cost() for video in self.data}

    def make(self, name: str, folder: Path) -> dict[str, Any]:
        video = self.data[name]
        clip, prompts = video.clip, video.prompts(self.every)
        names, notes = clip.names, []
        if not self.late and (late := sorted({*prompts.ids} - {*prompts.get(0, {})})):
            names_of = (str(prompts.objects.get(obj, {}).get("folder", obj)) for obj in late)
            notes.append(
                f"object {', '.join(names_of)} appears after frame {names[0]} and is tracked from there; "
                f"say {LATE_FLAG} where that is expected, as for LVOS and YouTube-VOS"
            )
        nothing = np.zeros((clip.height, clip.width), bool)
        with MaskWriter(folder, per_object=video.per_object, objects=prompts.objects) as writer:
            for t, result in stream(clip, prompts, self.strategy):
                if video.saved is not None and names[t] not in video.saved:
                    continue
                masks = {**dict.fromkeys(prompts.ids, nothing), **result.masks()} if video.per_object else result.labels
                writer.write(names[t], masks)
        return {"frames": len(clip), "objects": len(prompts.ids), "notes": notes}


def _settled(strategy: Any) -> Any:
    """The same, its model named, and that of the one that it refines: every process and every repeat is to take the same."""
    from .models import weights

    found = {}
    for name, value in _fields(strategy).items():
        if name == "model" and value is None:
            found[name] = weights.default(getattr(strategy, "family", "sam2"))
        elif name != "model" and dataclasses.is_dataclass(value):
            found[name] = _settled(value)
    return dataclasses.replace(strategy, **found)


def _described(strategy: Any) -> dict[str, Any]:
    """Its name, its settings, the checkpoint that its model is."""
    found = {"name": type(strategy).__name__}
    for name, value in _fields(strategy).items():
        found[name] = _described(value) if name != "model" and dataclasses.is_dataclass(value) else value
    if checkpoint := _checkpoint(found.get("model")):
        found["checkpoint"] = checkpoint
    return found


def _fields(strategy: Any) -> dict[str, Any]:
    return {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}


def _checkpoint(model: Any) -> dict[str, str] | None:
    """Which file a model's name stands for, and its hash; None where there is none."""
    from .models import weights

    if not isinstance(model, (str, Path)):
        return None
    if str(model) in weights.cards():
        file = weights.path(str(model))
    elif Path(model).suffix in (".pt", ".pth", ".safetensors"):
        file = Path(model)
    elif str(model) in WITHOUT_FILE:
        return None
    else:
        raise InputError("a checkpoint that `vosnb fetch` lists, or its file", repr(str(model)), "correct the name")
    if not file.is_file():
        raise InputError(
            "a checkpoint file", f"{file}, which does not exist", "check the path, or name one that `vosnb fetch` lists"
        )
    with file.open("rb") as data:
        return {"file": file.name, "sha256": hashlib.file_digest(data, "sha256").hexdigest()}
