"""The batch engine on a real SLURM of two nodes: workers are killed and preempted, the command is repeated, the files are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import slurm_cluster
from batch_job import Write
from slurm_cluster import until

from vosnb.batch import run
from vosnb.errors import InputError
from vosnb.synth import scene, write_scenes

ITEMS = {f"v{n:02d}": float(n % 5 + 1) for n in range(20)}
HERE = Path(__file__).resolve().parent
SETTINGS = {"partition": "low", "time": 30, "cpus_per_task": 1, "gpus_per_node": 1, "workers": 3, "signal_delay_s": 10}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    if why := slurm_cluster.missing():
        pytest.skip(f"SLURM cannot run here: {why}")
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(slurm_cluster.cluster())
        except PermissionError as error:  # a container may not make devices
            pytest.skip(f"SLURM cannot run here: {error}")
        yield folder


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the command. While its `gate` is there every worker stays in the middle of an item: what is done to it meets one."""
    begun: list[subprocess.Popen] = []

    def start(out: Path, log: Path, gate: str = "") -> subprocess.Popen:
        program = (
            "import sys; from vosnb.batch import run; from batch_job import Write; "
            f"sys.exit(run(Write({ITEMS!r}, gate={gate!r}), {str(out)!r}, slurm={SETTINGS!r}).code)"
        )
        path = os.pathsep.join([str(HERE), str(HERE.parent)])
        with log.open("a") as told:
            begun.append(subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, stderr=told))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


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


MODEL, WORKER = "from vosnb.batch import work", "submitit.core._submit"


def all_are_at_work(state: Path) -> bool:
    """Each worker's process has written two files of an item. (Those of a killed one lie there, too, until its item is made.)"""
    models = [process.pid for process in processes(state, MODEL)]
    return len(models) == SETTINGS["workers"] and all([*state.glob(f"tmp/*/.*-{pid}-*.part/00001.txt")] for pid in models)


def told(state: Path, words: str) -> list[Path]:
    """The logs of pieces in which these words are."""
    return [log for log in state.glob("slurm/*_log.*") if words in log.read_text()]


def test_killed_preempted_and_repeated_the_files_are_those_of_an_undisturbed_run(slurm, begin, tmp_path):
    assert run(Write(ITEMS), tmp_path / "calm").code == 0
    out, state, gate, log = tmp_path / "out", tmp_path / "out.run", tmp_path / "gate", tmp_path / "log"
    gate.touch()
    batch = begin(out, log, str(gate))
    until(lambda: all_are_at_work(state), 120)

    processes(state, MODEL)[0].kill()  # what holds the model: its item is recorded, another process takes its place
    until(lambda: list(state.glob("failed/v*.json")) and all_are_at_work(state), 60)
    (failed,) = state.glob("failed/v*.json")
    assert "SIGKILL" in failed.read_text()

    worker = processes(state, WORKER)[0]  # a whole worker: the teardown requeues it
    (model,) = (process for process in processes(state, MODEL) if process.ppid() == worker.pid)
    worker.kill()
    model.wait(20)  # nothing works on without its supervisor
    until(lambda: all_are_at_work(state), 60)

    high = subprocess.Popen(["srun", "-p", "high", "-w", "n1", "--cpus-per-task=2", "true"])  # preempts what runs on n1
    assert high.wait(120) == 0 and told(state, "DUE TO PREEMPTION")
    gate.unlink()

    assert batch.wait(120) == 1, log.read_text()
    assert [*(state / "failed").iterdir()] == [failed] and len(list((state / "done").iterdir())) == len(ITEMS) - 1
    again = begin(out, log)
    assert again.wait(120) == 0, log.read_text()
    assert contents(out) == contents(tmp_path / "calm")
    assert not list((state / "tmp").iterdir())
    made = json.loads((state / "manifest.json").read_text())["done"].values()
    assert len(made) == len(ITEMS) and {facts["gpu"] for facts in made} <= {"0", "1"}, "each piece has a GPU to itself"


def test_the_command_may_end_the_jobs_go_on_and_a_repeat_waits_for_them(slurm, begin, tmp_path):
    out, state, gate, log = tmp_path / "out", tmp_path / "out.run", tmp_path / "gate", tmp_path / "log"
    gate.touch()
    batch = begin(out, log, str(gate))
    until(lambda: all_are_at_work(state), 120)
    batch.kill()
    batch.wait()
    at = processes(state, MODEL)[-1].environ()
    piece = f"{at['SLURM_ARRAY_JOB_ID']}_{at['SLURM_ARRAY_TASK_ID']}"
    # As before a time limit: the piece gives back what it has and is requeued. (scancel itself waits until that is over.)
    signalling = subprocess.Popen(["scancel", "--signal=USR2", piece])
    until(lambda: told(state, "Requeued job"), 60)
    with pytest.raises(InputError, match="SLURM jobs"):
        run(Write(ITEMS), out)
    jobs = json.loads((state / "slurm" / "jobs.json").read_text())
    gate.unlink()
    again = begin(out, log)
    assert again.wait(120) == 0, log.read_text()
    signalling.kill()
    signalling.wait()
    assert json.loads((state / "slurm" / "jobs.json").read_text()) == jobs, "nothing was submitted twice"
    assert sorted(p.name for p in out.iterdir()) == sorted(ITEMS) and not list((state / "tmp").iterdir())


def test_vosnb_vos_sends_a_data_set_there(slurm, tmp_path):
    data = write_scenes(tmp_path / "data", [scene(7, kind, 6) for kind in ("deform", "camera", "late")])
    asked = ["--data", data, "--by", "flow", "--report", tmp_path / "report", "--protocol", "youtube-vos"]
    on_slurm = ["--slurm", "partition=low,time=5,cpus_per_task=1", "--slurm", "workers=2"]
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    for out, more in (("there", on_slurm), ("here", [])):
        command = [sys.executable, "-m", "vosnb.cli", "vos", *asked, "-o", tmp_path / out, *more]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0 and "3 done, 0 failed, 0 left" in done.stdout and "J&F-Mean" in done.stdout, done.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert (tmp_path / "there.run" / "slurm" / "jobs.json").is_file()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # submitit leaves its sbatch process to the collector
def test_settings_that_slurm_does_not_know_are_refused(slurm, tmp_path):
    with pytest.raises(InputError, match="workers"):
        run(Write(ITEMS), tmp_path / "a", slurm={"colour": "red"})
    for wrong in ({"time": "1-00:00:00"}, {"workers": "many"}):
        with pytest.raises(InputError, match="as a whole number"):
            run(Write(ITEMS), tmp_path / "c", slurm=wrong)
    with pytest.raises(InputError, match="SLURM to take the jobs"):
        run(Write(ITEMS), tmp_path / "b", slurm={"partition": "nowhere"})
    assert not (tmp_path / "b.run" / "slurm" / "jobs.json").exists()
