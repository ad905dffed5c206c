"""How close a mask is to the true one: region similarity J, boundary accuracy F, and what is said of them over time.

The definitions are those of DAVIS (Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation",
CVPR 2016, section 5; Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", 2017), to the last bit: two label
maps give integer counts, and these give J and F. MOSEv2 (Ding et al., 2025) adds F with a tolerance that follows the object's size.

Everything happens in the small window that holds an object in either mask, 64 pixels to a word: a boundary is an exclusive or of
shifted words, a disk a union of shifted runs, an area the number of bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

__all__ = [
    "ABSENT",
    "Score",
    "Statistics",
    "episodes",
    "f_measure",
    "ids_in",
    "jaccard",
    "radius",
    "scores",
    "statistics",
    "variation",
]


class Score(NamedTuple):
    """One object on one frame. `area` and `truth_area` are pixels; `f_dot` is F with MOSEv2's tolerance, NaN unless asked for."""

    j: float
    f: float
    f_dot: float
    area: int
    truth_area: int


class Statistics(NamedTuple):
    """Of one object's values over the frames: their mean; the share above 0.5; first quarter minus last."""

    mean: float
    recall: float
    decay: float


ABSENT = Score(1.0, 1.0, 1.0, 0, 0)  # an object that is neither there nor found, on this frame


