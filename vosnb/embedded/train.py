"""Training of the small checkpoints, resumable at any time:

    python -m vosnb.embedded.train runs/mini --recipe sam2 --clips 2800
    python -m vosnb.embedded.train runs/xmem --recipe xmem --clips 2800

makes the training clips in `runs/mini/clips`, learns stage by stage, and leaves `state.pt` (to go on from), `curve.jsonl` and
`curve.png`, and in the end the checkpoint. Small pictures come before large ones, which cost four times as much; of SAM 2 single images
before clips, until a box is enough to find an object. `--start CHECKPOINT --stage large` goes on with
a finished one, in a folder of its own.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from ..errors import InputError
from ..files import replacing
from ..models import weights
from ..models.device import pick
from ..progress import progress
from .clips import make_clips
from .muon import Muon
from .recipe import Recipe, Stage
from .samples import VALIDATION, batches, sample, stacked

__all__ = ["export", "learn", "recipe", "train"]

WARM_UP = 0.05  # of each stage


def recipe(name: str) -> Recipe:
    """The recipe called `name`, sam2 or xmem."""
    if name == "sam2":
        from .learner import SAM2 as found
    elif name == "xmem":
        from .xmem_learner import XMEM as found
    else:
        raise InputError("a recipe among sam2, xmem", repr(name), "choose one of these")
    return found


def train(
    folder: Path, clips: int, recipe: Recipe, seed: int = 0, device: str = "auto", workers: int = 1, every: int = 100,
    start: Path | None = None,
) -> Path:  # fmt: skip
    """Trains, or goes on; the checkpoint's path. `every` is how many steps pass between points of the curve and saved states; `start`:
    the checkpoint whose network it begins with."""
    if clips < 2 * VALIDATION:
        raise InputError(
            f"at least {2 * VALIDATION} clips, the first {VALIDATION} of which are for validation", clips, "2000 or more"
        )
    where = torch.device(pick(device))
    torch.backends.cudnn.benchmark = True  # sizes do not change within a stage
    torch.manual_seed(seed)
    state = _State.of(folder / "state.pt", recipe, seed, clips, start)
    make_clips(folder / "clips", clips, max(workers, 1))
    check = {side: _held_out(folder / "clips", side) for side in {stage.side for stage in recipe.stages}}
    for number, stage in enumerate(recipe.stages):
        if state.stage > number:
            continue
        learner = recipe.learner(stage.side).to(where)
        learner.load_state_dict(state.weights)
        optimizers = _optimizers(learner, recipe)
        for optimizer, kept in zip(optimizers, state.optimizers, strict=False):
            optimizer.load_state_dict(kept)
        shape = (stage.frames, stage.objects, stage.side)
        feed = batches(folder / "clips", clips, seed + number, state.step, stage.steps, stage.clips, shape, workers)
        scores: list[dict[str, torch.Tensor]] = []
        started = time.monotonic()
        for batch in progress(feed, stage.steps - state.step, stage.name, "step"):
            rate = _rate(stage, state.step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            torch.manual_seed(hash((seed, number, state.step)))  # of what is drawn on the way: after an interruption, the same
            scores.append(learn(learner, optimizers, batch, where, recipe))
            state.step += 1
            last = state.step == stage.steps
            if state.step % every == 0 or last:
                state.seconds += time.monotonic() - started
                state.weights = learner.state_dict()
                state.optimizers = [optimizer.state_dict() for optimizer in optimizers]
                mean = {key: float(torch.stack([s[key] for s in scores]).mean()) for key in scores[0]}
                scores = []
                row = {"stage": stage.name, "step": state.step, "seconds": state.seconds, "rate": rate, **mean}
                if state.step % (4 * every) == 0 or last:
                    row |= _score(learner, check[stage.side], where)
                state.rows.append(row)
                state.save(folder)
                started = time.monotonic()
        state.stage, state.step, state.optimizers = number + 1, 0, []
        state.save(folder)
        plot(state.rows, folder / "curve.png", recipe)
    return export(state.weights, folder / f"{recipe.checkpoint}.safetensors")


def export(weights: dict[str, torch.Tensor], file: Path) -> Path:
    """The network's part of a learner's weights, as float16; what counts batches is left out."""
    from safetensors.torch import save_file

    kept = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
    kept = {key: value.half().contiguous().cpu() for key, value in kept.items() if value.is_floating_point()}
    with replacing(file) as part:
        save_file(kept, part)
    return file


def plot(rows: list[dict], file: Path, recipe: Recipe) -> None:
    """IoU as learned, on clips for learning and on others, over the hours of training."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 4), layout="constrained")).subplots()
    for key, label in recipe.shown.items():
        shown = [row for row in rows if key in row]
        axes.plot([row["seconds"] / 60 for row in shown], [row[key] for row in shown], label=label, lw=1)
    for before, row in pairwise(rows):
        if before["stage"] != row["stage"]:
            axes.axvline(before["seconds"] / 60, color="0.8", zorder=0)
    axes.set(xlabel="minutes", ylabel="IoU", ylim=(0, 1))
    axes.legend()
    with replacing(file) as part:
        figure.savefig(part)


