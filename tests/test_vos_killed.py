"""`vosnb vos` killed with SIGKILL at random moments, and repeated: the same bytes as if left alone, and nothing else.

By default five times on a few short scenes. With VOSNB_SLOW=1 ten times on the whole mini-benchmark, and through a network too (some
minutes each).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from vosnb.embedded.benchmark import make_benchmark
from vosnb.synth import scene, write_scenes

ROOT = Path(__file__).resolve().parents[1]
SLOW = pytest.mark.skipif(os.environ.get("VOSNB_SLOW") != "1", reason="minutes on the whole mini-benchmark: set VOSNB_SLOW=1")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    return make_benchmark(tmp_path_factory.mktemp("benchmark") / "data")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    kinds = ["occluder", "late", "deform", "camera"]
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", [scene(7, kind, 10) for kind in kinds])


def begin(data: Path, out: Path, by: str) -> subprocess.Popen:
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "vosnb.cli", "vos", "--data", data, "--by", by, "-o", out, "--jobs", "2"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True, **quiet)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def workers(out: Path) -> list[int]:
    """The processes that work on this result."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if f"{out}.run" in line:
            found.append(process.pid)
    return found


@pytest.mark.parametrize(
    "data, by, kills",
    [
        ("scenes", "flow", 5),
        pytest.param("benchmark", "flow", 10, marks=SLOW),
        pytest.param("benchmark", "sam2", 10, marks=SLOW),
    ],
)
def test_killed_and_repeated_the_bytes_are_those_of_a_run_left_alone(data, by, kills, request, tmp_path):
    folder = request.getfixturevalue(data)
    assert begin(folder, tmp_path / "calm", by).wait() == 0
    calm = contents(tmp_path / "calm")
    out, books, draw = tmp_path / "out", tmp_path / "out.run", random.Random(kills)

    def masks(since: float) -> int:
        found = 0
        for top in (out, books / "tmp"):
            for folder, _, names in os.walk(top):  # which does not mind what is renamed meanwhile
                for name in names:
                    with suppress(FileNotFoundError):
                        found += os.stat(os.path.join(folder, name)).st_mtime >= since
        return found

    hit = 0
    for n in range(kills):
        more = draw.randint(1, 2 * len(calm) // kills) if n % 3 else 0  # how many masks it may write; none: as it starts
        since, batch = time.time(), begin(folder, out, by)
        while masks(since) < more and batch.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.05 if more else 1))
        if n % 2:
            os.killpg(batch.pid, signal.SIGKILL)  # all of it at once, as when a machine stops
        else:
            batch.kill()  # the command alone: its workers must not outlive it
        hit += batch.wait() == -signal.SIGKILL
        left = contents(out) if out.is_dir() else {}
        whole = {name.split("/")[0] for name in left}
        assert left == {name: data for name, data in calm.items() if name.split("/")[0] in whole}, (
            "a video is whole or not there"
        )
    assert hit >= kills / 2 and begin(folder, out, by).wait() == 0
    assert contents(out) == calm
    assert not list((books / "tmp").iterdir()) and not list((books / "failed").iterdir())
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]
    assert not workers(out)