def jaccard(mask: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two (H, W) bool masks; 1 where both are empty."""
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0


def f_measure(mask: np.ndarray, truth: np.ndarray, tolerance: float | None = None) -> float:
    """F: harmonic mean of precision and recall of the boundary pixels of two (H, W) bool masks, within `tolerance` pixels of one
    another, by default `radius((H, W))`. 1 where neither has a boundary (empty, or the whole frame), 0 where one has none."""
    tolerance = radius(truth.shape) if tolerance is None else tolerance
    _, edges = _packed(np.asarray(truth, bool), np.asarray(mask, bool), math.ceil(tolerance))
    return 1.0 if edges is None else _boundary_f(edges, tolerance)


def radius(shape: tuple[int, ...], share: float = 0.008) -> float:
    """The tolerance in pixels: this share of the frame's diagonal, rounded up; 8 at 854 × 480. (H, W) in pixels."""
    return math.ceil(share * np.linalg.norm(shape))


def scores(labels: np.ndarray, truth: np.ndarray, ids: Iterable[int] | None = None, *, mose: bool = False) -> dict[int, Score]:
    """`Score` of each object of two label maps (H, W) uint8; by default of those that occur in either, but 0.

    `mose`: as the MOSEv2 scorer has it: J = (intersection + 1) / (union + 1), and F · within min(⌈0.1 √area⌉, 0.008 diagonal) of the
    object's true area. Where that is the latter, both F take it unrounded, which shifts their disk by part of a pixel.
    """
    x, y, w, h = cv2.boundingRect(truth | labels)
    part = slice(max(y - 1, 0), y + h + 1), slice(max(x - 1, 0), x + w + 1)
    frame, truth, labels = truth.shape, truth[part], labels[part]
    if ids is None:
        ids = sorted(ids_in(truth) | ids_in(labels))
    return {obj: _score(truth == obj, labels == obj, frame, mose) for obj in ids}


def ids_in(labels: np.ndarray) -> set[int]:
    """The values that occur in a label map (H, W) uint8, but 0: those with which a run of equal pixels begins."""
    flat = np.ascontiguousarray(labels).ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return {*flat[:1].tobytes(), *flat[starts].tobytes()} - {0}


def statistics(values: np.ndarray, *, wrap: bool = False) -> Statistics:
    """Mean, recall and decay of an object's J or F over its frames; NaN where there is none.

    The quarters share their border frames. `wrap`: DAVIS' code counts frames in 8 bits, so that beyond 256 frames its decay is of
    other frames or NaN; with `wrap` so does this.
    """
    values = np.asarray(values, float)
    if not values.size:
        return Statistics(math.nan, math.nan, math.nan)
    edges = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    if wrap:
        edges %= 256
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    decay = first.mean() - last.mean() if first.size and last.size else math.nan
    return Statistics(float(values.mean()), float(np.mean(values > 0.5)), float(decay))


def variation(j: np.ndarray, f: np.ndarray) -> float:
    """V of LVOS (Hong et al., ICCV 2023): how much (J + F) / 2 of an object varies over the frames; its variance is rounded to four
    digits, as published. NaN where there are no frames."""
    both = (np.asarray(j, float) + np.asarray(f, float)) / 2
    return math.sqrt(np.round(np.mean((both - both.mean()) ** 2), 4)) if both.size else math.nan


def episodes(absent: np.ndarray) -> tuple[list[slice], list[slice]]:
    """When an object was gone and when it was back, as MOSEv2 counts it: the spans of frames from each disappearance to the next
    appearance or the end, and from each reappearance to the next disappearance or the end. `absent` is (T,) bool. An object that
    begins absent has not disappeared, but then reappears."""
    edges = [0, *(np.flatnonzero(np.diff(np.asarray(absent, bool))) + 1).tolist(), len(absent)]
    spans = [slice(a, b) for a, b in pairwise(edges[1:])]
    return [s for s in spans if absent[s.start]], [s for s in spans if not absent[s.start]]


# -- one object on one frame ---------------------------------------------------------------------------------------------


def _score(truth: np.ndarray, found: np.ndarray, frame: tuple[int, ...], mose: bool) -> Score:
    """Of two masks (h, w) bool: a frame (H, W), or the part of it that holds all objects and a pixel more where there is one."""
    tolerance = radius(frame)
    bits, edges = _packed(truth, found, tolerance)
    if bits is None:
        return ABSENT
    truth_area, area = _count(bits[0]), _count(bits[1])
    shared = _count(bits[0] & bits[1])
    union = truth_area + area - shared
    if shared == union and not mose:  # MOSE's shifted disk may lack its centre: then equal masks need not score 1
        return Score(1.0, 1.0, math.nan, area, truth_area)
    if not mose:
        return Score(shared / union, _boundary_f(edges, tolerance), math.nan, area, truth_area)
    exact = 0.008 * float(np.linalg.norm(frame))
    own = min(math.ceil(0.1 * math.sqrt(truth_area)), exact) if truth_area else exact
    f_dot = _boundary_f(edges, own)
    f = _boundary_f(edges, tolerance) if own < exact else f_dot
    return Score((shared + 1) / (union + 1), f, f_dot, area, truth_area)


def _packed(truth: np.ndarray, found: np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """(2, h, words) uint64 of both masks (H, W) bool and of their boundaries, in the window where either is; None where neither is.

    A pixel is on the boundary if it differs from the pixel to the right, below, or below to the right. Boundaries so lie up and
    to the left: the window begins a pixel earlier. Beyond the frame's edge the last row and column repeat. Each row ends in `pad`
    zeros, so that what is shifted by as much does not reach the next.
    """
    height, width = truth.shape
    words = np.zeros((2, height + 1, (width + pad) // 64 + 1), "<u8")
    for into, mask in zip(words.view(np.uint8), (truth, found), strict=True):
        into[:height, : (width + 7) // 8] = np.packbits(mask, axis=1, bitorder="little")
    either = words[0] | words[1]
    rows, columns = np.flatnonzero(either.any(axis=1)), np.bitwise_or.reduce(either, axis=0)
    if not rows.size:
        return None, None
    top, bottom = max(int(rows[0]) - 1, 0), int(rows[-1]) + 1
    used = np.flatnonzero(columns)
    first = max(int(used[0]) - int(columns[used[0]] & 1), 0)
    window = words[:, top : bottom + 1, first : int(used[-1]) + 1 + -(-pad // 64)]
    bits = window[:, :-1].copy()
    if bottom == height:
        words[:, height] = words[:, height - 1]
    word, bit = divmod(width - 1, 64)
    if int(columns[word]) >> bit & 1:
        beyond, at = divmod(width, 64)
        words[:, :, beyond] |= (words[:, :, word] >> bit & 1) << at
    east = _shifted(window, 1)
    edges = window ^ east
    edges[:, :-1] |= (window[:, :-1] ^ window[:, 1:]) | (window[:, :-1] ^ east[:, 1:])
    return bits, edges[:, :-1] & _columns(min(width - 64 * first, 64 * window.shape[2] - 1), window.shape[2])


@lru_cache(maxsize=4096)
def _columns(width: int, words: int) -> np.ndarray:
    """One row of so many words, whose first `width` bits are set."""
    return np.packbits(np.arange(64 * words) < width, bitorder="little").view("<u8")


def _count(words: np.ndarray) -> int:
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def _shifted(words: np.ndarray, by: int) -> np.ndarray:
    """Bit p of the result is bit p + by of `words`, all rows one string of bits; -63 … 63, not 0."""
    flat = words.reshape(-1)
    if by > 0:
        moved = flat >> by
        moved[:-1] |= flat[1:] << (64 - by)
    else:
        moved = flat << -by
        moved[1:] |= flat[:-1] >> (64 + by)
    return moved.reshape(words.shape)


def _boundary_f(edges: np.ndarray, tolerance: float) -> float:
    truth, found = _count(edges[0]), _count(edges[1])
    if not (truth and found):
        return float(truth == found)
    near = _dilated(edges, tolerance)
    precision, recall = _count(edges[1] & near[0]) / found, _count(edges[0] & near[1]) / truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _dilated(edges: np.ndarray, tolerance: float) -> np.ndarray:
    """Each boundary widened by a disk, as a union of horizontal runs: the narrowest first, since each holds the one before."""
    near, height = np.zeros_like(edges), edges.shape[1]
    runs = _disk(tolerance)
    low = high = runs[0][0]
    wide = _shifted(edges, low) if low else edges
    for first, last, rows in runs:
        while (low, high) != (first, last):
            left, right = (min(gap, high - low + 1, 63) for gap in (low - first, last - high))
            grown = wide
            if left:
                grown = grown | _shifted(wide, -left)
            if right:
                grown = grown | _shifted(wide, right)
            wide, low, high = grown, low - left, high + right
        for row in rows:
            if abs(row) < height:
                near[:, max(-row, 0) : height - max(row, 0)] |= wide[:, max(row, 0) : height - max(-row, 0)]
    return near


@lru_cache
def _disk(tolerance: float) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """(first column, last column, the rows that reach so far) of the pixels within `tolerance`, the narrowest first.

    That is at least the pixel itself. A fractional tolerance counts from -tolerance in steps of 1 and takes the middle of these
    for 0, as scikit-image's `disk` and OpenCV do together.
    """
    steps = np.arange(-tolerance, tolerance + 1)
    inside = steps**2 + steps[:, None] ** 2 <= tolerance**2
    runs: dict[tuple[int, int], list[int]] = {}
    for row, columns in enumerate(inside):
        if columns.any():
            found = np.flatnonzero(columns) - len(steps) // 2
            runs.setdefault((int(found[0]), int(found[-1])), []).append(row - len(steps) // 2)
    ordered = sorted((runs or {(0, 0): [0]}).items(), key=lambda run: run[0][1] - run[0][0])
    return tuple((first, last, tuple(rows)) for (first, last), rows in ordered)
