"""A notebook over a grid: every combination once, in folders of their own, and one table."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from vosnb import cli
from vosnb.errors import InputError
from vosnb.sweep import Sweep

CODE = """import json, pathlib
pathlib.Path(out).mkdir(parents=True, exist_ok=True)
report = {"mean J": num_pathway * iou_thre, "name": clip, "summary": {"J&F-Mean": 2.0 * num_pathway}}
pathlib.Path(out, "report.json").write_text(json.dumps(report))
assert num_pathway < 9, "too many"
num_pathway"""


@pytest.fixture
def notebook(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    new = nbformat.v4
    declared = 'clip: str = "a"\nnum_pathway: int = 3\niou_thre: float = 0.1\nout: str = "runs/x"'
    cells = [new.new_code_cell(declared, metadata={"tags": ["parameters"]}), new.new_code_cell(CODE)]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "tiny.ipynb")
    return tmp_path / "tiny.ipynb"


@pytest.fixture
def vosnb(monkeypatch, capfd):
    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["vosnb", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return SimpleNamespace(code=ended.value.code or 0, **dict(zip(("out", "err"), capfd.readouterr(), strict=True)))

    return run


def test_every_combination_is_run_and_told_in_one_table_and_a_failing_one_does_not_stop_the_rest(notebook, vosnb, tmp_path):
    done = vosnb("sweep", notebook, "-g", "num_pathway=2,9", "-p", "iou_thre=0.5", "-p", "clip=b", "-o", "out")
    assert done.code == 1 and "too many" in done.err
    made = tmp_path / "out" / "num_pathway=2"
    assert {p.name for p in made.iterdir()} == {"tiny.ipynb", "tiny.html", "report.json"}
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and float(rows[0].pop("seconds")) > 0
    assert rows == [{"num_pathway": "2", "mean J": "1.0", "J&F-Mean": "4.0"}]
    assert not (tmp_path / "out" / "num_pathway=9").exists()


def test_combinations_are_all_there_and_named_like_folders(notebook):
    sweep = Sweep(notebook, {"num_pathway": ("1", "3"), "clip": ("data/a", "data/b")}, {})
    assert sweep.combinations["num_pathway=3,clip=data_b"] == {"num_pathway": "3", "clip": "data/b"}
    assert len(sweep.items()) == 4 and len(sweep.plan()["sha256"]) == 64


@pytest.mark.parametrize(
    "grid, fixed, says",
    [
        ({"pathways": ("1",)}, {}, "a parameter that the notebook declares"),
        ({"num_pathway": ("1",)}, {"clop": "b"}, "a parameter that the notebook declares"),
        ({"num_pathway": ("1",)}, {"num_pathway": "2"}, "varied or fixed"),
        ({"out": ("a",)}, {}, "each run's folder"),
        ({"num_pathway": ("1", "1")}, {}, "combinations that differ"),
        ({}, {}, "at least one parameter"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(grid, fixed, says, notebook):
    with pytest.raises(InputError, match=says):
        Sweep(notebook, grid, fixed)
