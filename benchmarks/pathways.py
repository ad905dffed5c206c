"""Seconds per frame and peak memory of pathways, beside the `sam2` package's own video predictor on the same frames, in one run.

    python benchmarks/pathways.py                                   # the small architecture: minutes on a laptop
    python benchmarks/pathways.py --config sam2.1_hiera_t --image_size 1024 512 --frames 12 --warm 8   # full size
    python benchmarks/pathways.py --frames 100 1000 --objects 1 3 8 --pathways 1 3 5                    # the whole grid

Weights are random (seeded), with every object held visible, so that memories are full: speed does not depend on what they say.
Every row is a process of its own, so that peak memory is its own too; ratios are to the predictor with the same number of objects.
On a CPU the ratio is of processor time, which other work on the machine disturbs less than the clock; `--threads 1` makes it steady.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = ("encode", "attend", "decode", "remember")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", default="mini", help="mini, sam2.1_hiera_t, … or a .yaml")
    p.add_argument("--image_size", type=int, nargs="+", default=[0], help="0: the configuration's own")
    p.add_argument("--frames", type=int, nargs="+", default=[60])
    p.add_argument("--objects", type=int, nargs="+", default=[1, 4])
    p.add_argument("--pathways", type=int, nargs="+", default=[1, 3])
    p.add_argument("--warm", type=int, default=20, help="frames before the clock starts: memories fill up")
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    p.add_argument("--no-predictor", action="store_true", help="leave the predictor out (it holds all frames)")
    p.add_argument("--one", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(**json.loads(args.one))))
        return
    print(f"{'':34}{'s/frame':>9}{'cpu s':>8}{'ratio':>7}{'peak MB':>9}   " + "".join(f"{s:>10}" for s in STAGES))
    figure = "seconds" if args.device.startswith("cuda") else "cpu"
    ours: dict[tuple, float] = {}
    for size in args.image_size:
        for frames in args.frames:
            with tempfile.TemporaryDirectory() as folder:
                write_frames(Path(folder), frames)
                for objects in args.objects:
                    rows = [] if args.no_predictor else [("sam2 package", {"by": "predictor"})]
                    rows += [("sam2", {"by": "sam2"})]
                    for n in args.pathways:
                        rows += [(f"sam2long {n} certain", {"by": "sam2long", "num_pathway": n, "uncertainty": -1.0})]
                        rows += (
                            [(f"sam2long {n} uncertain", {"by": "sam2long", "num_pathway": n, "uncertainty": 1e9})]
                            if n > 1
                            else []
                        )
                    print(f"{args.config} {size or ''}, {objects} object{'s' * (objects > 1)}, {frames} frames, {args.device}")
                    base = None
                    for name, row in rows:
                        warm = min(args.warm, frames // 2)
                        asked = {"folder": folder, "config": args.config, "size": size, "objects": objects, "warm": warm}
                        asked |= {"device": args.device, "threads": args.threads, **row}
                        found = alone(asked)
                        base = base or found[figure]
                        ours[size, frames, objects, name] = found[figure]
                        shares = "".join(f"{found['stages'][s]:>9.0%} " for s in STAGES)
                        numbers = (
                            f"{found['seconds']:>9.3f}{found['cpu']:>8.3f}{found[figure] / base:>7.2f}{found['peak']:>9.0f}"
                        )
                        print(f"  {name:32}{numbers}   {shares}", flush=True)
    for (size, frames, objects, name), value in ours.items():
        few, large = ours[size, frames, args.objects[0], name], ours[args.image_size[0], frames, objects, name]
        if objects != args.objects[0]:
            print(f"{name}, {frames} frames: {objects} objects over {args.objects[0]}: {value / few:.2f}")
        if size != args.image_size[0]:
            print(f"{name}, {objects} objects, {frames} frames: size {size} over {args.image_size[0]}: {value / large:.2f}")


def alone(asked: dict) -> dict:
    done = subprocess.run([sys.executable, __file__, "--one", json.dumps(asked)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_frames(folder: Path, count: int) -> None:
    """JPEGs of noise that drifts, 480 × 270: the predictor reads nothing else."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (270, 480 + 2 * count, 3), dtype=np.uint8)
    for t in range(count):
        Image.fromarray(noise[:, 2 * t : 2 * t + 480]).save(folder / f"{t:05d}.jpg", quality=90)


def measure(
    folder: str, config: str, size: int, objects: int, warm: int, device: str, threads: int, by: str, **settings
) -> dict:
    import numpy as np
    import torch

    from vosnb import Clip
    from vosnb.models.sam2 import Sam2
    from vosnb.strategies import get

    if threads:
        torch.set_num_threads(threads)
    clip, network = Clip(folder), build(config, size or None, by == "predictor", device)
    masks = {obj: np.zeros((270, 480), bool) for obj in range(1, objects + 1)}
    for obj, mask in masks.items():
        mask[20 + 15 * obj : 80 + 15 * obj, 40 * obj : 40 * obj + 80] = True
    times, cpu, spent = [], [], dict.fromkeys(STAGES, 0.0)
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    if by == "predictor":
        from contextlib import redirect_stderr
        from io import StringIO

        with (
            redirect_stderr(StringIO()),
            torch.inference_mode(),
            torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")),
        ):
            state = network.init_state(folder)
            for obj, mask in masks.items():
                network.add_new_mask(state, 0, obj, mask)
            for _ in network.propagate_in_video(state):
                sync()
                times.append(time.perf_counter())
                cpu.append(time.process_time())
    else:
        model = Sam2(network)
        strategy = get(by, model=model, **settings, **({"iou_thre": -1.0} if by == "sam2long" else {}))

        def timed(name: str):
            method = getattr(model, name)

            def run(*args, **kwargs):
                start = time.perf_counter()
                found = method(*args, **kwargs)
                sync()
                spent[name] += (time.perf_counter() - start) * (len(times) > warm)
                return found

            return run

        for name in STAGES:
            setattr(model, name, timed(name))
        tracker = strategy.tracker((clip.height, clip.width), len(clip))
        for t, image in enumerate(clip):
            from vosnb import Prompt

            tracker.step(image, {obj: Prompt(mask=m) for obj, m in masks.items()} if t == 0 else {})
            times.append(time.perf_counter())
            cpu.append(time.process_time())
    peak = (
        torch.cuda.max_memory_allocated() / 1e6
        if device.startswith("cuda")
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    )
    each = np.diff(times[warm:])  # the median, as the machine may be shared
    return {
        "seconds": float(np.median(each)),
        "cpu": float(np.median(np.diff(cpu[warm:]))),
        "peak": peak,
        "stages": {k: v / each.sum() for k, v in spent.items()},
    }


def build(config: str, size: int | None, predictor: bool, device: str):
    """The network with seeded weights, every object visible; as a `SAM2VideoPredictor` where asked."""
    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    import vosnb.models
    from vosnb.models.sam import sam2_config

    path = Path(vosnb.models.__file__).with_name("mini.yaml") if config == "mini" else sam2_config(config)
    model = OmegaConf.load(path).model
    model.image_size = size or model.image_size
    if predictor:
        model._target_ = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    torch.manual_seed(0)
    network = instantiate(model, _recursive_=True).eval().to(device)
    with torch.no_grad():
        network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias += 10
    return network


if __name__ == "__main__":
    main()
