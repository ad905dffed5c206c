"""The loop over SAM 2 with a tree of pathways per object: every frame is encoded once, all leaves of all objects go through one batch.

The tracker owns all state of one pass. Tensors are looked up by the tree's nodes: memories as long as a pathway can recall them,
masks until they are reported or, in a weak dictionary, dropped. One read from the device per frame brings all scores to the host.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..prompts import Prompt
from ..strategies import Hypothesis, Result, Score
from ..tree import Node, Pathway, settled
from .device import inference, precision
from .sam2 import Answer, Features, Sam2


@dataclass(frozen=True)
class Memory:
    """What a node leaves for later frames: `features` (D, G, G) bfloat16, `pointer` (C,)."""

    features: torch.Tensor
    pointer: torch.Tensor


@dataclass
class Tracked:
    """One object: its prompted nodes, its live pathways (best first), the frames of its first and of its last prompt."""

    anchors: tuple[Node, ...]
    pathways: list[Pathway]
    begun: int
    prompted: int
    scores: dict[int, tuple[list[Hypothesis], torch.Tensor | None]] = field(default_factory=dict)  # of open frames


@dataclass(frozen=True)
class Step:
    """One leaf on one frame: what the model saw and answered, scores on the host."""

    seen: torch.Tensor
    logits: torch.Tensor
    tokens: torch.Tensor
    iou: list[float]
    present: float


class PathwayTracker:
    """See `vosnb.strategies` for the contract; `strategy` is a `strategies.sam2.SAM2` and answers what to remember and what lives on."""

    def __init__(self, strategy: Any, model: Sam2, shape: tuple[int, int], frames: int | None):
        self.strategy, self.model, self.shape = strategy, model, shape
        self.pointers = min(model.max_pointers, frames or model.max_pointers) - 1
        self.t, self.reported = 0, 0
        self.newest: dict[int, list[torch.Tensor]] = {}  # the newest frame's logits per object and different pathway
        self.objects: dict[int, Tracked] = {}
        self.memory: dict[Node, Memory] = {}  # what some pathway can recall
        self.logits: WeakKeyDictionary[Node, torch.Tensor] = WeakKeyDictionary()  # (Q, Q), until the node's frame is reported

    def fork(self) -> PathwayTracker:
        """An independent tracker in the same state. Nodes and tensors are shared, they never change."""
        twin = copy.copy(self)
        twin.objects = {obj: copy.copy(o) for obj, o in self.objects.items()}
        for o in twin.objects.values():
            o.pathways, o.scores = list(o.pathways), dict(o.scores)
        twin.memory, twin.logits = dict(self.memory), WeakKeyDictionary(self.logits)
        return twin

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> list[Result]:
        if image.shape[:2] != self.shape:
            raise InputError(f"a frame of shape {self.shape} (H, W)", image.shape[:2], "all frames of a clip have one size")
        with inference(self.model.device, precision(self.model.device)), _out_of_memory():
            features = self.model.encode(image)
            seen = self._track(features, prompts)
            for obj, prompt in prompts.items():
                self._prompt(features, obj, prompt, seen.get(obj))
            self.t += 1
            recalled = {
                n for o in self.objects.values() for nodes in (o.anchors, *(p.memory for p in o.pathways)) for n in nodes
            }
            self.memory = {node: self.memory[node] for node in recalled}
            newest = {obj: dict.fromkeys(path.open[-1] for path in o.pathways) for obj, o in self.objects.items()}
            self.newest = {obj: [self.logits[node] for node in nodes] for obj, nodes in newest.items()}
            return list(self._report(self._settled()))

    def finish(self) -> list[Result]:
        """What is still open is decided for each object's best pathway."""
        for o in self.objects.values():
            o.pathways = o.pathways[:1]
        with inference(self.model.device, precision(self.model.device)), _out_of_memory():
            return list(self._report(self.t))

    def hypotheses(self, obj: int) -> list[np.ndarray]:
        """The object's masks on the newest frame, (H, W) float32 logits, one per different pathway, best first."""
        return list(self._shown(dict(enumerate(self.newest[obj]))).values())

    # -- one frame -------------------------------------------------------------------------------------------------

    def _track(self, features: Features, prompts: Mapping[int, Prompt]) -> dict[int, torch.Tensor]:
        """One step of every leaf of every object, but for those that are given a mask now and need no tracking.

        Returns {object: (1, C, G, G)}, the frame as its best pathway saw it.
        """
        leaves = [
            (obj, path)
            for obj, o in self.objects.items()
            if not (obj in prompts and _only_mask(prompts[obj]))
            for path in dict.fromkeys(o.pathways)  # equal pathways are the same object: once is enough
        ]
        steps = self._decode(features, leaves)
        chosen: dict[tuple[Pathway, int], Node] = {}
        seen = {}
        for obj in dict.fromkeys(obj for obj, _ in leaves):
            best = self._select(self.objects[obj], steps, chosen)
            seen[obj] = steps[best].seen[None]
        self._remember(features, steps, chosen)
        return seen

    def _decode(self, features: Features, leaves: list[tuple[int, Pathway]]) -> dict[Pathway, Step]:
        """Leaves with equally long memories share a call; all scores come to the host in one transfer."""
        groups: dict[tuple, list] = {}
        for obj, path in leaves:
            recall = self.strategy.recall(self.objects[obj].anchors, path, self.t, self.model.slots, self.pointers)
            groups.setdefault((len(recall.spatial), len(recall.pointers), recall.weights is None), []).append((path, recall))
        found = []
        for group in groups.values():
            recalls = [recall for _, recall in group]
            pointers = [torch.stack([self.memory[n].pointer for _, n in r.pointers]) for r in recalls if r.pointers]
            seen = self.model.attend(
                features,
                torch.stack([torch.stack([self.memory[n].features for _, n in r.spatial]) for r in recalls]),
                [[code for code, _ in r.spatial] for r in recalls],
                torch.stack(pointers) if pointers else None,
                [[d for d, _ in r.pointers] for r in recalls],
                max(self.pointers, 1),
                None if recalls[0].weights is None else [r.weights for r in recalls],
            )
            found.append((seen, self.model.decode(features, seen, multimask=self.model.tracks_with_candidates)))
        if not found:
            return {}
        sums = [d.logits.flatten(1).sum(1) for _, d in found]  # not finite where a logit is not
        rows = torch.cat(
            [torch.column_stack([d.iou, d.present, total]) for (_, d), total in zip(found, sums, strict=True)]
        ).tolist()
        self._check(*chain.from_iterable(rows))
        steps: dict[Pathway, Step] = {}
        rows_left = iter(rows)
        for group, (seen, decoded) in zip(groups.values(), found, strict=True):
            for b, (path, _) in enumerate(group):
                *iou, present, _ = next(rows_left)
                steps[path] = Step(seen[b], decoded.logits[b], decoded.tokens[b], iou, present)
        return steps

    def _select(self, o: Tracked, steps: Mapping[Pathway, Step], chosen: dict[tuple[Pathway, int], Node]) -> Pathway:
        """The strategy's survivors become the object's pathways, equal ones one and the same; returns the parent of the best."""
        old = o.pathways
        now = [steps[p] for p in old]
        survivors = self.strategy.select(
            [p.score for p in old], [s.present for s in now], [s.iou for s in now], self.t - o.prompted
        )
        new: dict[tuple[Pathway, int], Pathway] = {}
        pathways, hypotheses = [], []
        for p, j, score in survivors:
            key, step = (old[p], j), steps[old[p]]
            if key not in chosen:
                chosen[key] = Node(self.t, step.iou[j], step.present)
            node = chosen[key]
            if key not in new:
                new[key] = old[p].to(node, score, self.strategy.remember(old[p], node, self.pointers))
            pathways.append(new[key])
            hypotheses.append(Hypothesis(p, j, node.iou, node.present, score))
        o.pathways = pathways
        masks = [steps[path].logits[j] > 0 for path, j in new]
        o.scores[self.t] = hypotheses, _disagreement(masks) if len(masks) > 1 else None
        return old[survivors[0][0]]

    def _remember(self, features: Features, steps: Mapping[Pathway, Step], chosen: Mapping[tuple[Pathway, int], Node]) -> None:
        """Memories and pointers of the survivors, in one batch."""
        if not chosen:
            return
        picked = [(steps[path], j) for path, j in chosen]
        logits = torch.stack([step.logits[j] for step, j in picked])
        tokens = torch.stack([step.tokens[j if len(step.tokens) > 1 else 0] for step, j in picked])
        present = torch.tensor([step.present > 0 for step, _ in picked], device=self.model.device)
        memories, pointers = self.model.remember(features, logits[:, None], present), self.model.pointer(tokens, present)
        for node, memory, pointer, mask in zip(chosen.values(), memories, pointers, logits, strict=True):
            self.memory[node] = Memory(memory.clone(), pointer.clone())  # clones: a slice would keep the whole batch alive
            self.logits[node] = mask.clone()

    def _prompt(self, features: Features, obj: int, prompt: Prompt, seen: torch.Tensor | None) -> None:
        """A first prompt starts an object; a later one corrects it: a new anchor, and all its pathways go on from there."""
        o = self.objects.get(obj)
        earlier = None if seen is None else self.model.filled(self.logits[o.pathways[0].open[-1]])[None, None]
        answer = self.model.prompt(features, prompt, self.shape, seen, earlier)
        overruled = False
        if self.strategy.heed and earlier is not None:
            answer, overruled = self._heeded(features, prompt, seen, earlier, answer)
        iou, present, *sums = torch.stack(
            [answer.iou[0], answer.present[0], answer.logits.sum(), answer.pointer.sum()]
        ).tolist()
        self._check(iou, present, *sums)
        node, logits = Node(self.t, iou, present), self.model.filled(answer.logits[0, 0])
        memory = self.model.remember(features, logits[None, None], answer.present > 0, binarize=self.model.postprocess)
        self.memory[node], self.logits[node] = Memory(memory[0], answer.pointer[0]), logits
        if o is None:
            o = self.objects[obj] = Tracked((), [Pathway(0.0, (), ())], self.t, self.t)
        best = o.pathways[0]
        kept = () if overruled else tuple(n for n in best.memory if n.frame != self.t)
        earlier_open = tuple(n for n in best.open if n.frame != self.t)
        o.anchors, o.prompted = ((node,) if overruled else (*o.anchors, node)), self.t
        o.pathways = [Pathway(0.0, kept, (*earlier_open, node))]
        o.scores[self.t] = [Hypothesis(0, 0, iou, present, 0.0)], None

    def _heeded(
        self, features: Features, prompt: Prompt, seen: torch.Tensor, earlier: torch.Tensor, answer: Answer
    ) -> tuple[Answer, bool]:
        """The answer, and whether tracking was overruled, because its `earlier` mask made the answer contradict what was said.

        Where a box or a background point denies that mask, the object begins anew: no memories, no earlier prompts. Else it is put
        again without the mask, then without the memories too, and what it finds is added to the mask. Background points alone say
        nothing without the mask that they are to be cut from.
        """
        if _agreement(answer.logits, prompt, self.shape) == 1 or not (prompt.box or any(p.label for p in prompt.points)):
            return answer, False
        denied = prompt.box is not None or any(
            _agreement(earlier, Prompt((p,)), self.shape) < 1 for p in prompt.points if not p.label
        )
        tries = [answer, *(self.model.prompt(features, prompt, self.shape, s) for s in ([None] if denied else [seen, None]))]
        best = max(tries, key=lambda a: _agreement(a.logits, prompt, self.shape))
        if denied or best is answer:
            return best, best is not answer
        return replace(best, logits=torch.maximum(best.logits, earlier)), False

    def _check(self, *numbers: float) -> None:
        if not all(map(math.isfinite, numbers)):
            got = f"NaN or infinity on frame {self.t}, counted from the first prompt"
            raise InputError("finite numbers from the model", got, "use device=cpu, or check the checkpoint")

    # -- what is final ---------------------------------------------------------------------------------------------

    def _settled(self) -> int:
        """The first frame that is still open for some object."""
        final = self.t
        for o in self.objects.values():
            count = settled(o.pathways)
            lag = self.strategy.lag
            if lag is not None and len(o.pathways[0].open) - count > lag:
                count = len(o.pathways[0].open) - lag
                o.pathways = [p for p in o.pathways if p.open[:count] == o.pathways[0].open[:count]]
            if count < len(o.pathways[0].open):
                final = min(final, o.pathways[0].open[count].frame)
        return final

    def _report(self, until: int) -> Iterator[Result]:
        for t in range(self.reported, until):
            nodes = {obj: o.pathways[0].open[0] for obj, o in self.objects.items() if o.begun <= t}
            logits = {obj: self.logits.pop(node) for obj, node in nodes.items()}
            known = {obj: self.objects[obj].scores.pop(t) for obj in nodes}
            doubtful = {obj: disagreement for obj, (_, disagreement) in known.items() if disagreement is not None}
            values = torch.stack(list(doubtful.values())).tolist() if doubtful else []  # one transfer for all objects
            disagreements = dict(zip(doubtful, values, strict=True))
            scores = {}
            for obj, node in nodes.items():
                o = self.objects[obj]
                shorter: dict[Pathway, Pathway] = {p: p.reported(1) for p in dict.fromkeys(o.pathways)}
                o.pathways = [shorter[p] for p in o.pathways]
                scores[obj] = Score(node.iou, node.present, disagreements.get(obj, 0.0), tuple(known[obj][0]))
            found = self._shown(logits)
            yield Result(found.merged(), scores, found)
        self.reported = max(self.reported, until)

    def _shown(self, low: Mapping[int, torch.Tensor]) -> Logits:
        return Logits({key: self.model.filled(m) - self.strategy.score_thresh for key, m in low.items()}, self.shape)


