"""XMem's forward pass as it is trained: a batch of short clips, the true masks of the first frame, then memory (Cheng & Schwing 2022,
section 3 and appendix).

    V  clips    T  frames    O  objects of a clip    B = V × O    S = H = W, h, w, Ck, Cv, Ch as in `vosnb.models.xmem`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.token_memory import similarity
from ..models.xmem import MEAN, STD, STRIDE, SURE, Architecture, Block, Network, Residual, SharedResidual
from .recipe import Recipe, Stage

__all__ = ["ARCHITECTURE", "XMEM", "Learner"]

ARCHITECTURE = Architecture(
    key_stem=32, key_stages=((2, 32), (3, 64), (4, 128)), bottleneck=2, value_stem=24, value_stages=((1, 24), (1, 48), (2, 96)),
    key=48, value=160, hidden=48, up=(160, 64, 32), update=64, squeeze=8,
)  # fmt: skip
KEPT = 0.4  # of the frames enter the memory while learning
TOP_K = 30  # as `propagate` reads; half of the steps read all of the memory, which teaches more of its keys at once
ABSENT = -16.0  # the logit of an object that is not asked for
HARDEST = 0.15  # of the pixels, which count twice


class Learner(nn.Module):
    """`network`: XMem's. Called with a batch of `samples`, it gives losses and scores, scalars."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        self.coarse = nn.Conv2d(
            network.architecture.value, 1, 1
        )  # for learning alone: what is read says by itself where an object is

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        judged = list(self.follow(batch))
        return {name: torch.stack([j[name] for _, j in judged]).mean() for name in judged[0][1]}

    def follow(self, batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Of every frame but the first, the log-odds (V, O + 1, S, S), background first, and what is to be said of them."""
        network, images = self.network, batch["images"]
        (clips, frames), objects = images.shape[:2], batch["masks"].shape[2]
        masks, different = distinct(batch["masks"])
        truth = _label_map(masks)
        small = F.avg_pool2d(masks.flatten(0, 1).float(), STRIDE).unflatten(0, (clips, frames))  # (V, T, O, h, w)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        pixels = (images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - mean) / std
        found = network.key_encoder(pixels)
        key, shrinkage, selection = (maps.float() for maps in network.key_proj(found[2]))
        pixels, key, shrinkage, selection, *features = (
            maps.unflatten(0, (clips, frames)) for maps in (pixels, key, shrinkage, selection, *found)
        )
        said = masks[:, 0].float()
        hidden = said.new_zeros(clips * objects, network.architecture.hidden, *features[2].shape[-2:])
        memory: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for t in range(frames):
            image, f4, f8, f16 = (maps[:, t].repeat_interleave(objects, 0) for maps in (pixels, *features))
            write = t == 0 or (t + 1 < frames and bool(torch.rand(()) < KEPT))
            if t:
                readout, carried = self.read(memory, key[:, t], selection[:, t], objects)
                logits, hidden = network.decoder(f4, f8, f16, readout, hidden, not write)
                odds = log_odds(logits.float().unflatten(0, (clips, objects)).masked_fill(~different, ABSENT))
                coarse = self.coarse(readout).unflatten(0, (clips, objects))[:, :, 0]
                said = odds.softmax(1)[:, 1:]
                yield (
                    odds,
                    {
                        **judge(odds, truth[:, t]),
                        "carried": F.binary_cross_entropy_with_logits(carried.logit(0.01), small[:, t]),
                        "coarse": F.binary_cross_entropy_with_logits(coarse.float(), small[:, t]),
                    },
                )
            if write:
                planes = torch.stack([said, said.sum(1, keepdim=True) - said], 2).flatten(0, 1)
                values = network.value_encoder(image, f16, planes)
                hidden = network.value_encoder.hidden_reinforce(values, hidden)
                memory.append((key[:, t], shrinkage[:, t], values, small[:, t]))

    def read(
        self, memory: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], key: Tensor, selection: Tensor, objects: int
    ) -> tuple[Tensor, Tensor]:
        """What the memory says of each object to the queries of one frame, (V, Ck, h, w): (B, Cv, h, w); and the true masks of the
        frames in memory, read in the same way, (V, O, h, w), which tells keys what to be alike in."""
        tokens, strength, values, masks = (torch.cat([m[i].flatten(2) for m in memory], 2) for i in range(4))
        with torch.autocast(key.device.type, enabled=False):
            alike = similarity(tokens.mT, strength.mT, key.flatten(2).mT, selection.flatten(2).mT)  # (V, h·w, N)
            if not self.training or torch.rand(()) < 0.5:
                least = alike.topk(min(TOP_K, alike.shape[2]), 2).values[..., -1:]
                alike = alike.masked_fill(alike < least, float("-inf"))
            weight = alike.softmax(2).mT
            carried = (masks @ weight).unflatten(2, key.shape[-2:])
        readout = values @ weight.repeat_interleave(objects, 0).to(values.dtype)
        return readout.unflatten(2, key.shape[-2:]), carried


def distinct(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (V, T, O, S, S), empty where a clip has an object twice; and which are the first of their kind, (V, O, 1, 1)."""
    first = masks[:, 0]
    same = (first[:, :, None] == first[:, None]).all(-1).all(-1)
    twin = same.tril(-1).any(2)[..., None, None]
    return masks & ~twin[:, None], ~twin


def log_odds(logits: Tensor) -> Tensor:
    """The log-odds of `vosnb.models.xmem.aggregate` (V, O + 1, S, S), of logits (V, O, S, S), without its limits, at which nothing is
    learned."""
    nobody = F.logsigmoid(-logits).sum(1, keepdim=True)
    return torch.cat([nobody - torch.log(-torch.expm1(nobody) + SURE), logits], 1)


def _label_map(masks: Tensor) -> Tensor:
    """(V, T, O, S, S) → (V, T, S, S), plane + 1 or 0; objects do not overlap."""
    numbers = torch.arange(1, masks.shape[2] + 1, device=masks.device)[:, None, None]
    return (masks * numbers).amax(2)


def judge(odds: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Of one frame, `odds` (V, O + 1, S, S) and `truth` (V, S, S): cross-entropy, its hardest pixels counted again, and Dice; and the mean
    IoU of the objects that are there."""
    entropy = F.cross_entropy(odds, truth, reduction="none").flatten(1)
    hard = entropy.topk(int(HARDEST * entropy.shape[1]), 1, sorted=False).values
    target = F.one_hot(truth, odds.shape[1]).movedim(-1, 1)[:, 1:].float()
    inside = odds.softmax(1)[:, 1:]
    there = target.flatten(2).amax(2)
    count = there.sum().clamp(min=1)
    dice = 1 - (2 * (inside * target).sum((2, 3)) + 1) / (inside.sum((2, 3)) + target.sum((2, 3)) + 1)
    with torch.no_grad():
        mine = F.one_hot(odds.argmax(1), odds.shape[1]).movedim(-1, 1)[:, 1:] > 0
        reached = (mine & (target > 0)).sum((2, 3)) / (mine | (target > 0)).sum((2, 3)).clamp(min=1)
    return {
        "entropy": entropy.mean() + hard.mean(),
        "dice": (dice * there).sum() / count,
        "iou": (reached * there).sum() / count,
    }


def prepare(network: Network) -> None:
    """Starting weights that shorten the way: residual branches begin at nothing, and no pixel is an object's."""
    for module in network.modules():
        if isinstance(module, Block):
            nn.init.zeros_((module.bn3 if module.deep else module.bn2).weight)
        elif isinstance(module, Residual | SharedResidual):
            nn.init.zeros_(module.conv2.weight)
    nn.init.constant_(network.decoder.pred.bias, -2.0)


def _learner(side: int) -> Learner:
    learner = Learner(Network(ARCHITECTURE))
    prepare(learner.network)
    return learner


XMEM = Recipe(
    checkpoint="vosnb-mini-xmem",
    stages=(
        Stage("short", 500, clips=24, frames=3, objects=3, side=128, rate=(1e-3, 7e-4)),
        Stage("long", 1300, clips=12, frames=8, objects=3, side=256, rate=(8e-4, 1e-6)),
    ),
    learner=_learner,
    losses={"entropy": 1.0, "dice": 1.0, "carried": 1.0, "coarse": 1.0},
    inner=lambda learner: [p for p in learner.parameters() if p.ndim > 1 and p.shape[0] > 3],
    shown={"iou": "learned", "held_iou": "held out: four frames"},
)
