"""Does memory grow with the clip? The same pass, `Clip → propagate → PNGs`, over a short and a long video file.

    .venv/bin/python benchmarks/memory.py [--frames 5000] [--by xmem]      # xmem: the small one that ships
    .venv/bin/python benchmarks/memory.py --videos 200 [--by sam2]         # does it grow from video to video?

Each runs in a process of its own; the peak of its resident memory is what is compared. Exits with 1 if they differ by more
than 50 MB. With `--videos`: so many short videos one after the other in one process, as a worker of `vosnb vos` makes them; what is
compared is what is resident after a tenth of them and after all.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHORT, LIMIT = 200, 50  # frames; MB by which the long clip may need more
HEIGHT, WIDTH = 96, 160
FEW = 5  # frames of the videos of which there are many


def images(frames: int) -> Iterator[np.ndarray]:
    """A textured square going round on a textured ground, (H, W, 3) uint8 RGB."""
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 120, (HEIGHT, WIDTH, 3), np.uint8)
    square = rng.integers(150, 250, (32, 32, 3), np.uint8)
    for t in range(frames):
        x, y = round(64 + 40 * np.cos(t / 30)), round(32 + 20 * np.sin(t / 30))
        image = ground.copy()
        image[y : y + 32, x : x + 32] = square
        yield image


def write(video: str, frames: str) -> None:
    from vosnb.video import write_video

    write_video(video, images(int(frames)), fps=25)


def settings(by: str) -> dict[str, Any]:
    return {"model": "vosnb-mini-xmem", "size": -1} if by == "xmem" else {}


def measure(video: str, out: str, by: str) -> None:
    """One pass; prints the number of masks and the peak of this process's resident memory in MB."""
    from vosnb import Box, Clip, propagate

    propagate(Clip(video), {0: {1: Box(104, 32, 136, 64)}}, by, out=out, show_progress=False, **settings(by))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    print(len(list(Path(out).glob("*.png"))), peak)


def alone(task: str, *arguments: str) -> str:
    """What `task` prints in a process of its own. (On Linux a child's peak begins at its parent's: this one stays small.)"""
    return subprocess.run([sys.executable, __file__, task, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def peak(folder: Path, frames: int, by: str) -> float:
    """MB that a pass over so many frames needs at most."""
    video = str(folder / f"{frames}.mp4")
    alone("write", video, str(frames))
    written, mb = alone("measure", video, str(folder / f"masks_{frames}"), by).split()
    if int(written) != frames:
        sys.exit(f"{written} of {frames} frames came out")
    print(f"{frames:6} frames of {WIDTH}×{HEIGHT}: {float(mb):6.1f} MB at most", flush=True)
    return float(mb)


def videos(folder: str, count: str, by: str) -> None:
    """Prints what is resident, in MB, after a tenth of `count` videos of `FEW` frames and after all."""
    import psutil
    from PIL import Image

    from vosnb.datasets import folders
    from vosnb.masks import write_labels
    from vosnb.strategies import get
    from vosnb.vos import Vos

    root, process, used = Path(folder), psutil.Process(), []
    for t, image in enumerate(images(FEW)):
        path = root / "JPEGImages" / "video" / f"{t:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[32:64, 104:136] = 1
    write_labels(root / "Annotations" / "video" / "00000.png", labels)
    job = Vos(folders(root / "JPEGImages", root / "Annotations"), get(by, **settings(by)))
    for n in range(int(count)):
        job.make("video", root / "masks" / str(n))
        used.append(process.memory_info().rss / 1e6)
    print(used[len(used) // 10], used[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000, help="length of the long clip (5000)")
    parser.add_argument("--videos", type=int, help="instead: how many short videos in one process, at least ten")
    parser.add_argument("--by", default="flow", choices=("flow", "sam", "sam2", "sam2long", "xmem"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.videos:
            before, after = map(float, alone("videos", folder, str(args.videos), args.by).split())
            print(
                f"{args.by}: {before:.1f} MB after {args.videos // 10} videos of {FEW} frames, {after:.1f} after {args.videos}"
            )
            print(f"difference: {after - before:+.1f} MB (allowed: {LIMIT})")
            sys.exit(after - before > LIMIT)
        short, long = (peak(Path(folder), n, args.by) for n in (SHORT, args.frames))
    print(f"difference: {long - short:+.1f} MB (allowed: {LIMIT})")
    sys.exit(long - short > LIMIT)


if __name__ == "__main__":
    tasks = {"write": write, "measure": measure, "videos": videos}
    if sys.argv[1:2] and sys.argv[1] in tasks:
        tasks[sys.argv[1]](*sys.argv[2:])
    else:
        main()
