"""Dense optical flow carries the labels: an honest classical baseline that needs no weights.

Per object an occupancy in [0, 1] is pulled along the flow from this frame back to the previous one (DIS flow: Kroeger et al.,
"Fast Optical Flow using Dense Inverse Search", ECCV 2016). It stays continuous over time, so that motion below a pixel adds
up, and cubic interpolation and a mild steepening keep its edges from blurring. Near the edge of a mask, where surfaces appear
and vanish, the flow is not believed where going there and back again does not lead home (the test of Sundaram et al., "Dense
Point Trajectories by GPU-Accelerated Large Displacement Optical Flow", ECCV 2010) or leads to another colour: such a pixel goes
to the object, or the background, whose colour it has nearby.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..errors import InputError
from ..models import check
from ..prompts import Prompt
from . import Result, Score, register

PRESETS = {"fast": 1, "medium": 2}  # cv2.DISOPTICAL_FLOW_PRESET_*
STEEPEN = 1.15  # contrast gain about 1/2 per frame, against the blur of resampling
OTHER = 5.0, 12.0  # a pixel came from elsewhere if its colour differs by so many times the usual, and so many levels
SMALLEST = 32  # pixels: on a smaller frame OpenCV's DIS flow reads beyond its arrays and kills the process
EDGE = 4  # pixels: further from the edge of a mask the flow is not doubted
NEARBY = 7.0  # pixels, the reach of the colours that stand in for a flow that is not believed


@register("flow")
@dataclass(frozen=True)
class Flow:
    """`tolerance`: pixels by which forward and backward flow may miss, and a tenth of their length on top; `quality`: medium or
    fast; `model` turns points and boxes into a first mask."""

    tolerance: float = 1.5
    quality: str = "medium"
    model: str = "grabcut"

    def __post_init__(self) -> None:
        if self.quality not in PRESETS:
            raise InputError("flow's quality among " + ", ".join(PRESETS), repr(self.quality), "choose one of these")
        if not self.tolerance > 0:
            raise InputError("flow's tolerance in pixels above 0", self.tolerance, "try 1.5")

    def tracker(self, shape: tuple[int, int], frames: int | None) -> FlowTracker:
        check(self.model)  # it may be needed on a late frame only
        return FlowTracker(self, shape)


class FlowTracker:
    """State: the previous frame (H, W, 3) uint8 and each object's occupancy (H, W) float32."""

    def __init__(self, settings: Flow, shape: tuple[int, int]):
        self.settings, self.shape = settings, shape
        self.flow = cv2.DISOpticalFlow_create(PRESETS[settings.quality])
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        self.home = np.stack([x, y], axis=-1)  # (H, W, 2), each pixel's own (x, y)
        self.image: np.ndarray | None = None
        self.occupancy: dict[int, np.ndarray] = {}

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> Iterable[Result]:
        trust = np.ones(self.shape, bool)
        if self.occupancy:
            trust = self._carry(image)
        for obj, mask in first_masks(image, prompts, self.settings.model).items():
            for other in self.occupancy.values():
                other[mask] = 0
            self.occupancy[obj] = mask.astype(np.float32)
        self.image = image
        yield self._result(trust)

    def finish(self) -> Iterable[Result]:
        return ()

    def fork(self) -> FlowTracker:
        twin = copy.copy(self)
        twin.occupancy = {obj: p.copy() for obj, p in self.occupancy.items()}
        return twin

    def _carry(self, image: np.ndarray) -> np.ndarray:
        """Moves every occupancy to the new frame; returns (H, W) bool, where the flow is believed."""
        new, old = (cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in (image, self.image))
        back, forth = self._flow(new, old), self._flow(old, new)  # (H, W, 2): where each new pixel was, and the way back
        there = self.home + back
        forth = cv2.remap(forth, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        length = np.linalg.norm(back, axis=-1) + np.linalg.norm(forth, axis=-1)
        trust = np.linalg.norm(back + forth, axis=-1) <= self.settings.tolerance + 0.1 * length
        came = cv2.remap(self.image, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        other = cv2.absdiff(image, came).max(axis=-1)
        trust &= other <= max(OTHER[0] * np.median(other), OTHER[1])
        carried = {
            o: cv2.remap(p, there, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE) for o, p in self.occupancy.items()
        }
        carried = {o: np.clip((p - 0.5) * STEEPEN + 0.5, 0, 1) for o, p in carried.items()}
        labels = self._labels(carried)
        reach = np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8)
        trust |= cv2.dilate(labels, reach) == cv2.erode(labels, reach)
        self.occupancy = carried if trust.all() else _by_colour(image, carried, trust)
        return trust

    def _flow(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(H, W, 2) float32 flow from one grey frame to another."""
        height, width = self.shape
        down, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
        if down or right:
            a, b = (cv2.copyMakeBorder(i, 0, down, 0, right, cv2.BORDER_REPLICATE) for i in (a, b))
        return self.flow.calc(a, b, None)[:height, :width]

    def _labels(self, occupancy: Mapping[int, np.ndarray]) -> np.ndarray:
        """(H, W) uint8: the object of the highest occupancy above a half."""
        ids = np.array([0, *occupancy], np.uint8)
        return ids[np.argmax(np.stack([np.full(self.shape, 0.5, np.float32), *occupancy.values()]), axis=0)]

    def _result(self, trust: np.ndarray) -> Result:
        if not self.occupancy:
            return Result(np.zeros(self.shape, np.uint8))
        labels, scores = self._labels(self.occupancy), {}
        for obj in self.occupancy:
            inside = labels == obj
            scores[obj] = Score(iou=float(trust[inside].mean()) if inside.any() else 0.0)
        return Result(labels, scores, {obj: (p - 0.5) * 36 for obj, p in self.occupancy.items()})


def _by_colour(image: np.ndarray, occupancy: Mapping[int, np.ndarray], trust: np.ndarray) -> dict[int, np.ndarray]:
    """Pixels without `trust` go to whichever of the objects and the background has the most similar mean colour around them."""
    colour = image.astype(np.float32)
    rest = 1 - np.clip(sum(occupancy.values()), 0, 1)
    nearest, distance = np.zeros(trust.shape, np.uint8), np.full(trust.shape, np.inf, np.float32)
    for obj, p in {0: rest, **occupancy}.items():
        weight = p * trust
        around = cv2.GaussianBlur(weight, (0, 0), NEARBY)[..., None]
        mean = cv2.GaussianBlur(colour * weight[..., None], (0, 0), NEARBY) / np.maximum(around, 1e-6)
        far = np.where(around[..., 0] > 0.01, np.linalg.norm(colour - mean, axis=-1), np.inf)
        nearest, distance = np.where(far < distance, np.uint8(obj), nearest), np.minimum(far, distance)
    return {obj: np.where(trust, p, (nearest == obj).astype(np.float32)) for obj, p in occupancy.items()}


def first_masks(image: np.ndarray, prompts: Mapping[int, Prompt], model: Any) -> dict[int, np.ndarray]:
    """{object: (H, W) bool}: masks as given; points and boxes by way of `segment`, for strategies that only take masks."""
    masks = {obj: p.mask for obj, p in prompts.items() if p.mask is not None and not p.points and p.box is None}
    rest = {obj: p for obj, p in prompts.items() if obj not in masks}
    if rest:
        from ..segment import segment

        labels = segment(image, rest, model=model).all_labels
        masks.update({obj: labels == obj for obj in rest})
    return masks
