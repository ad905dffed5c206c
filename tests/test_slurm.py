"""The batch engine on a real SLURM of two nodes: workers are killed and preempted, the command is repeated, the files are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import slurm_cluster
from batch_job import Write
from slurm_cluster import said, until

from vosnb.batch import run
from vosnb.errors import InputError

ITEMS = {f"v{n:02d}": float(n % 5 + 1) for n in range(20)}
HERE = Path(__file__).resolve().parent
SETTINGS = {"partition": "low", "time": 30, "cpus_per_task": 1, "gpus_per_node": 1, "workers": 3, "signal_delay_s": 10}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    if not os.environ.get("VOSNB_SLOW"):
        pytest.skip("a cluster for minutes: VOSNB_SLOW=1 starts it")
    if why := slurm_cluster.missing():
        pytest.skip(f"SLURM cannot run here: {why}")
    with slurm_cluster.cluster() as folder:
        yield folder


def begin(out: Path, seconds: float, log: Path) -> subprocess.Popen:
    program = (
        "import sys; from vosnb.batch import run; from batch_job import Write; "
        f"sys.exit(run(Write({ITEMS!r}, {seconds}), {str(out)!r}, slurm={SETTINGS!r}).code)"
    )
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    with log.open("a") as told:
        return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, stderr=told)


def processes(state: Path, what: str) -> list[psutil.Process]:
    """Those whose command line holds both."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if what in line and str(state) in line and "srun" not in line and "slurmstepd" not in line:
            found.append(process)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_preempted_and_repeated_the_files_are_those_of_an_undisturbed_run(slurm, tmp_path):
    assert run(Write(ITEMS), tmp_path / "calm").code == 0
    out, state = tmp_path / "out", tmp_path / "out.run"

    def done() -> int:
        return len(list((state / "done").glob("*.json")))

    def failed() -> list[Path]:
        return list((state / "failed").glob("*.json"))

    batch = begin(out, 2.0, tmp_path / "log")
    until(lambda: done() >= 1, 120)

    for _ in range(20):  # what holds the model: its item is recorded, another process takes its place
        for model in processes(state, "from vosnb.batch import work")[-1:]:
            model.send_signal(signal.SIGKILL)  # it may have no item in hand just now
        time.sleep(1)
        if failed():
            break

    workers = processes(state, "submitit.core._submit")
    workers[0].send_signal(signal.SIGKILL)  # a whole worker: the teardown requeues it
    for child in processes(state, "from vosnb.batch import work"):
        if child.ppid() == workers[0].pid:
            child.wait(20)

    high = subprocess.Popen(["srun", "-p", "high", "-w", "n1", "--cpus-per-task=2", "sleep", "4"])  # preempts what runs on n1
    assert high.wait(120) == 0

    assert batch.wait(240) == 1, (tmp_path / "log").read_text()
    assert failed() and all("SIGKILL" in marker.read_text() for marker in failed())
    assert done() == len(ITEMS) - len(failed())

    again = begin(out, 0.0, tmp_path / "log")
    assert again.wait(120) == 0, (tmp_path / "log").read_text()
    assert contents(out) == contents(tmp_path / "calm")
    assert not list((state / "tmp").iterdir())
    made = json.loads((state / "manifest.json").read_text())["done"].values()
    assert len(made) == len(ITEMS) and {facts["gpu"] for facts in made} <= {"0", "1"}, "each piece has a GPU to itself"


def test_the_command_may_end_the_jobs_go_on_and_a_repeat_waits_for_them(slurm, tmp_path):
    out, state = tmp_path / "out", tmp_path / "out.run"
    batch = begin(out, 3.0, tmp_path / "log")
    until(lambda: list((state / "done").glob("*.json")), 120)
    batch.kill()
    batch.wait()
    until(lambda: processes(state, "from vosnb.batch import work"), 60)
    at = processes(state, "from vosnb.batch import work")[-1].environ()
    piece = f"{at['SLURM_ARRAY_JOB_ID']}_{at['SLURM_ARRAY_TASK_ID']}"
    said("scancel", "--signal=USR2", piece)  # as before a time limit: the piece hands back what it has and is requeued
    until(lambda: any("Caught signal SIGUSR2" in log.read_text() for log in state.glob(f"slurm/{piece}_0_log.*")), 60)
    with pytest.raises(InputError, match="SLURM jobs"):
        run(Write(ITEMS), out)
    jobs = json.loads((state / "slurm" / "jobs.json").read_text())
    again = begin(out, 3.0, tmp_path / "log")
    assert again.wait(240) == 0, (tmp_path / "log").read_text()
    assert json.loads((state / "slurm" / "jobs.json").read_text()) == jobs, "nothing was submitted twice"
    assert sorted(p.name for p in out.iterdir()) == sorted(ITEMS) and not list((state / "tmp").iterdir())


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # submitit leaves its sbatch process to the collector
def test_settings_that_slurm_does_not_know_are_refused(slurm, tmp_path):
    with pytest.raises(InputError, match="workers"):
        run(Write(ITEMS), tmp_path / "a", slurm={"colour": "red"})
    with pytest.raises(InputError, match="SLURM to take the jobs"):
        run(Write(ITEMS), tmp_path / "b", slurm={"partition": "nowhere"})
    assert not (tmp_path / "b.run" / "slurm" / "jobs.json").exists()
