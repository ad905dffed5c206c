"""Does refining help more than it harms? On the embedded clip: what it costs perfect masks, and what other strategies' masks gain.

    .venv/bin/python benchmarks/refine.py [--frames 60] [--by flow sam2long] [--model sam2.1_hiera_tiny]

Prints J (mean of both dyes) before and after, with mask and box and with the box alone as prompts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from vosnb import Clip, Masks, evaluate, propagate, refine, segment, turbulence
from vosnb.refine import changes

DYES = (1, 2)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--frames", type=int, default=60)
    p.add_argument("--by", nargs="+", default=["flow"], help="strategies whose masks are refined")
    p.add_argument("--model", default="grabcut", help="the image model that refines")
    args = p.parse_args()
    scene = turbulence(frames=args.frames)
    with TemporaryDirectory() as folder:
        scene.write(folder)
        clip, truth = (kind(Path(folder) / name / scene.name) for kind, name in ((Clip, "JPEGImages"), (Masks, "Annotations")))
        first = segment(clip[0], scene.prompts()[0], fill_holes=True, aux=scene.aux)
        given = {"the truth": truth, **{by: propagate(clip, {0: first}, by) for by in args.by}}
        print(
            f"{args.frames} frames, refined by {args.model}\n{'masks of':12}{'J before':>10}"
            + f"{'after':>10}{'IoU of both':>13}" * 2
        )
        for name, masks in given.items():
            line = f"{name:12}{evaluate(masks, truth, ids=DYES).mean:10.4f}"
            for prompt in ("mask+box", "box"):
                refined = refine(clip, masks, prompt, args.model)
                kept = [iou for obj, row in changes(refined).items() if obj in DYES for iou in row.values()]
                line += f"{evaluate(refined, truth, ids=DYES).mean:10.4f}{sum(kept) / len(kept):13.4f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
