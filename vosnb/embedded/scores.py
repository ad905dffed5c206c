"""What the small models can do, on seeds that training never uses: the figures of its card.

    python -m vosnb.embedded.scores runs/benchmark            # makes the benchmark there first, if need be

Prints a table, and leaves `scores.json` and each clip's results in the folder; those that are there are not made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from scipy import stats

from .. import models
from ..clip import Clip
from ..evaluate import evaluate
from ..files import replacing
from ..masks import Masks
from ..models import weights
from ..progress import progress
from ..prompts import Box, Point, Prompt, Prompts, by_label
from ..propagate import stream
from ..synth import scene, turbulence
from .benchmark import LONG_OCCLUDED, SEEDS, differing, make_benchmark

__all__ = ["first_frames", "main", "still_images"]

STILL_SEEDS = range(500, 512)  # of every kind, frame 0
MODEL = "vosnb-mini-sam2"


def first_frames() -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
    """Frame 0 of held-out scenes of every kind: image, {object: (H, W) bool}."""
    for kind in SEEDS:
        for seed in STILL_SEEDS:
            made = turbulence(seed, 1) if kind == "turbulence" else scene(seed, kind, 1)
            image, labels = next(iter(made))
            shown = {obj: mask for obj, mask in by_label(labels).items() if mask.sum() >= 64 and obj not in made.aux}
            if shown:
                yield image, shown


def still_images(model: Any) -> dict[str, float]:
    """Mean IoU on first frames: a box; the box and one, two corrective points; one point, best of three and chosen; a mask."""
    found: dict[str, list[float]] = {}
    network = models.load(model)
    for image, shown in progress(first_frames(), len(SEEDS) * len(STILL_SEEDS), "first frames"):
        encoded = network.encode(image)
        for truth in shown.values():
            answers = _answers(network, encoded, truth)
            for name, logits in answers.items():
                found.setdefault(name, []).append(_iou(logits > 0, truth))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _answers(network: models.ImageModel, encoded: models.Encoded, truth: np.ndarray) -> dict[str, np.ndarray]:
    (rows,), (columns,) = (np.nonzero(truth.any(axis)) for axis in (1, 0))
    box = Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    one = network.decode(encoded, [Prompt(box=box)])
    answers, points, now = {"box": one.logits[0, 0]}, (), one
    for count in ("box + 1 point", "box + 2 points"):
        points = (*points, _correction(now.logits[0, 0] > 0, truth))
        now = network.decode(encoded, [Prompt(points, box)], mask_logits=[now.low[0, 0]])
        answers[count] = now.logits[0, 0]
    click = network.decode(encoded, [Prompt((_correction(np.zeros_like(truth), truth),))], multimask=True)
    answers["point"] = click.logits[0, int(click.iou[0].argmax())]
    answers["mask"] = network.decode(encoded, [Prompt(mask=truth)]).logits[0, 0]
    return answers


def _correction(found: np.ndarray, truth: np.ndarray) -> Point:
    """A click in the middle of the largest mistake; where there is none, in the middle of the object."""
    wrong = found ^ truth if (found ^ truth).any() else truth
    depth = cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return Point(int(x), int(y), int(truth[y, x]))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def track(folder: Path, name: str, by: str, start: str, **settings: Any) -> dict[str, Any]:
    """J&F of one clip, the mean over its objects; and of each object on each frame its object score, predicted and true IoU.

    `start`: what the prompt is, the true "mask" or its "box".
    """
    file = folder / "results" / _mark(settings.get("model")) / f"{by}-{start}" / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    clip, truth = Clip(folder / "JPEGImages" / name), Masks(folder / "Annotations" / name)
    boxes = Prompts.load(folder / "prompts" / f"{name}.json")
    aux = (3,) if name.startswith("turbulence") else ()
    prompts = boxes if start == "box" else {t: {o: truth[t] == o for o in given} for t, given in boxes.items()}
    ids = [obj for obj in boxes.ids if obj not in aux]
    labels, rows, begun = [], [], time.monotonic()
    begins = {obj: t for t in sorted(boxes, reverse=True) for obj in boxes[t]}
    for t, result in stream(clip, prompts, by, aux=aux, **settings):
        labels.append(result.labels)
        for obj in ids:
            if t > begins[obj]:
                real, score = truth[t] == obj, result.scores[obj]
                rows.append([float(score.present), float(score.iou), bool(real.any()), _iou(result.labels == obj, real)])
    seconds = (time.monotonic() - begun) / len(clip)
    # each object from the frame after its prompt on: before, there is nothing to find
    reports = [evaluate(Masks(labels), truth, ids=[obj], skip=range(begins[obj] + 1)).summary for obj in ids]
    kept = {key: float(np.mean([r[f"{key}-Mean"] for r in reports])) for key in ("J&F", "J", "F")}
    kept |= {"seconds": seconds, "frames": rows}
    with replacing(file) as part:
        part.write_text(json.dumps(kept), encoding="utf-8")
    return kept


def _mark(model: str | None) -> str:
    """Results are of one checkpoint: the beginning of its hash."""
    if model is None:
        return "none"
    file = weights.path(model) if model in weights.cards() else Path(model)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def summary(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, Any]:
    """From {strategy: {clip: track(…)}}: J&F, how well absence and quality are known, and what pathways change."""
    found: dict[str, Any] = {}
    for by, clips in results.items():
        scores = {name: result["J&F"] for name, result in clips.items()}
        rows = np.array([row for result in clips.values() for row in result["frames"]], float)
        present, predicted, there, real = rows.T
        dyes = [score for name, score in scores.items() if name.startswith("turbulence")]
        found[by] = {
            "J&F": float(np.mean(list(scores.values()))),
            "J&F, turbulence": float(np.mean(dyes)) if dyes else float("nan"),
            "s/frame": float(np.mean([result["seconds"] for result in clips.values()])),
            "clips": scores,
        }
        if np.isfinite(present).all():
            found[by]["absence AUROC"] = _auroc(-present, there == 0)
            seen = there == 1
            found[by]["IoU Spearman"] = float(stats.spearmanr(predicted[seen], real[seen]).statistic)
    return found


def difference(
    one: Mapping[str, float], other: Mapping[str, float], names: Sequence[str], draws: int = 10_000
) -> tuple[float, ...]:
    """Mean of `other` − `one` over the clips and its 95 % interval, by bootstrap over clips."""
    gaps = np.array([other[name] - one[name] for name in names])
    means = np.random.default_rng(0).choice(gaps, (draws, len(gaps))).mean(1)
    return float(gaps.mean()), *(float(v) for v in np.percentile(means, (2.5, 97.5)))


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive has a higher score than a negative; ties count half."""
    if positive.all() or not positive.any():
        return float("nan")
    return float(stats.mannwhitneyu(score[positive], score[~positive]).statistic / (positive.sum() * (~positive).sum()))