class Logits(Mapping[int, np.ndarray]):
    """{object: (H, W) float32}, > 0 is the object; resized to the frame when asked for. Masks of different objects may overlap."""

    def __init__(self, low: Mapping[int, torch.Tensor], shape: tuple[int, int]):
        self.low, self.shape = low, shape

    def __getitem__(self, obj: int) -> np.ndarray:
        return self._full(self.low[obj][None, None])[0, 0].cpu().numpy()

    def __iter__(self) -> Iterator[int]:
        return iter(self.low)

    def __len__(self) -> int:
        return len(self.low)

    def merged(self) -> np.ndarray:
        """(H, W) uint8: the object of the highest logit where that exceeds 0."""
        if not self.low:
            return np.zeros(self.shape, np.uint8)
        best = torch.zeros(self.shape, device=next(iter(self.low.values())).device)
        labels = torch.zeros_like(best, dtype=torch.uint8)
        for obj, low in sorted(self.low.items()):
            full = self._full(low[None, None])[0, 0]
            labels.masked_fill_(full > best, obj)
            torch.maximum(best, full, out=best)
        return labels.cpu().numpy()

    def _full(self, low: torch.Tensor) -> torch.Tensor:
        return F.interpolate(low, size=self.shape, mode="bilinear", align_corners=False)


