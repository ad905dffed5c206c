"""`vosnb video`: one video with the flags that users of SAM 2 and SAM2Long know, and a few more.

argparse rather than typer, because the published flags take several values each: `--points x1 y1 x2 y2`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .files import check_new, check_result
from .prompts import Box, Point, Prompt, Prompts

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="vosnb video", description="Track objects through one video with SAM 2 and memory pathways."
    )
    p.add_argument("--video_path", required=True, help="a video file or a folder of images")
    p.add_argument(
        "--points", nargs="+", type=float, default=[], help="x1 y1 x2 y2 …, pixels on frame 0; positive unless --labels"
    )
    p.add_argument("--labels", nargs="+", type=int, help="1 or 0 per point: on the object or not")
    p.add_argument("--point_objects", nargs="+", type=int, help="an object id per point (default: all 1)")
    p.add_argument(
        "--boxes", nargs="+", type=float, default=[], help="x0 y0 x1 y1 per box: objects 1, 2, … unless --box_objects"
    )
    p.add_argument("--box_objects", nargs="+", type=int, help="an object id per box")
    p.add_argument("--prompts", type=Path, help="a prompts JSON file, on any frames; the options above add to its frame 0")
    p.add_argument("--output_video", type=Path, help="an overlay video to write")
    p.add_argument("--output_mask_dir", type=Path, help="a folder of indexed PNGs to write")
    p.add_argument("--sam2_cfg", help="a configuration: configs/sam2.1/sam2.1_hiera_l.yaml, or a path")
    p.add_argument(
        "--sam2_checkpoint",
        help="a checkpoint file, or a name that `vosnb fetch` lists; if none, the largest SAM 2.1 fetched, or our small one",
    )
    p.add_argument("--num_pathway", type=int, default=3, help="pathways per object")
    p.add_argument("--iou_thre", type=float, default=0.1, help="frames above this predicted IoU are remembered")
    p.add_argument("--uncertainty", type=float, default=2.0, help="pathways branch where no |object score| is above this")
    p.add_argument("--image_size", type=int, help="side of the model's input, e.g. 512 for speed")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    p.add_argument("--overwrite", action="store_true", help="replace what is there")
    return p


def run(arguments: Sequence[str]) -> list[Path]:
    """Runs it and returns the paths written. `InputError` before any work where a value does not fit."""
    from .clip import Clip
    from .propagate import propagate

    args = parser().parse_args(list(arguments))
    if not (args.output_video or args.output_mask_dir):
        raise InputError("--output_video or --output_mask_dir", "neither", "say where the result goes")
    check_result(args.output_video, (".mp4", ".mov", ".mkv"), args.video_path, args.prompts, args.output_mask_dir)
    check_result(args.output_mask_dir, (), args.video_path, args.prompts)
    check_new(args.output_video, args.overwrite)
    prompts = _prompts(args)
    clip = Clip(args.video_path)
    masks = propagate(
        clip, prompts, "sam2long", out=args.output_mask_dir, overwrite=args.overwrite, model=args.sam2_checkpoint, config=args.sam2_cfg,
        num_pathway=args.num_pathway, iou_thre=args.iou_thre, uncertainty=args.uncertainty, image_size=args.image_size, device=args.device,
    )  # fmt: skip
    if args.output_video:
        masks.video(clip, args.output_video, overwrite=args.overwrite)
    return [path for path in (args.output_mask_dir, args.output_video) if path]


def _prompts(args: argparse.Namespace) -> Prompts:
    prompts = Prompts.load(args.prompts) if args.prompts else Prompts()
    points, boxes = _rows(args.points, 2, "--points"), _rows(args.boxes, 4, "--boxes")
    labels = _per(args.labels, [1] * len(points), "--labels", "point")
    owners = _per(args.point_objects, [1] * len(points), "--point_objects", "point")
    boxed = _per(args.box_objects, list(range(1, len(boxes) + 1)), "--box_objects", "box")
    if len(set(boxed)) < len(boxed):
        raise InputError("one box per object", f"--box_objects {boxed}", "drop one")
    for obj in sorted({*owners, *boxed}):
        old = prompts.get(0, {}).get(obj)
        clicks = tuple(Point(*xy, label) for xy, label, owner in zip(points, labels, owners, strict=True) if owner == obj)
        box = next((Box(*xyxy) for xyxy, owner in zip(boxes, boxed, strict=True) if owner == obj), old.box if old else None)
        prompts = prompts.with_prompt(0, obj, Prompt((*(old.points if old else ()), *clicks), box, old.mask if old else None))
    if not prompts:
        raise InputError("at least one prompt", "none", "give --points, --boxes or --prompts")
    return prompts


def _rows(numbers: Sequence[float], width: int, flag: str) -> list[tuple[float, ...]]:
    if len(numbers) % width:
        raise InputError(f"{flag} in groups of {width}", f"{len(numbers)} numbers", "x comes before y, in pixels")
    return [tuple(numbers[i : i + width]) for i in range(0, len(numbers), width)]


def _per(given: Sequence[int] | None, usual: list[int], flag: str, what: str) -> list[int]:
    if given is not None and len(given) != len(usual):
        raise InputError(f"{flag} with one value per {what}", f"{len(given)} for {len(usual)}", "give as many")
    return usual if given is None else list(given)
