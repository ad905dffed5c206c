"""What the network learns from: a few frames of a clip, some of its objects, and a prompt for each on the first frame.

Sample number n of a seed is always the same one, so that training goes on after an interruption as if there had been none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .clips import FRAMES, SIDE, kind_of, read_clip

__all__ = ["VALIDATION", "Sample", "batches", "sample"]

VALIDATION = 64  # the first clips of a folder are looked at, never learned from
SMALLEST = 0.002  # of the frame: less of an object is no prompt
HIDING = 0.4  # of the samples with memory: from clips in which the object hides, a rare thing otherwise

Sample = dict[str, np.ndarray]


def sample(
    folder: Path, clip: int, rng: np.random.Generator, frames: int, objects: int, side: int, vary: bool = True
) -> Sample:
    """T = `frames`, O = `objects`, S = `side`; an object may occur twice, with different prompts.

    - `images` (T, S, S, 3) uint8, `masks` (T, O, S, S) bool
    - `points` (O, 2, 2) float32, x and y in pixels, `labels` (O, 2) int32: a box (2, 3), a click (1, −1) or nothing (−1, −1)
    - `guess` (O, S / 4, S / 4) float32: logits of a poor mask, the prompt where there is no other
    - `given` (O,) bool: whether the true mask is the prompt of the video
    """
    film = _film(read_clip(folder, clip), rng, frames, side, vary)
    images, labels = np.ascontiguousarray(film[..., :3]), film[..., 3]
    counts = np.bincount(labels[0].ravel(), minlength=2)
    shown = [obj for obj in range(1, len(counts)) if counts[obj] >= SMALLEST * side**2]
    if not shown:  # nothing there: another clip is as good
        return sample(folder, int(rng.integers(VALIDATION, VALIDATION + 64)), rng, frames, objects, side, vary)
    chosen = rng.permutation(shown * objects)[:objects] if len(shown) < objects else rng.permutation(shown)[:objects]
    masks = labels[:, None] == chosen[:, None, None]
    found: Sample = {"images": _coloured(images, rng) if vary else images, "masks": masks}
    prompts = [_prompt(mask, rng) for mask in masks[0]]
    for key in prompts[0]:
        found[key] = np.stack([prompt[key] for prompt in prompts])
    return found


def _film(clip: np.ndarray, rng: np.random.Generator, frames: int, side: int, vary: bool) -> np.ndarray:
    """(T, S, S, 4): some frames, forwards or backwards, cut out, mirrored and turned."""
    step = int(rng.integers(1, (FRAMES - 1) // (frames - 1) + 1)) if frames > 1 else 1
    start = int(rng.integers(0, FRAMES - step * (frames - 1)))
    times = start + step * np.arange(frames)
    film = clip[times[::-1] if rng.uniform() < 0.5 else times]
    width, height = rng.uniform(0.6, 1, 2) if vary and rng.uniform() < 0.6 else (1, 1)
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    x0, y0, x1, y1 = (int(SIDE * v) for v in (x, y, x + width, y + height))
    small = np.empty((frames, side, side, 4), np.uint8)
    for slot, frame in zip(small, film, strict=True):
        part = np.ascontiguousarray(frame[y0:y1, x0:x1])
        slot[..., :3] = cv2.resize(part[..., :3], (side, side), interpolation=cv2.INTER_AREA)
        slot[..., 3] = cv2.resize(part[..., 3], (side, side), interpolation=cv2.INTER_NEAREST)
    if vary:
        for axis in (1, 2):
            if rng.uniform() < 0.5:
                small = np.flip(small, axis)
        if rng.uniform() < 0.3:
            small = small.swapaxes(1, 2)
    return small


def _coloured(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other colours, light, noise, blur and compression; the same for all frames of a clip but for the noise."""
    if rng.uniform() < 0.8:
        mix = np.eye(3)[rng.permutation(3)] if rng.uniform() < 0.5 else np.eye(3)
        mix = (mix + rng.normal(0, 0.1, (3, 3))) * rng.uniform(0.7, 1.3)
        table = 255 * np.linspace(0, 1, 256) ** rng.uniform(0.7, 1.4)
        table = 255 - table if rng.uniform() < 0.15 else table
        bent = table.clip(0, 255).astype(np.uint8)[images]
        images = cv2.transform(bent.reshape(1, -1, 3), mix, dst=None).reshape(images.shape)
    if rng.uniform() < 0.3:
        noise = rng.standard_normal(images.shape, np.float32) * rng.uniform(2, 12)
        images = (images + noise).clip(0, 255).astype(np.uint8)
    if rng.uniform() < 0.15:
        sigma = rng.uniform(0.4, 1.2)
        images = np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in images])
    if rng.uniform() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))]
        images = np.stack([cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR) for image in images])
    return images


