"""A strategy for the tests of data sets, on its own so that workers load it quickly: each object's mask moves right by one pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vosnb.prompts import Prompt
from vosnb.strategies import Result, Score, register


@register("shift")
@dataclass(frozen=True)
class Shift:
    speed: int = 1

    def tracker(self, shape: tuple[int, int], frames: int | None) -> ShiftTracker:
        return ShiftTracker(self.speed, shape)


class ShiftTracker:
    def __init__(self, speed: int, shape: tuple[int, int]):
        self.speed, self.shape = speed, shape
        self.masks: dict[int, np.ndarray] = {}

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> Iterable[Result]:
        self.masks = {obj: np.roll(mask, self.speed, 1) for obj, mask in self.masks.items()}
        self.masks.update({obj: prompt.mask for obj, prompt in prompts.items()})
        labels = np.zeros(self.shape, np.uint8)
        for obj in sorted(self.masks, reverse=True):
            labels[self.masks[obj]] = obj
        yield Result(
            labels, {obj: Score() for obj in self.masks}, {obj: np.where(m, 1.0, -1.0) for obj, m in self.masks.items()}
        )

    def finish(self) -> Iterable[Result]:
        return ()
