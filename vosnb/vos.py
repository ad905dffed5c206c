"""A data set through a strategy: a folder of masks per video, by the batch engine. `vosnb vos` is its command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .datasets import Dataset
from .masks import MaskWriter
from .propagate import stream
from .provenance import described, settled
from .strategies import Strategy

__all__ = ["Vos"]

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
        object.__setattr__(self, "strategy", settled(self.strategy))

    def plan(self) -> dict[str, Any]:
        video = self.data[0]
        return {
            "job": "vos",
            "strategy": described(self.strategy),
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
