"""Whatever ends a batch, and whenever: repeating it gives the same files, and nothing else is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_job import Write
from hypothesis import given, settings
from hypothesis import strategies as st

from vosnb.batch import _changes, _places, chunk, pieces, run, state_of
from vosnb.errors import InputError

ITEMS = {f"v{n:02d}": float(n % 7 + 1) for n in range(12)}
HERE = Path(__file__).resolve().parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(costs=ITEMS, flavour="plain") -> dict[str, bytes]:
    return {f"{name}/{n:05d}.txt": f"{flavour} {name} {n}\n".encode() * 500 for name in costs for n in range(5)}


def begin(out: Path, seconds: float = 0.2, jobs: int = 2) -> subprocess.Popen:
    """The batch as a program of its own."""
    program = (
        "import sys; from vosnb.batch import run; from batch_job import Write; "
        f"sys.exit(run(Write({ITEMS!r}, {seconds}), {str(out)!r}, jobs={jobs}).code)"
    )
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)


def until(holds, seconds=20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- the plan ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
def test_nodes_and_chunks_cover_every_item_exactly_once_in_nearly_equal_parts(count, num_nodes, num_chunks):
    names = [f"{n:03d}" for n in range(count)]
    parts = [chunk(names, c + num_chunks * n, num_chunks * num_nodes) for n in range(num_nodes) for c in range(num_chunks)]
    assert [name for part in parts for name in part] == names
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.dictionaries(st.text("abc", min_size=1), st.floats(0.1, 100), min_size=1), st.integers(1, 12))
@settings(deadline=None)
def test_pieces_hold_every_item_once_the_longest_first_and_are_near_the_bound(costs, count):
    heaps = pieces(costs, count)
    assert sorted(name for heap in heaps for name in heap) == sorted(costs)
    sums = [sum(costs[name] for name in heap) for heap in heaps]
    assert sums == sorted(sums, reverse=True) and all(heaps)
    bound = max(sum(costs.values()) / count, max(costs.values()))
    assert sums[0] <= 4 / 3 * bound * (1 + 1e-9) + max(0, sorted(costs.values())[-count - 1] if len(costs) > count else 0)


# -- a run ---------------------------------------------------------------------------------------------------------------


def test_a_run_makes_every_item_and_keeps_its_books(tmp_path, capfd):
    done = run(Write(ITEMS), tmp_path / "out", jobs=2)
    assert done.code == 0 and list(done.done) == sorted(ITEMS) and not done.failed and not done.left
    assert contents(tmp_path / "out") == expected()
    assert "note: v00: v00 was here" in capfd.readouterr().err
    manifest = json.loads((tmp_path / "out.run" / "manifest.json").read_text())
    assert manifest["plan"] == {"job": "write", "flavour": "plain", "items": sorted(ITEMS)}
    assert manifest["versions"]["numpy"] and manifest["done"]["v03"]["seconds"] > 0
    assert len({facts["pid"] for facts in manifest["done"].values()}) == 2
    assert not list((tmp_path / "out.run" / "tmp").iterdir())


def test_a_repeat_does_only_what_is_missing(tmp_path):
    run(Write(ITEMS), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")}
    (tmp_path / "out.run" / "done" / "v05.json").unlink()  # as if killed before the marker: the folder is whole
    done = run(Write(ITEMS), tmp_path / "out")
    assert done.code == 0 and done.done["v05"]["seconds"] is None
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")} == before
    shutil.rmtree(tmp_path / "out" / "v07")
    assert run(Write(ITEMS), tmp_path / "out").code == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.txt")}
    assert {path.parent.name for path in after if after[path] != before[path]} == {"v07"}


def test_the_longest_come_first(tmp_path):
    run(Write({"a": 1, "b": 3, "c": 2}, 0.01), tmp_path / "out")
    at = {name: (tmp_path / "out.run" / "done" / f"{name}.json").stat().st_mtime_ns for name in "abc"}
    assert at["b"] < at["c"] < at["a"]


def test_failures_and_deaths_are_recorded_and_do_not_stop_the_others(tmp_path, capfd):
    faults = {"v01": "raise", "v02": "kill", "v04": "exit"}
    job = Write(ITEMS, faults=faults, mend=str(tmp_path / "mended"))
    done = run(job, tmp_path / "out", jobs=2)
    assert done.code == 1 and set(done.failed) == set(faults) and not done.left
    assert done.failed == {
        "v01": "ValueError: v01 is no good", "v02": "its process died of signal 9 (SIGKILL)", "v04": "its process died of exit code 7",
    }  # fmt: skip
    assert (
        'raise ValueError(f"{name} is no good")'
        in json.loads((tmp_path / "out.run" / "failed" / "v01.json").read_text())["traceback"]
    )
    assert contents(tmp_path / "out") == expected(set(ITEMS) - set(faults))
    assert "failed: v02" in capfd.readouterr().err
    (tmp_path / "mended").touch()
    assert run(job, tmp_path / "out").code == 0 and contents(tmp_path / "out") == expected()
    assert not list((tmp_path / "out.run" / "failed").iterdir())


def test_after_an_error_that_is_not_the_inputs_another_process_takes_over(tmp_path):
    done = run(Write({name: 1 for name in "abcde"}, faults={"b": "input", "d": "raise"}), tmp_path / "out")
    assert set(done.failed) == {"b", "d"}
    pids = {name: facts["pid"] for name, facts in done.done.items()}
    assert pids["a"] == pids["c"] != pids["e"]


def test_parts_side_by_side_make_the_whole(tmp_path):
    for i in (2, 0, 1):
        assert len(run(Write(ITEMS), tmp_path / "out", part=(i, 3)).done) == 4
    assert contents(tmp_path / "out") == expected()
    assert len(json.loads((tmp_path / "out.run" / "manifest.json").read_text())["done"]) == 12


def test_every_process_has_its_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, 3")
    done = run(Write({name: 1 for name in "abcdef"}, 0.2), tmp_path / "out", jobs=None).done
    assert {(facts["gpu"]) for facts in done.values()} == {"GPU-aa", "3"} and len({f["pid"] for f in done.values()}) == 2


def test_processes_are_one_per_gpu_that_nvidia_smi_finds_or_share_them(tmp_path, monkeypatch):
    found = "".join(f"GPU {i}: H100 (UUID: GPU-{i})\n  MIG 1g.10gb Device 0: (UUID: MIG-{i})\n" for i in range(8))
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<end\n{found}end\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in _places(None)] == list("01234567")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in _places(10)] == list("0123456701")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user wants none
    assert not any("CUDA_VISIBLE_DEVICES" in place for place in _places(None))


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_another_plan_into_the_same_folder_is_refused_unless_told_to_overwrite(tmp_path):
    run(Write({"a": 1, "b": 1}), tmp_path / "out")
    with pytest.raises(InputError, match='flavour: "plain" → "sour"'):
        run(Write({"a": 1, "b": 1}, flavour="sour"), tmp_path / "out")
    with pytest.raises(InputError, match="items"):
        run(Write({"a": 1}), tmp_path / "out")
    assert contents(tmp_path / "out") == expected("ab")
    assert run(Write({"a": 1}, flavour="sour"), tmp_path / "out", overwrite=True).code == 0
    assert contents(tmp_path / "out") == expected("a", "sour")


def test_what_differs_is_said_of_settings_within_settings_and_other_versions_are_noted(tmp_path, capfd):
    old = {"strategy": {"name": "x", "iou_thre": 0.1, "first": {"k": 1}}, "items": ["a"]}
    new = {"strategy": {"name": "x", "iou_thre": 0.3, "first": {"k": 2}}, "items": ["a"]}
    assert _changes(old, new) == "strategy.iou_thre: 0.1 → 0.3, strategy.first.k: 1 → 2"
    run(Write({"a": 1}), tmp_path / "out")
    assert "other versions" not in capfd.readouterr().err
    file = tmp_path / "out.run" / "run.json"
    begun = json.loads(file.read_text())
    file.write_text(json.dumps({**begun, "versions": {**begun["versions"], "numpy": "1.0"}}))
    assert run(Write({"a": 1}), tmp_path / "out").code == 0
    assert 'note: out was begun with other versions (numpy: "1.0" → ' in capfd.readouterr().err


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(overwrite, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="new, empty or that of an earlier run"):
        run(Write(ITEMS), tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path) == {"out/thesis.tex": b"mine"}


@pytest.mark.parametrize(
    "how, says",
    [
        ({"part": (0, 2), "overwrite": True}, "overwrite of one"),
        ({"jobs": 0}, "at least one process"),
        ({"part": (3, 3)}, "a part from 0 to 2"),
        ({"slurm": {}}, "no sbatch"),
    ],
    ids=["one part anew", "no process", "no such part", "no SLURM"],
)
def test_arguments_that_do_not_fit(how, says, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=says):
        run(Write(ITEMS), tmp_path / "out", **how)


def test_two_runs_into_one_folder_at_once_the_second_is_refused_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("vosnb.batch.GRACE", 0.2)
    first = begin(tmp_path / "out")
    until(lambda: (tmp_path / "out.run" / "job.pkl").is_file())
    for part in ((0, 1), (0, 2)):
        with pytest.raises(InputError, match="no other run on out"):
            run(Write(ITEMS), tmp_path / "out", part=part)
    assert first.wait(30) == 0 and contents(tmp_path / "out") == expected()


# -- interruption --------------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_and_repeated_the_files_are_the_same(tmp_path):
    """Ten kills of the supervisor in the course of one batch; the last call is left alone."""
    draw, books = random.Random(7), tmp_path / "out.run"
    for _ in range(10):
        ended = len(list(books.glob("done/*")))
        batch = begin(tmp_path / "out", 0.3)
        if draw.random() < 0.7:  # else at its start
            until(lambda before=ended: list(books.glob("tmp/*")) or len(list(books.glob("done/*"))) > before)
        time.sleep(draw.uniform(0, 0.4))
        batch.kill()
        batch.wait()
        assert all(
            sorted(p.name for p in made.iterdir()) == [f"{n:05d}.txt" for n in range(5)]
            for made in (tmp_path / "out").glob("*")
        )
    assert begin(tmp_path / "out", 0.0).wait(30) == 0
    assert contents(tmp_path / "out") == expected()
    assert not list((tmp_path / "out.run" / "tmp").iterdir())
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_signals_end_it_in_order(number, tmp_path):
    batch = begin(tmp_path / "out", 0.4)
    until(lambda: len(list((tmp_path / "out.run" / "done").glob("*.json"))) >= 2)
    batch.send_signal(number)
    assert batch.wait(10) == 128 + number
    assert not list((tmp_path / "out.run" / "tmp").iterdir()), "what was in hand is given back"
    manifest = json.loads((tmp_path / "out.run" / "manifest.json").read_text())
    assert 2 <= len(manifest["done"]) < len(ITEMS) and not manifest["failed"]
    assert run(Write(ITEMS), tmp_path / "out").code == 0 and contents(tmp_path / "out") == expected()


def test_the_books_lie_beside_the_results():
    assert state_of("masks") == Path.cwd() / "masks.run"
