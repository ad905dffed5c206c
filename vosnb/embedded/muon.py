"""Muon (Jordan 2024, "Muon: an optimizer for hidden layers"): steps of one length in all directions, for the matrices inside a network.

torch.optim.Muon does the same in bfloat16, which processors without it emulate at several times the cost of the whole step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["Muon"]

QUINTIC = 3.4445, -4.7750, 2.0315  # Jordan's Newton–Schulz polynomial


class Muon(torch.optim.Optimizer):
    """For matrices, and kernels of convolutions, each a matrix of one row per output. `lr` is AdamW's: steps are scaled to AdamW's
    usual size (Liu et al. 2025, "Muon is scalable")."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(tuple(p.shape), []).append(p)
            for shape, params in alike.items():
                momenta = []
                for p in params:
                    kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    kept.lerp_(p.grad, 1 - group["momentum"])
                    momenta.append(p.grad.lerp(kept, group["momentum"]))
                steps = _orthogonal(torch.stack(momenta).flatten(2))
                steps *= 0.2 * max(steps.shape[1:]) ** 0.5
                for p, step in zip(params, steps, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step.view(shape), alpha=group["lr"])


def _orthogonal(x: torch.Tensor) -> torch.Tensor:
    """The nearest matrices with orthonormal rows or columns, about; x (N, rows, columns)."""
    a, b, c = QUINTIC
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
