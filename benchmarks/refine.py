"""Does refining gain more than it costs? What it takes from perfect masks, and what other strategies' masks gain, at several trusts.

    .venv/bin/python benchmarks/refine.py [--frames 60] [--by flow sam2 xmem] [--trust 0 1 2 4] [--model sam2.1_hiera_tiny]

On dyes and on a scene of moving shapes, seeds that no training has seen: the mean IoU with the truth of every third frame, before, and
after with mask and box as prompts. A trust of 0 is the model's word alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np

from vosnb import Clip, models, propagate, turbulence
from vosnb.metrics import jaccard
from vosnb.strategies import Result
from vosnb.strategies.refined import Refiner
from vosnb.synth import Scene, scene

SEED, EVERY = 301, 3


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--frames", type=int, default=60)
    p.add_argument("--by", nargs="+", default=["flow", "sam2", "xmem"], help="strategies whose masks are refined")
    p.add_argument("--trust", nargs="+", type=float, default=[0.0, 1.0, 2.0, 4.0])
    p.add_argument("--model", default="vosnb-mini-sam2", help="the image model that refines")
    args = p.parse_args()
    model = models.load(args.model)
    print(f"{'':28}{'before':>8}" + "".join(f"{f'trust {trust:g}':>10}" for trust in args.trust))
    for made in (turbulence(SEED, args.frames), scene(SEED, "mixed", args.frames)):
        images, truth = (np.stack(parts) for parts in zip(*made, strict=True))
        given = {"the truth": truth}
        for by in args.by:
            given[by] = np.asarray(propagate(Clip(images), {0: truth[0]}, by))
        for name, masks in given.items():
            looked_at = range(1, len(masks), EVERY)
            print(f"{made.name + ', ' + name:28}{quality(made, masks[looked_at], truth[looked_at]):8.4f}", end="")
            for trust in args.trust:
                refiner = Refiner(model, "mask+box", 18.0, trust)
                refined = [refiner(images[t], Result(masks[t])).labels for t in looked_at]
                print(f"{quality(made, refined, truth[looked_at]):10.4f}", end="", flush=True)
            print()


def quality(made: Scene, masks: Iterable[np.ndarray], truth: np.ndarray) -> float:
    """The mean IoU of the objects that are there."""
    found = []
    for labels, of_frame in zip(masks, truth, strict=True):
        shown = [obj for obj in np.unique(of_frame) if obj and obj not in made.aux]
        found += [jaccard(labels == obj, of_frame == obj) for obj in shown]
    return float(np.mean(found))


if __name__ == "__main__":
    main()
