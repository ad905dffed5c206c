"""SAM 2's own memory (Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024, section 4), and the questions that every
strategy over SAM 2's network answers. A new one subclasses `SAM2` and overrides the answers that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..tree import Node, Pathway
from . import register

if TYPE_CHECKING:
    from ..models.tracker import PathwayTracker


@dataclass(frozen=True)
class Recall:
    """What a pathway attends to, in the order of the tokens.

    `spatial`: (temporal code, node), codes 0 (newest) … num_maskmem − 2, and −1 for the untimed slot of prompted frames.
    `pointers`: (signed distance in frames, node). `weights`: factors for the attention keys, one per spatial memory and one per
    pointer; None leaves them as they are.
    """

    spatial: list[tuple[int, Node]]
    pointers: list[tuple[float, Node]]
    weights: tuple[list[float], list[float]] | None = None


@register("sam2")
@dataclass(frozen=True)
class SAM2:
    """`model`: a checkpoint's name, a file (then `config` names its .yaml) or a loaded `models.sam2.Sam2`; None is the largest SAM 2.1
    that was fetched, or else `vosnb-mini-sam2`, for vosnb's own scenes only. `image_size`: side of the model's input (None: as
    trained); `score_thresh`: mask logits above it are the object; `postprocess`, `compile`: see `Sam2`; `lag`: frames after which
    open hypotheses are decided for the best one (None: wait until they agree, which is exact); `heed`: clicks that correct a tracked frame
    and that the mask found there overrules are put again without that mask and, if need be, without the memories (SAM 2 does not)."""

    model: Any = None
    config: str | None = None
    image_size: int | None = None
    device: str = "auto"
    score_thresh: float = 0.0
    postprocess: bool = False
    compile: bool = False
    lag: int | None = None
    heed: bool = False

    @property
    def pathways(self) -> int:
        return 1

    def tracker(self, shape: tuple[int, int], frames: int | None) -> PathwayTracker:
        from ..models.sam2 import load
        from ..models.tracker import PathwayTracker

        model = load(
            self.model,
            self.config,
            image_size=self.image_size,
            device=self.device,
            postprocess=self.postprocess,
            compile=self.compile,
        )
        return PathwayTracker(self, model, shape, frames)

    # -- the questions ---------------------------------------------------------------------------------------------

    def recall(self, anchors: Sequence[Node], pathway: Pathway, t: int, slots: int, pointers: int) -> Recall:
        """What to attend to at frame t: every prompted frame, then the `slots` frames before t with their true temporal codes, and
        up to `pointers` earlier pointers at true distances."""
        recent = {node.frame: node for node in pathway.memory}
        spatial = [(-1, node) for node in anchors]
        spatial += [(d - 1, recent[t - d]) for d in range(slots, 0, -1) if t - d in recent]
        told = [(t - node.frame, node) for node in anchors]
        told += [(d, recent[t - d]) for d in range(1, pointers + 1) if t - d in recent]
        return Recall(spatial, told)

    def remember(self, pathway: Pathway, node: Node, pointers: int) -> tuple[Node, ...]:
        """What of the ancestry, `node` included, `recall` may ask for later."""
        return (*(old for old in pathway.memory if old.frame > node.frame - pointers), node)

    def select(
        self, scores: Sequence[float], present: Sequence[float], iou: Sequence[Sequence[float]], t: int
    ) -> list[tuple[int, int, float]]:
        """Which candidates live on, best first, as (pathway, candidate, cumulative score): the one of highest predicted IoU.

        `scores` and `present` (object score) are one per pathway, `iou` one per pathway and candidate; `t` counts frames since the prompt.
        """
        best = max(range(len(iou[0])), key=lambda j: iou[0][j])
        return [(0, best, 0.0)]

    def __post_init__(self) -> None:
        if self.lag is not None and self.lag < 0:
            raise InputError("a lag of 0 or more frames, or none", self.lag, "leave it out to wait until all hypotheses agree")
