"""Several memory pathways at once, the best kept: the rule of SAM2Long (Ding et al., "SAM2Long: Enhancing SAM 2 for Long Video
Segmentation with a Training-Free Memory Tree", arXiv 2410.16268, section 3), written from the paper and from observed behaviour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..tree import Node, Pathway
from . import register
from .sam2 import SAM2, Recall

PROMPTED = 10.0  # the object score that a prompted frame counts with when memories are ranked
PRESETS = {"commands": (3, 0.1, 2.0), "paper": (3, 0.3, 2.0), "parser": (3, 0.3, 1.0)}


@register("sam2long")
@dataclass(frozen=True)
class SAM2Long(SAM2):
    """`num_pathway` P, `iou_thre` τ (a frame is remembered above it), `uncertainty` δ (certain where an |object score| exceeds it).

    `preset` names a setting in circulation: "commands" (published command lines, the default), "paper", "parser" (the published
    argument parser's defaults); a value given beside it wins.
    """

    num_pathway: int | None = None
    iou_thre: float | None = None
    uncertainty: float | None = None
    preset: str = "commands"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise InputError("a preset among " + ", ".join(PRESETS), repr(self.preset), "choose one of these")
        for name, value in zip(("num_pathway", "iou_thre", "uncertainty"), PRESETS[self.preset], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.num_pathway < 1:
            raise InputError("num_pathway of 1 or more", self.num_pathway, "3 is usual")

    @property
    def pathways(self) -> int:
        return self.num_pathway

    def recall(self, anchors: Sequence[Node], pathway: Pathway, t: int, slots: int, pointers: int) -> Recall:
        """Prompted frames, then the newest accepted frames; codes and distances are ranks, keys are weighted by object score."""
        accepted = pathway.memory
        kept = accepted[-slots:]
        spatial = [(-1, node) for node in anchors]
        spatial += [(len(kept) - 1 - i, node) for i, node in enumerate(kept)]
        told = [(float(abs(t - node.frame)), node) for node in anchors]
        told += [(float(rank), node) for rank, node in enumerate(reversed(accepted[1:]), 1)]
        asked = set(anchors)
        weights = _by_rank([node for _, node in spatial], asked), _by_rank([node for _, node in told], asked)
        return Recall(spatial, told, weights if len(spatial) > 1 else None)

    def remember(self, pathway: Pathway, node: Node, pointers: int) -> tuple[Node, ...]:
        """The last `pointers` accepted frames, and this one in any case."""
        accepted = [old for old in pathway.memory if self._accepts(old)]
        if self._accepts(node):
            return (*accepted, node)[-pointers:]
        return (*accepted[-pointers:], node)

    def select(
        self, scores: Sequence[float], present: Sequence[float], iou: Sequence[Sequence[float]], t: int
    ) -> list[tuple[int, int, float]]:
        if t == 1:  # one ordinary step; its node is the parent of every pathway
            best = max(range(len(iou[0])), key=lambda j: iou[0][j])
            return [(0, best, 0.0)] * self.num_pathway
        candidates = [(s + math.log(q + 1e-5), p, j) for p, s in enumerate(scores) for j, q in enumerate(iou[p])]
        ranked = sorted(candidates, key=lambda c: -c[0])  # stable: ties stay in (pathway, candidate) order
        certain = max(abs(o) for o in present) > self.uncertainty
        chosen = ranked[: self.num_pathway] if certain else self._distinct(ranked, present, iou)
        return [(p, j, s) for s, p, j in chosen]

    def _distinct(self, ranked: list, present: Sequence[float], iou: Sequence[Sequence[float]]) -> list:
        """Uncertain: candidates of different signed IoU first, then the best of the pathways that have none."""
        chosen, seen = [], set()
        for s, p, j in ranked:
            signed = round(iou[p][j] if present[p] > 0 else -iou[p][j], 2)
            if len(chosen) < self.num_pathway and signed not in seen:
                seen.add(signed)
                chosen.append((s, p, j))
        for p in range(len(present)):
            if len(chosen) < self.num_pathway and all(p != q for _, q, _ in chosen):
                chosen.append(next(c for c in ranked if c[1] == p))
        return chosen

    def _accepts(self, node: Node) -> bool:
        return node.iou > self.iou_thre and node.present > 0


def _by_rank(nodes: Sequence[Node], anchors: set[Node]) -> list[float]:
    """Weights from 0.95 to 1.05 in the order of the object scores, lowest first; prompted frames count as `PROMPTED`."""
    order = sorted(range(len(nodes)), key=lambda i: PROMPTED if nodes[i] in anchors else nodes[i].present)
    weights = [1.0] * len(nodes)
    for rank, i in enumerate(order):
        weights[i] = 0.95 + 0.1 * rank / max(len(nodes) - 1, 1)
    return weights
