"""Another strategy's masks, refined frame by frame: the image model sees each frame with the mask and box of every object as prompts.

The turbulence example's last step. By name: "xmem+refine" (mask and box), "xmem+refine-box", "xmem+refine-mask", and so with any strategy.
What is refined is not fed back: the first strategy goes on with its own masks.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..logits import mask_to_box, merge
from ..prompts import Prompt, by_label
from . import Result, Score

PROMPTS = ("mask+box", "box", "mask")


@dataclass(frozen=True)
class Refined:
    """`first`: the strategy whose masks are refined; `model`: any image model of `segment`; `prompt`: what it is given of each mask,
    mask+box, box or mask; `strength`: the ± of the mask's logits; `trust`: logits by which the mask itself is believed, so that the
    model overrules it only where it is surer than this; 0 is the model's word alone, as in the turbulence example. A mask that a
    person gave stays as it is."""

    first: Any
    prompt: str = "mask+box"
    model: Any = None
    strength: float = 18.0
    trust: float = 2.0

    def __post_init__(self) -> None:
        _check(self.prompt, self.strength, self.trust)

    def tracker(self, shape: tuple[int, int], frames: int | None) -> RefinedTracker:
        from ..models import load

        refiner = Refiner(load(self.model), self.prompt, self.strength, self.trust)
        return RefinedTracker(refiner, self.first.tracker(shape, frames))


@dataclass(frozen=True)
class Refiner:
    """`model`: an `ImageModel`; the rest as in `Refined`."""

    model: Any
    prompt: str
    strength: float
    trust: float

    def __post_init__(self) -> None:
        _check(self.prompt, self.strength, self.trust)

    def __call__(self, image: np.ndarray, found: Result, given: Collection[int] = ()) -> Result:
        """`found`, with its label map (H, W) refined on the image (H, W, 3), but for the objects `given`: these keep their pixels.

        All objects are decoded in one call and compete by argmax. Scores: `iou` is the model's opinion, `disagreement` 1 − IoU with
        what the mask was; an object without a pixel has no prompt and stays away.
        """
        before = by_label(found.labels)
        asked = {obj: self._prompt(mask) for obj, mask in before.items() if obj not in given}
        if not asked:
            return replace(found, scores={obj: replace(score, disagreement=0.0) for obj, score in found.scores.items()})
        decoded = self.model.decode(self.model.encode(image), list(asked.values()), strength=self.strength)
        own = np.stack([before[obj] for obj in asked])
        refined = decoded.logits[:, 0] + np.where(own, np.float32(self.trust), np.float32(-self.trust))
        labels = merge(refined, tuple(asked))
        for obj in set(before) & set(given):
            labels[before[obj]] = obj
        logits = {obj: np.where(mask, np.float32(1), np.float32(-1)) for obj, mask in before.items()}  # of those given
        logits.update(zip(asked, refined, strict=True))
        scores = {obj: replace(found.scores.get(obj, Score()), disagreement=0.0) for obj in sorted({*found.scores, *before})}
        for obj, iou in zip(asked, decoded.iou[:, 0].tolist(), strict=True):
            scores[obj] = replace(scores[obj], iou=iou, disagreement=1 - _iou(before[obj], labels == obj))
        return Result(labels, scores, {obj: logits.get(obj, np.full(labels.shape, np.float32(-1))) for obj in scores})

    def _prompt(self, mask: np.ndarray) -> Prompt:
        return Prompt(box=mask_to_box(mask) if "box" in self.prompt else None, mask=mask if "mask" in self.prompt else None)


class RefinedTracker:
    """State: the first strategy's, and the frames that it has not reported yet, with what a person said there."""

    def __init__(self, refiner: Refiner, first: Any):
        self.refiner, self.first = refiner, first
        self.waiting: deque[tuple[np.ndarray, Mapping[int, Prompt]]] = deque()

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> Iterable[Result]:
        self.waiting.append((image, prompts))
        yield from self._refined(self.first.step(image, prompts))

    def finish(self) -> Iterable[Result]:
        yield from self._refined(self.first.finish())

    def fork(self) -> RefinedTracker:
        twin = copy.copy(self)
        twin.first, twin.waiting = self.first.fork(), self.waiting.copy()
        return twin

    def _refined(self, results: Iterable[Result]) -> Iterator[Result]:
        for result in results:
            image, prompts = self.waiting.popleft()
            yield self.refiner(image, result, [obj for obj, prompt in prompts.items() if prompt.mask is not None])


def _check(prompt: str, strength: float, trust: float) -> None:
    if prompt not in PROMPTS:
        raise InputError("a prompt among " + ", ".join(PROMPTS), repr(prompt), "choose one of these")
    if not 0 < strength < float("inf"):
        raise InputError("a strength, in logits, above 0", strength, "18 is a mask that is sure of itself")
    if not 0 <= trust < float("inf"):
        raise InputError("a trust, in logits, of 0 or more", trust, "0 is the model's word alone, 2 what is usual")


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0
