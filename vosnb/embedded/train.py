"""Training of the small SAM 2, resumable at any time:

    python -m vosnb.embedded.train runs/mini --clips 2800

makes the training clips in `runs/mini/clips`, learns stage by stage, and leaves `state.pt` (to go on from), `curve.jsonl` and
`curve.png`, and in the end `vosnb-mini-sam2.safetensors`. Single images come first, until a box is enough to find an object; then
pairs of frames, then clips; small pictures before large ones, which cost four times as much.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from ..errors import InputError
from ..files import replacing
from ..models.device import pick
from ..models.sam import sam2_network
from ..progress import progress
from .clips import make_clips
from .learner import Learner, prepare
from .muon import Muon
from .samples import VALIDATION, batches, sample, stacked

__all__ = ["STAGES", "Stage", "export", "learn", "network", "train"]

CONFIG = Path(__file__).parents[1] / "models" / "mini.yaml"
CHECKPOINT = "vosnb-mini-sam2.safetensors"
WARM_UP = 0.05  # of each stage
WEIGHTS = {"mask": 1.0, "quality": 0.5, "presence": 2.0, "dense": 0.5}


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


STAGES = (
    Stage("images", 2000, clips=24, frames=1, objects=3, side=128, rate=(2.0e-3, 4e-4)),
    Stage("pairs", 300, clips=8, frames=2, objects=3, side=128, rate=(1e-3, 1e-3)),
    Stage("clips", 1000, clips=3, frames=8, objects=3, side=128, rate=(1e-3, 2e-4)),
    Stage("large", 380, clips=2, frames=8, objects=2, side=256, rate=(3e-4, 1e-5)),
)


def train(
    folder: Path, clips: int, stages: tuple[Stage, ...] = STAGES, seed: int = 0, device: str = "auto", workers: int = 1,
    every: int = 100,
) -> Path:  # fmt: skip
    """Trains, or goes on; the checkpoint's path. `every` is how many steps pass between points of the curve and saved states."""
    if clips < 2 * VALIDATION:
        raise InputError(
            f"at least {2 * VALIDATION} clips, the first {VALIDATION} of which are for validation", clips, "2000 or more"
        )
    where = torch.device(pick(device))
    make_clips(folder / "clips", clips, max(workers, 1))
    torch.manual_seed(seed)
    state = _State.load(folder / "state.pt") or _State.new(stages[0].side)
    check = {side: _held_out(folder / "clips", side) for side in {stage.side for stage in stages}}
    for number, stage in enumerate(stages):
        if state.stage > number:
            continue
        learner = Learner(network(stage.side)).to(where)
        learner.load_state_dict(state.weights)
        optimizers = _optimizers(learner)
        for optimizer, kept in zip(optimizers, state.optimizers, strict=False):
            optimizer.load_state_dict(kept)
        shape = (stage.frames, stage.objects, stage.side)
        feed = batches(folder / "clips", clips, seed + number, state.step, stage.steps, stage.clips, shape, workers)
        scores: list[dict[str, float]] = []
        started = time.monotonic()
        for batch in progress(feed, stage.steps - state.step, stage.name, "step"):
            rate = _rate(stage, state.step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            torch.manual_seed(hash((seed, number, state.step)))  # of the clicks: after an interruption, the same ones
            scores.append(learn(learner, optimizers, batch, where, correct=state.step % 2 == 1))
            state.step += 1
            last = state.step == stage.steps
            if state.step % every == 0 or last:
                state.seconds += time.monotonic() - started
                started = time.monotonic()
                state.weights = learner.state_dict()
                state.optimizers = [optimizer.state_dict() for optimizer in optimizers]
                mean = {key: float(np.mean([s[key] for s in scores])) for key in scores[0]}
                scores = []
                row = {"stage": stage.name, "step": state.step, "seconds": state.seconds, "rate": rate, **mean}
                if state.step % (4 * every) == 0 or last:
                    row |= _score(learner, check, stage.side, where)
                state.rows.append(row)
                state.save(folder)
        state.stage, state.step = number + 1, 0
        state.save(folder)
        plot(state.rows, folder / "curve.png")
    return export(state.weights, folder / CHECKPOINT)


def export(weights: dict[str, torch.Tensor], file: Path) -> Path:
    """The network's part of a learner's weights, as float16."""
    from safetensors.torch import save_file

    kept = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
    with replacing(file) as part:
        save_file({key: value.half().contiguous().cpu() for key, value in kept.items()}, part)
    return file


def network(side: int) -> nn.Module:
    """The small network for pictures of this side; its last block looks at all of them, without padding to the full size."""
    made = sam2_network(CONFIG, side, postprocess=False)
    last = made.image_encoder.trunk.blocks[-1]
    last.window_size = min(last.window_size, side // 16)
    return made


def plot(rows: list[dict], file: Path) -> None:
    """IoU as learned, on clips for learning and on others, over the hours of training."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 4), layout="constrained")).subplots()
    for key, label in {
        "single": "learned: one mask", "chosen": "learned: chosen of three", "held_single": "held out: first frame",
        "held_clip_chosen": "held out: four frames, chosen of three",
    }.items():  # fmt: skip
        shown = [row for row in rows if key in row]
        axes.plot([row["seconds"] / 3600 for row in shown], [row[key] for row in shown], label=label, lw=1)
    for before, row in pairwise(rows):
        if before["stage"] != row["stage"]:
            axes.axvline(before["seconds"] / 3600, color="0.8", zorder=0)
    axes.set(xlabel="hours", ylabel="IoU", ylim=(0, 1))
    axes.legend()
    with replacing(file) as part:
        figure.savefig(part)


def _optimizers(learner: Learner) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within (Jordan 2024), AdamW for all else: embeddings, convolutions, norms, biases."""
    outer = ("embed", "token", "no_mem", "no_obj", "tpos")
    inner = [
        p for name, p in learner.named_parameters() if p.ndim == 2 and min(p.shape) > 1 and not any(o in name for o in outer)
    ]
    others = [p for p in learner.parameters() if not any(p is q for q in inner)]
    return [
        Muon(inner),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _rate(stage: Stage, step: int) -> float:
    first, last = stage.rate
    return min(1.0, (step + 1) / (WARM_UP * stage.steps)) * (first + (last - first) * step / stage.steps)


def learn(
    learner: Learner, optimizers: list[torch.optim.Optimizer], batch: dict, where: torch.device, correct: bool
) -> dict[str, float]:
    with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
        found = learner({key: value.to(where, non_blocking=True) for key, value in batch.items()}, correct)
        loss = sum(weight * found[key] for key, weight in WEIGHTS.items())
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    if torch.isfinite(norm):
        for optimizer in optimizers:
            optimizer.step()
    return {key: float(value.detach()) for key, value in found.items()} | {"norm": float(norm)}


def _held_out(folder: Path, side: int) -> dict[str, torch.Tensor]:
    """Four frames each of clips that are not learned from."""
    rng = np.random.default_rng(0)
    return stacked([sample(folder, clip, rng, 4, 2, side, vary=False) for clip in range(VALIDATION // 2)])


@torch.no_grad()
def _score(learner: Learner, check: dict[int, dict[str, torch.Tensor]], side: int, where: torch.device) -> dict[str, float]:
    batch = {key: value.to(where) for key, value in check[side].items()}
    first = {key: value[:, :1] if key in ("images", "masks") else value for key, value in batch.items()}
    return {f"held_{key}": float(value) for key, value in learner(first, False).items()} | {
        f"held_clip_{key}": float(value) for key, value in learner(batch, False).items()
    }


@dataclass
class _State:
    """What it takes to go on."""

    weights: dict[str, torch.Tensor]
    optimizers: list[dict]
    stage: int
    step: int
    seconds: float
    rows: list[dict]

    @classmethod
    def new(cls, side: int) -> _State:
        learner = Learner(network(side))
        prepare(learner.network)
        return cls(learner.state_dict(), [], 0, 0, 0.0, [])

    @classmethod
    def load(cls, file: Path) -> _State | None:
        return cls(**torch.load(file, map_location="cpu", weights_only=True)) if file.exists() else None

    def save(self, folder: Path) -> None:
        with replacing(folder / "state.pt") as part:
            torch.save(vars(self), part)
        with replacing(folder / "curve.jsonl") as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in self.rows))


def main(
    folder: Path,
    clips: Annotated[int, typer.Option(help="Training clips to make, once.")] = 2800,
    seed: int = 0,
    device: str = "auto",
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 1,
) -> None:
    """Train the small SAM 2 in FOLDER, or go on with it."""
    print(train(folder, clips, seed=seed, device=device, workers=workers))


if __name__ == "__main__":
    typer.run(main)
