"""Training clips: made from seeds that nothing else uses, kept in a folder as they are made, turned and coloured anew when read."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..files import replacing
from ..progress import progress
from ..synth import scene, turbulence

__all__ = ["FIRST_SEED", "FRAMES", "SIDE", "kind_of", "make_clip", "make_clips", "read_clip"]

FIRST_SEED = 1_000_000  # training seeds begin here; whatever is measured uses smaller ones
FRAMES, SIDE = 8, 256
KINDS = {"mixed": 45, "turbulence": 15, "occluder": 12, "lookalike": 8, "late": 8, "deform": 6, "camera": 6}  # in a hundred
STRIDES = (1, 2, 3, 4, 6, 8)  # frames of the film from one frame of a clip to the next


def kind_of(index: int) -> str:
    """What clip `index` shows, one of KINDS."""
    return _drawn(index)[0]


def make_clip(index: int) -> np.ndarray:
    """Clip `index`: (FRAMES, SIDE, SIDE, 4) uint8, RGB and labels, squashed to a square as the model sees it."""
    seed = FIRST_SEED + index
    kind, rng = _drawn(index)
    stride, width = int(rng.choice(STRIDES)), int(rng.choice([256, 320, 400]))
    if kind == "turbulence":
        pace, start = rng.uniform(0.7, 2), int(rng.choice([0, 0, 20, 40]))
        film = turbulence(seed, start + FRAMES * min(stride, 4), height=200, width=width * 200 // 256, pace=pace)
        shown = [frame for t, frame in enumerate(film) if t >= start and (t - start) % min(stride, 4) == 0]
    else:
        stride = 8 if kind == "occluder" else stride  # the way behind the pillar and out again
        shown = list(scene(seed, kind, FRAMES, height=256, width=width, every=stride))
    clip = np.empty((FRAMES, SIDE, SIDE, 4), np.uint8)
    for slot, (image, labels) in zip(clip, shown, strict=True):
        slot[..., :3] = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        slot[..., 3] = cv2.resize(labels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    return clip


def make_clips(folder: Path, count: int, workers: int) -> None:
    """Makes what is missing of clips 0 … `count` − 1, one file each, so that an interrupted run goes on where it stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(count) if not _file(folder, index).exists()]
    if not missing:
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        jobs: Iterable = [pool.submit(_keep, folder, index) for index in missing]
        for job in progress(as_completed(jobs), len(missing), "training clips", "clip"):
            job.result()


def read_clip(folder: Path, index: int) -> np.ndarray:
    """(FRAMES, SIDE, SIDE, 4) uint8, mapped into memory rather than read whole."""
    file = _file(folder, index)
    if not file.exists():
        raise InputError(f"training clip {index} in {folder}", "no such file", "make the clips first: --clips N")
    return np.load(file, mmap_mode="r")


def _drawn(index: int) -> tuple[str, np.random.Generator]:
    rng = np.random.default_rng(FIRST_SEED + index)
    return str(rng.choice(list(KINDS), p=np.array(list(KINDS.values())) / 100)), rng


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.npy"


def _keep(folder: Path, index: int) -> None:
    with replacing(_file(folder, index)) as part, open(part, "wb") as file:
        np.save(file, make_clip(index))
