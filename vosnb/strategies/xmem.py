"""XMem: a network reads three memories: what it sensed just now, the last frames, and prototypes of all before (Cheng & Schwing, "XMem:
Long-Term Video Object Segmentation with an Atkinson-Shiffrin Memory Model", ECCV 2022).

Every `mem_every`-th frame, and every annotated one, enters the working memory with its masks. When that is full, its older frames become
`num_prototypes` tokens of the long-term memory, which forgets what is least used. So memory does not grow with the clip, only with the
number of frames on which objects begin: each of these is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from ..prompts import Prompt
from . import Result, Score, register
from .flow import first_masks

NATIVE, LARGEST = -1, 4320  # sizes


@register("xmem")
@dataclass(frozen=True)
class XMem:
    """XMem's settings under its own names.

    `model`: a checkpoint's name, a file, or None: the published one if it was fetched, or else `vosnb-mini-xmem`, for vosnb's own scenes
    only; `size`: shorter side that the network sees (None: what it was made for, 480 pixels for the published one; −1: the clip's own);
    `antialias`: resize smoothly (the published results do not); `compat="xmem"`: pair the values of objects that begin late with keys
    as the original does, which after the first consolidation are other frames' keys; `amp`: half precision on CUDA, as the original's
    command does; `mask_model` turns points and boxes into a mask, any model of `segment`.

    `deep_update_every` < 0 means on every memory frame. The original's `enable_long_term_count_usage` is always on: it costs nothing.
    """

    family: ClassVar[str] = "xmem"  # of checkpoints, where no model is named

    model: Any = None
    size: int | None = None
    top_k: int = 30
    mem_every: int = 5
    deep_update_every: int = -1
    enable_long_term: bool = True
    min_mid_term_frames: int = 5
    max_mid_term_frames: int = 10
    num_prototypes: int = 128
    max_long_term_elements: int = 10000
    compat: str | None = None
    antialias: bool = False
    amp: bool = False
    device: str = "auto"
    mask_model: str | None = None

    def __post_init__(self) -> None:
        if self.compat not in (None, "xmem"):
            raise InputError('compat="xmem" or none', repr(self.compat), "leave it out for the corrected pairing")
        if self.size is not None and self.size != NATIVE and not 16 <= self.size <= LARGEST:
            asked = f"a size of 16 to {LARGEST} pixels, or −1 for the clip's own"
            raise InputError(asked, self.size, "480 is the published one")
        for name in ("top_k", "mem_every", "num_prototypes"):
            if getattr(self, name) < 1:
                raise InputError(f"xmem's {name} of 1 or more", getattr(self, name), "leave it out for the published one")
        if not 2 <= self.min_mid_term_frames < self.max_mid_term_frames:
            raise InputError(
                "2 <= min_mid_term_frames < max_mid_term_frames", f"{self.min_mid_term_frames} and {self.max_mid_term_frames}",
                "the published ones are 5 and 10",
            )  # fmt: skip
        if self.max_long_term_elements <= self.num_prototypes:
            raise InputError(
                f"max_long_term_elements above num_prototypes, {self.num_prototypes}", self.max_long_term_elements,
                "the published ones are 10000 and 128",
            )  # fmt: skip

    def tracker(self, shape: tuple[int, int], frames: int | None) -> XMemTracker:
        from ..models import check
        from ..models.token_memory import Memory
        from ..models.xmem import load

        check(self.mask_model)
        return XMemTracker(self, shape, load(self.model, device=self.device, amp=self.amp), Memory(self))


class XMemTracker:
    """State: `objects`, their ids in the order of the planes; `hidden`, the sensory memory; `memory`, the two others; and when they
    were last written, in frames since the start. All values, so a fork shares them."""

    def __init__(self, settings: XMem, shape: tuple[int, int], model: Any, memory: Any):
        self.settings, self.shape, self.model, self.memory = settings, shape, model, memory
        self.objects: tuple[int, ...] = ()
        self.hidden: Any = None
        self.t, self.written, self.deepened = -1, 0, -settings.deep_update_every

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> Iterable[Result]:
        if not prompts and not self.objects:
            yield Result(np.zeros(self.shape, np.uint8))
            return
        masks = first_masks(image, prompts, self.settings.mask_model) if prompts else None
        frame, probabilities = self.advance(image, masks)
        planes, scores = self.model.answer(frame, probabilities)
        labels = np.array([0, *self.objects], np.uint8)[planes]
        yield Result(labels, {obj: Score(iou, present) for obj, (iou, present) in zip(self.objects, scores, strict=True)})

    def finish(self) -> Iterable[Result]:
        return ()

    def fork(self) -> XMemTracker:
        return copy.copy(self)

    def advance(self, image: np.ndarray, masks: Mapping[int, np.ndarray] | None) -> tuple[Any, Any]:
        """One frame (H, W, 3) uint8: encoded, and the probabilities (n + 1, ·, ·) at the network's size, background first.

        `masks` {object: (H, W) bool} of objects known or new; {} writes what is predicted to the memory, None leaves that to the clock.
        """
        settings, model = self.settings, self.model
        self.t += 1
        objects = (*self.objects, *sorted(set(masks or ()) - set(self.objects)))
        write = masks is not None or self.t - self.written >= settings.mem_every
        own_clock = settings.deep_update_every >= 0
        deep = self.t - self.deepened >= settings.deep_update_every if own_clock else write
        size = model.side if settings.size is None else settings.size
        frame = model.encode(image, None if size == NATIVE else size, settings.antialias)
        said = None
        if self.objects and set(masks or ()) != set(objects):
            readout, self.memory = self.memory.read(frame.key, frame.selection)
            said, self.hidden = model.decode(frame, readout, self.hidden, update=own_clock or not deep)
        if masks is not None:
            planes = {objects.index(obj): mask for obj, mask in masks.items()}
            said = model.annotate(frame, said, planes, len(objects))
            self.hidden = model.begin(frame, self.hidden, len(objects))
            self.objects = objects
        if write:
            values, self.hidden = model.remember(frame, said, self.hidden, deep)
            self.memory = self.memory.add(frame.key, frame.shrinkage, frame.selection, values)
            self.written = self.t
            if deep:
                self.deepened = self.t
        return frame, said