def _optimizers(learner: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within (Jordan 2024), AdamW for all else."""
    inner = list(recipe.inner(learner))
    chosen = {id(p) for p in inner}
    others = [p for p in learner.parameters() if id(p) not in chosen]
    return [Muon(inner), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)]


def _rate(stage: Stage, step: int) -> float:
    first, last = stage.rate
    return min(1.0, (step + 1) / (WARM_UP * stage.steps)) * (first + (last - first) * step / stage.steps)


def learn(
    learner: nn.Module, optimizers: list[torch.optim.Optimizer], batch: dict, where: torch.device, recipe: Recipe
) -> dict[str, torch.Tensor]:
    """One step; the losses and scores, and the gradient's norm. A step without a finite gradient is left out."""
    learner.train()
    with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
        found = learner({key: value.to(where, non_blocking=True) for key, value in batch.items()})
        loss = sum(weight * found[key] for key, weight in recipe.losses.items())
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    if torch.isfinite(norm):
        for optimizer in optimizers:
            optimizer.step()
    return {key: value.detach() for key, value in found.items()} | {"norm": norm}


def _held_out(folder: Path, side: int) -> dict[str, torch.Tensor]:
    """Four frames each of clips that are not learned from."""
    rng = np.random.default_rng(0)
    return stacked([sample(folder, clip, rng, 4, 2, side, vary=False) for clip in range(VALIDATION // 2)])


@torch.no_grad()
def _score(learner: nn.Module, check: dict[str, torch.Tensor], where: torch.device) -> dict[str, float]:
    batch = {key: value.to(where) for key, value in check.items()}
    learner.eval()
    return {f"held_{key}": float(value) for key, value in learner(batch).items()}


@dataclass
class _State:
    """What it takes to go on, and what it began with."""

    weights: dict[str, torch.Tensor]
    optimizers: list[dict]
    stage: int
    step: int
    seconds: float
    rows: list[dict]
    begun: list[str | int]  # the recipe's checkpoint, the seed and the number of clips

    @classmethod
    def of(cls, file: Path, recipe: Recipe, seed: int, clips: int, start: Path | None) -> _State:
        begun: list[str | int] = [recipe.checkpoint, seed, clips, str(start), *map(repr, recipe.stages)]
        if file.exists():
            state = cls(**torch.load(file, map_location="cpu", weights_only=True))
            if state.begun != begun:
                raise InputError(
                    f"{file} of a training of (checkpoint, seed, clips, start, stages) {begun}",
                    state.begun,
                    "go on with these, or use another folder",
                )
            return state
        learner = recipe.learner(recipe.stages[0].side)
        if start is not None:
            counters = {key: value for key, value in learner.network.state_dict().items() if not value.is_floating_point()}
            weights.fit(learner.network, {**counters, **weights.load_state(start)}, recipe.checkpoint)
        return cls(learner.state_dict(), [], 0, 0, 0.0, [], begun)

    def save(self, folder: Path) -> None:
        with replacing(folder / "state.pt") as part:
            torch.save(vars(self), part)
        with replacing(folder / "curve.jsonl") as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in self.rows))


def main(
    folder: Path,
    which: Annotated[str, typer.Option("--recipe", help="sam2 or xmem.")] = "sam2",
    clips: Annotated[int, typer.Option(help="Training clips to make, once.")] = 2800,
    stage: Annotated[str, typer.Option(help="Only this stage of the recipe.")] = "",
    steps: Annotated[float, typer.Option(help="How many times the recipe's steps.")] = 1.0,
    start: Annotated[Path | None, typer.Option(help="A checkpoint to begin with.")] = None,
    seed: int = 0,
    device: str = "auto",
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 1,
) -> None:
    """Train a small network in FOLDER, or go on with it."""
    chosen = recipe(which)
    stages = [s for s in chosen.stages if stage in ("", s.name)]
    if not stages:
        raise InputError("a stage among " + ", ".join(s.name for s in chosen.stages), repr(stage), "choose one of these")
    stages = [replace(s, steps=max(1, round(steps * s.steps))) for s in stages]
    print(train(folder, clips, replace(chosen, stages=tuple(stages)), seed, device, workers, start=start))


if __name__ == "__main__":
    typer.run(main)
