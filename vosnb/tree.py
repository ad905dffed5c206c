"""A tree of hypotheses about one object, as plain values. Standard library only: tensors live elsewhere, keyed by node.

A `Node` is one mask that was kept on one frame. A `Pathway` is a leaf: its score and its ancestry, cut to what can still be asked
for. Branching makes a new pathway, pruning drops a reference; what nothing refers to any more is freed by the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Node", "Pathway", "settled"]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Node:
    """One kept mask of one object; two nodes are equal only if they are the same one.

    `frame` counts from the start of the pass, `iou` is the predicted IoU (0 … 1), `present` the object score (a logit, > 0 visible).
    """

    frame: int
    iou: float
    present: float


@dataclass(frozen=True, eq=False, slots=True)
class Pathway:
    """A leaf: `score` (cumulative), `memory` (ancestors that can be recalled, oldest first), `open` (those not reported yet)."""

    score: float
    memory: tuple[Node, ...]
    open: tuple[Node, ...]

    def to(self, node: Node, score: float, memory: Iterable[Node]) -> Pathway:
        """The child at `node`; `memory` is what of the ancestry, `node` included, can be recalled from now on."""
        return Pathway(score, tuple(memory), (*self.open, node))

    def reported(self, count: int) -> Pathway:
        """The same pathway after its oldest `count` open nodes were reported."""
        return Pathway(self.score, self.memory, self.open[count:])


def settled(pathways: Sequence[Pathway]) -> int:
    """How many of the oldest open nodes all pathways share: these masks are final, whatever comes."""
    count = 0
    for nodes in zip(*(p.open for p in pathways), strict=True):
        if any(node is not nodes[0] for node in nodes):
            break
        count += 1
    return count