def _prompt(mask: np.ndarray, rng: np.random.Generator) -> Sample:
    side = len(mask)
    points, labels = np.zeros((2, 2), np.float32), np.array([-1, -1], np.int32)
    kind = rng.choice(["box", "click", "guess"], p=[0.6, 0.2, 0.2])
    if kind == "box":
        (rows,), (columns,) = (np.nonzero(mask.any(axis)) for axis in (1, 0))
        corners = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], np.float32)
        if rng.uniform() < 0.6:
            size = corners[1] - corners[0]
            corners += np.clip(rng.normal(0, 0.05, (2, 2)) * size, -side / 24, side / 24)
        points, labels = corners.clip(0, side).astype(np.float32), np.array([2, 3], np.int32)
    elif kind == "click":
        rows, columns = np.nonzero(mask)
        pick = rng.integers(len(rows))
        points[0], labels[0] = (columns[pick], rows[pick]), 1
    return {"points": points, "labels": labels, "guess": _poor(mask, rng), "given": np.array(rng.uniform() < 0.35)}


def _poor(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Low-resolution logits of the mask: moved a little, thicker or thinner, or as it is."""
    side, poor = len(mask), mask.astype(np.uint8)
    if rng.uniform() < 0.5:
        kernel = np.ones((int(rng.integers(2, 2 + side // 24)),) * 2, np.uint8)
        poor = (cv2.dilate if rng.uniform() < 0.5 else cv2.erode)(poor, kernel)
    if rng.uniform() < 0.5:
        move = np.float32([[1, 0, rng.normal(0, side / 60)], [0, 1, rng.normal(0, side / 60)]])
        poor = cv2.warpAffine(poor, move, (side, side), flags=cv2.INTER_NEAREST)
    small = cv2.resize(poor.astype(np.float32), (side // 4, side // 4), interpolation=cv2.INTER_AREA)
    return (2 * small - 1) * np.float32(rng.uniform(5, 20))


class _Stream(IterableDataset):
    """Batches, whole: number `first`, and so on; each worker makes every so-manieth."""

    def __init__(self, folder: Path, clips: int, seed: int, first: int, last: int, size: int, shape: tuple[int, int, int]):
        self.folder, self.clips, self.seed, self.first, self.last, self.size = folder, clips, seed, first, last, size
        self.shape = shape

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        cv2.setNumThreads(1)
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        hiding = [clip for clip in range(VALIDATION, self.clips) if kind_of(clip) == "occluder"] if self.shape[0] > 1 else []
        for number in range(self.first + start, self.last, step):
            rng = np.random.default_rng((self.seed, number))
            picks = rng.integers(VALIDATION, self.clips, self.size)
            if hiding:
                picks = np.where(rng.uniform(size=self.size) < HIDING, rng.choice(hiding, self.size), picks)
            yield stacked([sample(self.folder, int(clip), rng, *self.shape) for clip in picks])


def stacked(samples: list[Sample]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}


def batches(
    folder: Path, clips: int, seed: int, first: int, last: int, size: int, shape: tuple[int, int, int], workers: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches `first` … `last` − 1 of `size` samples, V in front of the shapes in `sample`; `shape` is (T, O, S)."""
    stream = _Stream(folder, clips, seed, first, last, size, shape)
    # spawned: a process forked from one whose OpenCV has threads may wait for them forever
    extra = {"prefetch_factor": 4, "multiprocessing_context": "spawn"} if workers else {}
    yield from DataLoader(stream, batch_size=None, num_workers=workers, **extra)
