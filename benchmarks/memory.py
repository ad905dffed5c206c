"""Does memory grow with the clip? The same pass, `Clip → propagate → PNGs`, over a short and a long video file.

    .venv/bin/python benchmarks/memory.py [--frames 5000] [--by xmem]      # xmem: its small architecture, random weights

Each runs in a process of its own; the peak of its resident memory is what is compared. Exits with 1 if they differ by more
than 50 MB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHORT, LIMIT = 200, 50  # frames; MB by which the long clip may need more
HEIGHT, WIDTH = 96, 160


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


def measure(video: str, out: str, by: str) -> None:
    """One pass; prints the number of masks and the peak of this process's resident memory in MB."""
    from vosnb import Box, Clip, propagate

    settings = {} if by == "flow" else {"model": "mini-random", "size": None}
    propagate(Clip(video), {0: {1: Box(104, 32, 136, 64)}}, by, out=out, show_progress=False, **settings)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000, help="length of the long clip (5000)")
    parser.add_argument("--by", default="flow", choices=("flow", "xmem"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        short, long = (peak(Path(folder), n, args.by) for n in (SHORT, args.frames))
    print(f"difference: {long - short:+.1f} MB (allowed: {LIMIT})")
    sys.exit(long - short > LIMIT)


if __name__ == "__main__":
    tasks = {"write": write, "measure": measure}
    if sys.argv[1:2] and sys.argv[1] in tasks:
        tasks[sys.argv[1]](*sys.argv[2:])
    else:
        main()
