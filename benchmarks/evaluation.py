"""How much quicker than the reference evaluators? The same masks, equal values, one process each, CPU seconds with their start.

    PYTHONPATH=path/to/davis2017-evaluation .venv/bin/python benchmarks/evaluation.py [TRUTH MASKS] [--repeat 2]

TRUTH and MASKS hold a folder of PNGs per sequence; without them 480p shapes are made. Each reference takes part if it can be
imported (`davis2017`, `vos_benchmark`; neither is needed otherwise). Then several processes, on so many frames that their start
hardly counts: by the clock, and in CPU seconds of all, which other work on the machine disturbs less. Exits with 1 if values
differ, a ratio is below its goal, or memory above its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

GOALS = {"davis2017": 15, "vos_benchmark": 6}
MEMORY = 300  # MB at most
TIMES = 12  # how often every sequence counts where processes are compared


def make(folder: Path, sequences: int = 6, frames: int = 50) -> tuple[Path, Path]:
    """Two or three wobbling discs at 854 × 480, and the same a little off."""
    from vosnb.masks import write_labels

    yy, xx = np.mgrid[:480, :854]
    for s in range(sequences):
        for t in range(frames):
            for kind, off in (("truth", 0), ("masks", 3 + s)):
                labels = np.zeros((480, 854), np.uint8)
                for obj in range(1, 3 + s % 2):
                    y, x, r = 110 * obj + off, 150 + 170 * obj + 2 * t + off, 60 + 10 * s - off
                    angle = np.arctan2(yy - y, xx - x)
                    labels[np.hypot(yy - y, xx - x) < r * (1 + 0.2 * np.sin(5 * angle + t / 5))] = obj
                write_labels(folder / kind / f"s{s}" / f"{t:05d}.png", labels)
    return folder / "truth", folder / "masks"


def ours(truth: Path, masks: Path, protocol: str) -> dict[str, float]:
    from vosnb import evaluate

    report = evaluate(masks, truth, protocol=protocol)
    return {"J": report.summary["J-Mean"], "F": report.summary["F-Mean"]}


def davis2017(truth: Path, masks: Path) -> dict[str, float]:
    from davis2017.evaluation import DAVISEvaluation

    with tempfile.TemporaryDirectory() as folder:
        root, names = Path(folder), sorted(p.name for p in truth.iterdir())
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/val.txt").write_text("\n".join(names))
        (root / "Annotations").mkdir()
        (root / "Annotations/480p").symlink_to(truth)
        for name in names:  # it counts the pictures but does not open them
            (root / "JPEGImages/480p" / name).mkdir(parents=True)
            for png in (truth / name).glob("*.png"):
                (root / "JPEGImages/480p" / name / f"{png.stem}.jpg").touch()
        found = DAVISEvaluation(str(root), "semi-supervised", "val").evaluate(str(masks))
    return {kind: float(np.mean(found[kind]["M"])) for kind in "JF"}


def vos_benchmark(truth: Path, masks: Path) -> dict[str, float]:
    from vos_benchmark.benchmark import VideoEvaluator

    one = VideoEvaluator(str(truth), str(masks))
    found = [one(p.name)[1:] for p in sorted(truth.iterdir())]
    means = ([v for video in found for v in video[k].values()] for k in (0, 1))
    return {kind: float(np.mean(values)) / 100 for kind, values in zip("JF", means, strict=True)}


def alone(task: str, truth: Path, masks: Path) -> tuple[dict[str, float], float, float]:
    """What it finds, its CPU seconds and its peak memory in MB, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, __file__, "--task", task, truth, masks], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["values"], sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime")), found["peak"]


def run(task: str, truth: Path, masks: Path) -> None:
    import cv2

    cv2.setNumThreads(1)
    name, _, protocol = task.partition(":")
    values = ours(truth, masks, protocol) if name == "ours" else globals()[name](truth, masks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    print(json.dumps({"values": values, "peak": peak}))


def share_out(truth: Path, masks: Path) -> None:
    """Seconds with one process, two, four, … up to the number of cores."""
    from vosnb import evaluate

    with tempfile.TemporaryDirectory() as folder:
        for kind, source in (("truth", truth), ("masks", masks)):
            (Path(folder) / kind).mkdir()
            for sequence in sorted(p for p in source.iterdir() if p.is_dir()):
                for n in range(TIMES):
                    (Path(folder) / kind / f"{sequence.name}-{n}").symlink_to(sequence)
        first, jobs = 0.0, 1
        while jobs <= (os.cpu_count() or 1):
            begun, used = time.monotonic(), sum(os.times()[:4])
            report = evaluate(Path(folder) / "masks", Path(folder) / "truth", protocol="davis2017", jobs=jobs)
            seconds, cpu = time.monotonic() - begun, sum(os.times()[:4]) - used
            first = first or seconds
            said = f"{seconds:.2f} s, {first / seconds:.2f} times as quick, {cpu:.2f} CPU seconds"
            print(f"{report.about['frames']} frames, {jobs} processes: {said}", flush=True)
            jobs *= 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", metavar="TRUTH MASKS")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        run(asked.task, *asked.folders)
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        truth, masks = (p.resolve() for p in asked.folders) if asked.folders else make(Path(folder))
        for name, protocol in (("davis2017", "davis2017"), ("vos_benchmark", "sa-v")):
            mine, seconds, peak = min(
                (alone(f"ours:{protocol}", truth, masks) for _ in range(asked.repeat)), key=lambda r: r[1]
            )
            print(f"vosnb, {protocol}: {seconds:.2f} s, {peak:.0f} MB, J {mine['J']:.6f} F {mine['F']:.6f}", flush=True)
            failed |= peak > MEMORY
            if find_spec(name) is None:
                print(f"  {name} is not installed")
                continue
            theirs, their_seconds, their_peak = min(
                (alone(name, truth, masks) for _ in range(asked.repeat)), key=lambda r: r[1]
            )
            ratio, equal = their_seconds / seconds, all(abs(mine[k] - theirs[k]) < 1e-6 for k in mine)
            said = f"{'equal' if equal else theirs}: {ratio:.1f} times (goal {GOALS[name]})"
            print(f"  {name}: {their_seconds:.2f} s, {their_peak:.0f} MB, {said}")
            failed |= not equal or ratio < GOALS[name]
        share_out(truth, masks)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