def _disagreement(masks: list[torch.Tensor]) -> torch.Tensor:
    """1 − mean IoU of the other hypotheses with the best one, a scalar that stays on the device."""
    best = masks[0]
    ious = []
    for other in masks[1:]:
        union = (best | other).sum()
        ious.append(torch.where(union > 0, (best & other).sum() / union.clamp(min=1), 1.0))
    return 1 - torch.stack(ious).mean()


def _agreement(logits: torch.Tensor, prompt: Prompt, shape: tuple[int, int]) -> float:
    """The share of a prompt's points that a mask (1, 1, Q, Q) puts on the right side; of a box, whether it is about the mask's own."""
    side, (height, width) = logits.shape[-1], shape
    found = (logits[0, 0] > 0).cpu().numpy()
    right = [found[int(p.y / height * side), int(p.x / width * side)] == bool(p.label) for p in prompt.points]
    if prompt.box is not None:
        (rows,), (columns,) = (np.nonzero(found.any(axis)) for axis in (1, 0))
        x0, y0, x1, y1 = np.array(prompt.box.xyxy) * (side / width, side / height, side / width, side / height)
        right.append(False)
        if len(rows):
            inside = max(0, min(x1, columns[-1] + 1) - max(x0, columns[0])) * max(0, min(y1, rows[-1] + 1) - max(y0, rows[0]))
            both = (x1 - x0) * (y1 - y0) + (columns[-1] + 1 - columns[0]) * (rows[-1] + 1 - rows[0]) - inside
            right[-1] = inside > both / 2
    return sum(right) / len(right) if right else 1.0


def _only_mask(prompt: Prompt) -> bool:
    return prompt.mask is not None and not prompt.points and prompt.box is None


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """An exhausted device said in words: the two settings that help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            "room on the device", "out of memory", "use a smaller image_size (e.g. 512), or a smaller num_pathway"
        ) from error
