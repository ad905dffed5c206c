"""GrabCut as an image model: a classical baseline that needs no weights, only colours that differ.

Two Gaussian mixtures, one for the object and one for the rest, and a graph cut that prefers to run along edges, in turn
(Rother, Kolmogorov, Blake, "GrabCut", SIGGRAPH 2004; OpenCV's `grabCut`). Other objects' prompts count as background.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import permutations

import cv2
import numpy as np

from ..logits import lowres_to_image
from ..prompts import Point, Prompt
from . import Decoded, Encoded

__all__ = ["GrabCut"]

LIKENESS = 20  # in CIELAB with lightness halved: a difference that nobody overlooks
MIXTURE = 5  # Gaussians per side, fixed in OpenCV; k-means needs as many pixels


@dataclass(frozen=True)
class GrabCut:
    """`rounds` of mixtures and cut (`again` where a mask says almost everything already), on the image reduced to `long_side`
    pixels; the same `seed` gives the same mask.

    Its logits are signed distances to the outline in pixels of the image, clipped to ±strength: > 0 inside, and where two
    objects overlap the pixel goes to the one it lies deeper in. One candidate, also with `multimask`; no predicted IoU (NaN).
    """

    rounds: int = 5
    again: int = 2
    long_side: int = 640
    seed: int = 0
    name: str = "grabcut"

    def encode(self, image: np.ndarray) -> Encoded:
        """`features`: the reduced image (h, w, 3) uint8, its grain smoothed away and its edges kept."""
        height, width = image.shape[:2]
        scale = min(1.0, self.long_side / max(height, width))
        small = cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
        return Encoded((height, width), cv2.medianBlur(np.ascontiguousarray(small), 3))

    def decode(
        self,
        encoded: Encoded,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        strength: float = 18.0,
        mask_logits: Sequence[np.ndarray | None] | None = None,
    ) -> Decoded:
        """See `ImageModel.decode`; `mask_logits` are at the reduced size, as `low` is."""
        image = encoded.features
        seen = [self._reduced(p, encoded, mask_logits[i] if mask_logits is not None else None) for i, p in enumerate(prompts)]
        pixel = encoded.shape[1] / image.shape[1]  # of the reduced image, in pixels of the image
        with ThreadPoolExecutor(max_workers=4) as pool:  # OpenCV's random numbers are each thread's own
            found = list(pool.map(lambda i: self._cut(image, seen, i), range(len(seen))))
        for i, j in permutations(range(len(seen)), 2):
            if seen[j].within(seen[i]):  # colours alike would give all to the larger one, which is deeper
                found[i] = found[i] & ~found[j]
        low = np.clip([_signed_distance(mask) * pixel for mask in found], -strength, strength).astype(np.float32)
        low = low.reshape(len(seen), 1, *image.shape[:2])
        return Decoded(lowres_to_image(low, encoded.shape, pad=False), np.full((len(seen), 1), np.nan, np.float32), low)

    def _reduced(self, prompt: Prompt, encoded: Encoded, logits: np.ndarray | None) -> _Seen:
        shape = encoded.features.shape[:2]
        y, x = shape[0] / encoded.shape[0], shape[1] / encoded.shape[1]
        box = None
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box.xyxy
            box = np.zeros(shape, bool)
            box[int(y0 * y) : max(int(y0 * y) + 1, round(y1 * y)), int(x0 * x) : max(int(x0 * x) + 1, round(x1 * x))] = True
        mask = None
        if logits is not None:
            mask = logits > 0
        elif prompt.mask is not None:
            mask = cv2.resize(prompt.mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA) >= 0.5
        inside = _discs([p for p in prompt.points if p.label == 1], (x, y), shape)
        outside = _discs([p for p in prompt.points if p.label == 0], (x, y), shape)
        return _Seen(box, mask, inside, outside)

    def _cut(self, image: np.ndarray, seen: Sequence[_Seen], which: int) -> np.ndarray:
        """(h, w) bool of one object, the others being background."""
        own, others = seen[which], [s for i, s in enumerate(seen) if i != which]
        trimap = self._trimap(image, own, others)
        if not own.empty:
            trimap = _with_background(trimap)
            inner = any(own.within(other) for other in others)
            part = _around(own.box) if inner else np.s_[:, :]  # its background is what surrounds it, not what surrounds that
            cut = np.ascontiguousarray(trimap[part])
            likely = (cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)
            if min(likely.sum(), (~likely).sum()) >= MIXTURE:
                cv2.setRNGSeed(self.seed)
                models = np.zeros((1, 13 * MIXTURE)), np.zeros((1, 13 * MIXTURE))
                rounds = self.rounds if own.mask is None else self.again
                cv2.grabCut(np.ascontiguousarray(image[part]), cut, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
                trimap[part] = cut
        mask = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
        only_points = own.box is None and own.mask is None
        return _touching(mask, own.inside) if only_points else mask

    def _trimap(self, image: np.ndarray, own: _Seen, others: Sequence[_Seen]) -> np.ndarray:
        """What is known before the cut, as OpenCV's (h, w) uint8 of (probably) object or background; later statements win."""
        trimap = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
        if own.mask is not None and own.mask.any():
            ring = max(2, round(0.03 * np.sqrt(own.mask.sum())))
            trimap[~_dilated(own.mask, ring)] = cv2.GC_BGD
            trimap[own.mask] = cv2.GC_PR_FGD
            trimap[~_dilated(~own.mask, ring)] = cv2.GC_FGD
        elif own.box is not None:
            trimap[:] = np.where(own.box, cv2.GC_PR_FGD, cv2.GC_BGD)
            for other in others:  # where boxes overlap, the smaller one's object is the likelier
                if other.box is not None and other.box.sum() < own.box.sum():
                    trimap[other.box & own.box] = cv2.GC_PR_BGD
        elif own.inside.any():
            grown = _touching(_alike(image, own, others), own.inside)
            trimap[~_dilated(grown, max(image.shape) // 16)] = cv2.GC_BGD
            trimap[grown] = cv2.GC_PR_FGD
        for other in others:
            trimap[other.inside] = cv2.GC_BGD
            if other.mask is not None and own.mask is None:
                trimap[other.mask] = cv2.GC_BGD
        trimap[own.outside] = cv2.GC_BGD
        trimap[own.inside] = cv2.GC_FGD
        return trimap


@dataclass(frozen=True, eq=False)
class _Seen:
    """A prompt on the reduced image, all (h, w) bool."""

    box: np.ndarray | None
    mask: np.ndarray | None
    inside: np.ndarray  # discs around the points on the object
    outside: np.ndarray  # and around those on the background

    @property
    def empty(self) -> bool:
        """Nothing says where the object is: it is not visible, or only background was clicked."""
        return self.box is None and not self.inside.any() and (self.mask is None or not self.mask.any())

    def within(self, other: _Seen) -> bool:
        """Whether its box lies in the other's larger one, of which nothing more is known."""
        if self.box is None or other.box is None or other.mask is not None:
            return False
        return self.box.sum() < other.box.sum() and not (self.box & ~other.box).any()


def _around(box: np.ndarray) -> tuple[slice, slice]:
    """The box, and half its size on every side: near enough to be all of what it lies in."""
    x, y, w, h = cv2.boundingRect(box.astype(np.uint8))
    return np.s_[max(0, y - h // 2) : y + h + h // 2, max(0, x - w // 2) : x + w + w // 2]


def _discs(points: Sequence[Point], scale: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    discs = np.zeros(shape, np.uint8)
    for p in points:
        x, y = min(int(p.x * scale[0]), shape[1] - 1), min(int(p.y * scale[1]), shape[0] - 1)
        cv2.circle(discs, (x, y), max(1, max(shape) // 200), 1, cv2.FILLED)
    return discs.astype(bool)


def _alike(image: np.ndarray, own: _Seen, others: Sequence[_Seen]) -> np.ndarray:
    """(h, w) bool, what looks like the clicked pixels.

    That is, nearer to them in CIELAB than Otsu's threshold (`LIKENESS` at most), and than to any click elsewhere.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB) * np.float32([0.5, 1, 1])  # light is uneven more often than colour
    distance = _colour_distance(lab, own.inside)
    shown = np.clip(distance, 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(shown, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    alike = shown <= min(threshold, LIKENESS)
    for elsewhere in (own.outside, *(other.inside for other in others)):
        if elsewhere.any():
            alike &= distance < _colour_distance(lab, elsewhere)
    return alike


def _colour_distance(lab: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(h, w) float32, to the nearest of the connected discs' median colours."""
    count, parts = cv2.connectedComponents(where.astype(np.uint8))
    colours = [np.median(lab[parts == part], axis=0) for part in range(1, count)]
    return np.min([np.linalg.norm(lab - colour, axis=2) for colour in colours], axis=0)


def _with_background(trimap: np.ndarray) -> np.ndarray:
    """A box around everything leaves nothing to learn the background from: then the frame's border is likely background."""
    if np.isin(trimap, (cv2.GC_BGD, cv2.GC_PR_BGD)).sum() >= MIXTURE:
        return trimap
    border = np.ones(trimap.shape, bool)
    border[2:-2, 2:-2] = False
    return np.where(border & (trimap == cv2.GC_PR_FGD), np.uint8(cv2.GC_PR_BGD), trimap)


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def _touching(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The 8-connected parts of `mask` that were clicked: a click means this one, not everything of its colour."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return mask & np.isin(parts, np.unique(parts[inside & mask]))


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """(h, w) float32 in pixels to the outline, which runs between pixels; positive inside, never 0."""
    inner, outer = (cv2.distanceTransform(m.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in (mask, ~mask))
    return np.where(mask, inner - 0.5, 0.5 - outer)
