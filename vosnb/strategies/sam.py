"""SAM frame to frame: each frame is segmented anew, prompted with the previous frame's own result.

The turbulence example's second path: on a prompted frame the prompts give masks, which are refined once with their own mask
and box; from then on every object's prompts are the box and the ±`strength` logits of its mask on the frame before. Objects
compete by argmax, the auxiliary ones included. An object whose mask has become empty has no prompt any more and stays away
until it is prompted again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..logits import mask_to_box, merge
from ..prompts import Prompt, by_label
from . import Result, Score, register


@register("sam")
@dataclass(frozen=True)
class SamFrameToFrame:
    """`model`: any image model of `segment`, with its default; `strength`: the ± of the mask prompt's logits; `box`: whether the box
    is given too."""

    model: Any = None
    strength: float = 18.0
    box: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise InputError("sam's strength, in logits, above 0", self.strength, "18 is a mask that is sure of itself")

    def tracker(self, shape: tuple[int, int], frames: int | None) -> SamTracker:
        from ..models import load

        return SamTracker(self, shape, load(self.model))


class SamTracker:
    """State: the previous frame's label map (H, W) uint8."""

    def __init__(self, settings: SamFrameToFrame, shape: tuple[int, int], model: Any):
        self.settings, self.model = settings, model
        self.labels = np.zeros(shape, np.uint8)
        self.begun: set[int] = set()

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> Iterable[Result]:
        self.begun = self.begun | set(prompts)  # a new set: a fork keeps the old one
        asked = {**self._own_prompts(), **prompts}
        asked = {obj: p for obj, p in asked.items() if not _says_absent(p)}
        if not asked:
            self.labels = np.zeros_like(self.labels)
            yield Result(self.labels, {obj: Score(0.0) for obj in sorted(self.begun)})
            return
        encoded = self.model.encode(image)
        logits, iou = self._decode(encoded, asked)
        self.labels = merge(np.stack(list(logits.values())), tuple(logits))
        if prompts:
            refined, better = self._decode(encoded, {o: p for o, p in self._own_prompts().items() if o in prompts})
            logits, iou = {**logits, **refined}, {**iou, **better}
            self.labels = merge(np.stack(list(logits.values())), tuple(logits))
        yield Result(self.labels, {obj: Score(iou.get(obj, 0.0)) for obj in sorted(self.begun)}, logits)

    def finish(self) -> Iterable[Result]:
        return ()

    def fork(self) -> SamTracker:
        return copy.copy(self)

    def _own_prompts(self) -> dict[int, Prompt]:
        return {
            obj: Prompt(box=mask_to_box(mask) if self.settings.box else None, mask=mask)
            for obj, mask in by_label(self.labels).items()
        }

    def _decode(self, encoded: Any, asked: Mapping[int, Prompt]) -> tuple[dict[int, np.ndarray], dict[int, float]]:
        if not asked:
            return {}, {}
        decoded = self.model.decode(encoded, list(asked.values()), strength=self.settings.strength)
        return dict(zip(asked, decoded.logits[:, 0], strict=True)), dict(zip(asked, decoded.iou[:, 0].tolist(), strict=True))


def _says_absent(prompt: Prompt) -> bool:
    return prompt.mask is not None and not prompt.mask.any() and not prompt.points and prompt.box is None
