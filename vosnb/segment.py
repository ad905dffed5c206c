"""The verb `segment`: one image, prompts for its objects, one label map."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import logits as post
from . import models
from .errors import InputError
from .prompts import Box, Prompts

__all__ = ["Segmentation", "segment"]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found on one image, and how. As an array it is `labels`.

    labels (H, W) uint8, pixel value = object id, auxiliary objects as background; `all_labels` the same with them kept.
    Per object id: `logits` (H, W) float32, > threshold = object, after holes were filled; `raw` the model's own, before;
    `candidates` (C, H, W), all that the model offered, and `candidate_iou` (C,) its opinion of them (NaN: it has none); `iou`
    that of the chosen one; `boxes` tight around the object in `all_labels`, None where it came out empty.
    """

    labels: np.ndarray
    all_labels: np.ndarray
    logits: Mapping[int, np.ndarray]
    raw: Mapping[int, np.ndarray]
    iou: Mapping[int, float]
    boxes: Mapping[int, Box | None]
    candidates: Mapping[int, np.ndarray]
    candidate_iou: Mapping[int, np.ndarray]

    @property
    def masks(self) -> dict[int, np.ndarray]:
        """{object id: (H, W) bool}, auxiliary objects included; empty where the object came out empty."""
        return {obj: self.all_labels == obj for obj in self.logits}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.labels, dtype=dtype, copy=copy)


def segment(
    image: np.ndarray,
    prompts: Mapping[int, Any] | np.ndarray,
    model: str | Path | models.ImageModel | None = None,
    *,
    multimask: bool = False,
    fill_holes: int | bool | None = None,
    remove_islands: int | None = None,
    threshold: float = 0.0,
    aux: Collection[int] = (),
    strength: float = 18.0,
    device: str = "auto",
) -> Segmentation:
    """Segments the prompted objects of an (H, W, 3) uint8 RGB image.

    `prompts`: {object id: Prompt, Box, Point, a list of these, or (H, W) mask}, or a label map (H, W).
    `model`: a name that `models.names()` lists, a checkpoint file, or any `ImageModel`; None is the largest SAM 2.1 that was fetched,
    or else `vosnb-mini-sam2`, which is for vosnb's own scenes, not for real footage. All objects are decoded together.
    `multimask`: the model offers three masks per object, the one with the highest predicted IoU is taken.
    `fill_holes`, `remove_islands`: largest area, in pixels of the image, of a hole or island to remove from each object's
    logits; `fill_holes=True` is any hole that does not touch the border. Then objects compete: a pixel goes to the highest
    logit above `threshold`. `aux` objects compete too, and are background in `labels`. Masks are sent as ±`strength` logits.
    `InputError` for anything that does not fit, before a model is loaded, and for a checkpoint that is missing or damaged.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError("an image (H, W, 3) uint8 RGB", f"shape {image.shape}, {image.dtype}", "take a frame of a Clip")
    asked = Prompts({0: prompts})
    asked.check(1, *image.shape[:2])
    if stray := sorted(set(aux) - set(asked.ids)):
        raise InputError(
            f"auxiliary objects among the prompted {list(asked.ids)}", stray, "prompt them, or leave them out of aux"
        )
    network = models.load(model, device)

    decoded = network.decode(network.encode(image), list(asked[0].values()), multimask=multimask, strength=strength)
    rows = range(len(asked.ids))
    best = [int(np.argmax(decoded.iou[i])) for i in rows]  # of NaN, the first
    raw = np.stack([decoded.logits[i, best[i]] for i in rows])
    clean = raw
    if fill_holes:
        clean = post.fill_holes(clean - threshold, fill_holes) + threshold
    if remove_islands:
        clean = post.remove_islands(clean - threshold, remove_islands) + threshold
    labels = post.merge(clean, asked.ids, threshold, keep_aux=True)
    return Segmentation(
        labels=np.where(np.isin(labels, list(aux)), np.uint8(0), labels),
        all_labels=labels,
        logits=dict(zip(asked.ids, clean, strict=True)),
        raw=dict(zip(asked.ids, raw, strict=True)),
        iou={obj: float(decoded.iou[i, best[i]]) for i, obj in enumerate(asked.ids)},
        boxes={obj: post.mask_to_box(labels == obj) for obj in asked.ids},
        candidates=dict(zip(asked.ids, decoded.logits, strict=True)),
        candidate_iou=dict(zip(asked.ids, decoded.iou, strict=True)),
    )
