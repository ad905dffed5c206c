"""What `train` needs to know of a network that it trains: the recipe of `learner` for SAM 2, of `xmem_learner` for XMem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Recipe", "Stage"]


@dataclass(frozen=True)
class Stage:
    """`steps` with batches of V `clips` of T `frames` with O `objects`, S = `side`; the rate falls evenly from first to last."""

    name: str
    steps: int
    clips: int
    frames: int
    objects: int
    side: int
    rate: tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """`learner(side)`: a module with the network as its `network`, which a batch of `samples` gives losses and scores, scalars;
    `losses`: the weight of each loss; `inner`: the parameters that Muon steps, the others are AdamW's; `shown`: {key of the curve:
    what it is}, the held-out ones begin with held_."""

    checkpoint: str
    stages: tuple[Stage, ...]
    learner: Callable[[int], nn.Module]
    losses: Mapping[str, float]
    inner: Callable[[nn.Module], Sequence[torch.Tensor]]
    shown: Mapping[str, str]
