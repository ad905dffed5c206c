"""The verb `refine`: masks of a clip in, masks out, each frame seen by an image model with what was found there as prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import models
from .clip import Clip
from .errors import InputError
from .masks import Masks
from .progress import progress
from .propagate import collect
from .strategies import Result
from .strategies.refined import Refiner

__all__ = ["changes", "refine"]


def refine(
    clip: Clip,
    masks: Masks | np.ndarray | str | Path,
    prompt: str = "mask+box",
    model: str | Path | models.ImageModel | None = None,
    *,
    strength: float = 18.0,
    trust: float = 2.0,
    out: str | Path | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Masks:
    """The masks of a clip, (T, H, W), refined frame by frame: Masks in, Masks out; with `out` a folder, as in `propagate`.

    `prompt` says what `model`, any that `segment` takes, is given of each object's mask: "mask+box" (as ±`strength` logits, and its tight
    box), "box" or "mask". It overrules a mask only where it is surer than `trust`, in logits; 0 is its word alone, as in the turbulence
    example. All objects of a frame are decoded in one call, and compete for pixels. How much it changed is in the
    scores, as `disagreement` (1 − IoU with what the mask was), and in `changes`. The same behind `propagate`: by="xmem+refine".

    `InputError` where the masks are not the clip's, and as in `segment`, before the first frame.
    """
    clip = clip if isinstance(clip, Clip) else Clip(clip)
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    if masks.shape != (clip.length, clip.height, clip.width):
        raise InputError(f"masks of {clip.length} frames of {clip.width}×{clip.height}", repr(masks), "give those of this clip")
    refiner = Refiner(models.load(model), prompt, strength, trust)
    results = progress(_refined(clip, masks, refiner), total=clip.length, label="refine", show=show_progress)
    return collect(results, clip, out=out, overwrite=overwrite)


def _refined(clip: Clip, masks: Masks, refiner: Refiner) -> Iterator[tuple[int, Result]]:
    for t, (image, labels) in enumerate(zip(clip, masks, strict=True)):
        yield t, refiner(image, Result(labels, masks.scores[t] if masks.scores else {}))


def changes(masks: Masks) -> dict[int, dict[int, float]]:
    """How much `refine` (or a strategy "+refine") left of each mask: {object: {frame: IoU before and after, 1 = unchanged}}."""
    found = {obj: dict.fromkeys(range(len(masks)), 1.0) for frame in masks.scores or () for obj in sorted(frame)}
    for t, frame in enumerate(masks.scores or ()):
        for obj, score in frame.items():
            found[obj][t] = 1 - score.disagreement
    return dict(sorted(found.items()))