def main(
    folder: Path,
    model: Annotated[str, typer.Option(help="A checkpoint's name or file.")] = MODEL,
    by: Annotated[str, typer.Option(help="Strategy:start, comma separated.")] = "flow:mask,sam2:mask,sam2:box,sam2long:mask",
    clips: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    still: Annotated[bool, typer.Option(help="First frames too.")] = True,
) -> None:
    """Score a small model on the benchmark in FOLDER."""
    make_benchmark(folder)
    if others := differing(folder):
        print(f"rounded otherwise on this machine than in the manifest: {', '.join(others)}")
    names = clips.split(",") if clips else sorted(p.name for p in (folder / "JPEGImages").iterdir())
    scores: dict[str, Any] = {"model": model}
    if still:
        scores["first frame, mean IoU"] = still_images(model)
    results: dict[str, dict[str, Any]] = {}
    for item in by.split(","):
        strategy, start = item.split(":")
        settings = {} if strategy == "flow" else {"model": model}
        for name in progress(names, len(names), item, "clip"):
            results.setdefault(f"{strategy}-{start}", {})[name] = track(folder, name, strategy, start, **settings)
    scores["tracking"] = summary(results)
    if {"sam2-mask", "sam2long-mask"} <= set(results):
        plain, pathways = (scores["tracking"][key]["clips"] for key in ("sam2-mask", "sam2long-mask"))
        for what, chosen in {"all clips": names, "long occluded clips": [n for n in names if n in LONG_OCCLUDED]}.items():
            if chosen:
                scores[f"sam2long − sam2, {what}"] = difference(plain, pathways, chosen)
    with replacing(folder / "scores.json") as part:
        part.write_text(json.dumps(scores, indent=1), encoding="utf-8")
    print(table(scores))


def table(scores: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| figure | value |", "|---|---|"]
    lines += [
        f"| first frame, {name}: mean IoU | {value:.3f} |" for name, value in scores.get("first frame, mean IoU", {}).items()
    ]
    for by, found in scores["tracking"].items():
        lines += [f"| {by}: {key} | {value:.3f} |" for key, value in found.items() if key != "clips"]
    for key, value in scores.items():
        if key.startswith("sam2long"):
            lines.append("| {}: J&F | {:+.3f} (95 % {:+.3f} … {:+.3f}) |".format(key, *value))
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
