"""Notebooks run from the command line. Each test starts at most one kernel: that is what takes the time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from vosnb.errors import InputError
from vosnb.run import RunFailed, parameters_of, run_notebook

PARAMETERS = """# what to run
clip: str = "data/a"  # a folder
frames: int = 5
title: str | None = None
by = "flow"
size: tuple = (
    480, 256,
)
out: str = "runs/x"
"""


def notebook(path: Path, *sources: str, parameters: str | None = PARAMETERS) -> Path:
    new = nbformat.v4
    cells = [new.new_markdown_cell("# Tiny")]
    if parameters is not None:
        cells.append(new.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new.new_notebook(cells=cells + [new.new_code_cell(source) for source in sources]), path)
    return path


def printed(path: Path) -> str:
    outputs = (output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", []))
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VOSNB_HEADLESS", raising=False)


def test_parameters_are_read_as_they_stand():
    assert parameters_of(notebook(Path("tiny.ipynb"))) == {
        "clip": ("str", "'data/a'"), "frames": ("int", "5"), "title": ("str | None", "None"), "by": ("", "'flow'"),
        "size": ("tuple", "(480, 256)"), "out": ("str", "'runs/x'"),
    }  # fmt: skip


def test_a_notebook_runs_with_its_parameters_in_this_python_from_here(tmp_path, capfd):
    show = """import json, os, sys
facts = dict(python=sys.executable, folder=os.getcwd(), headless=os.environ.get("VOSNB_HEADLESS"))
print(json.dumps(facts | dict(clip=clip, frames=frames, title=title, by=by, out=out)))"""
    picture = "import base64, IPython.display as d\nd.display(d.HTML('<b>a table</b>'))"
    widget = "from tqdm.auto import tqdm\nfor _ in tqdm(range(2)): pass"
    source = notebook(tmp_path / "books{1}" / "tiny.ipynb", show, picture, widget)
    before = source.read_bytes()
    out = Path("runs {x}")  # papermill would format the braces
    path = run_notebook(source, out, {"clip": "001", "frames": "7", "by": "0.5"}, {"title": "007"})
    assert path == out / "tiny.ipynb" and source.read_bytes() == before
    assert json.loads(printed(path)) == {
        "python": sys.executable, "folder": str(tmp_path), "headless": "1",
        "clip": "001", "frames": 7, "title": "007", "by": 0.5, "out": str(tmp_path / out),
    }  # fmt: skip
    executed = nbformat.read(path, 4)
    assert "widgets" not in executed.metadata and executed.metadata.papermill.output_path == str(path)
    page = (out / "tiny.html").read_text(encoding="utf-8")
    assert "<b>a table</b>" in page and not re.findall(r"""(?:src|href)=["']https?://[^"']*\.(?:js|css)""", page)
    assert sorted(file.name for file in out.iterdir()) == ["tiny.html", "tiny.ipynb"]
    assert "WARNING" not in capfd.readouterr().err


def test_a_failing_cell_is_named_and_the_notebook_is_kept(tmp_path):
    cells = "print('so far')", "raise ValueError('no dye')", "print('never')"
    source = notebook(tmp_path / "bad.ipynb", *cells, parameters="k = 1")
    with pytest.raises(RunFailed, match=r"code cell 3: ValueError: no dye.*runs/bad\.ipynb") as raised:
        run_notebook(source, "runs", {"k": 2})
    assert (raised.value.notebook, raised.value.cell, raised.value.reason) == (Path("runs/bad.ipynb"), 3, "ValueError: no dye")
    assert printed(Path("runs/bad.ipynb")) == "so far\n"
    assert "no dye" in Path("runs/bad.html").read_text(encoding="utf-8")
    notebook(source, "print('mended')")
    assert printed(run_notebook(source, "runs")) == "mended\n"  # what failed is replaced unasked
    with pytest.raises(InputError, match=r"bad\.ipynb to be new.*overwrite=True"):  # what did not is kept
        run_notebook(source, "runs")


def test_stopping_it_keeps_the_notebook_and_shows_no_traceback(tmp_path):
    """Ctrl-C reaches every process of the terminal."""
    notebook(tmp_path / "slow.ipynb", "open('begun', 'w').close()", "import time; time.sleep(100)", parameters=None)
    command = [sys.executable, "-m", "vosnb.cli", "run", "slow.ipynb", "-o", "runs"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        while not Path("begun").exists() and running.poll() is None:
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)
        told = running.stderr.read()
    assert running.returncode == 130 and Path("runs/slow.html").exists()
    assert "stopped, the notebook is kept, as far as it came, at runs/slow.ipynb" in told.splitlines()
    assert "Traceback" not in told and "rror" not in told


def test_a_dying_kernel_is_reported_and_the_notebook_is_kept(tmp_path, capfd):
    source = notebook(tmp_path / "dead.ipynb", "print('so far', flush=True)", "import os; os._exit(3)", parameters=None)
    with pytest.raises(RunFailed, match="code cell 2: Kernel died"):
        run_notebook(source, "runs")
    assert printed(Path("runs/dead.ipynb")) == "so far\n" and Path("runs/dead.html").exists()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("where", ["parameters", "raw"])
def test_unknown_parameters_are_refused_before_anything_runs(where, tmp_path):
    source = notebook(tmp_path / "tiny.ipynb", "1")
    with pytest.raises(InputError, match=r"clip = 'data/a', frames = 5.*'clipp'"):
        run_notebook(source, "runs", **{where: {"clipp": "x"}})
    assert not Path("runs").exists()


def test_a_parameters_cell_with_more_than_assignments_is_refused(tmp_path):
    with pytest.raises(InputError, match="line 2"):
        run_notebook(notebook(tmp_path / "tiny.ipynb", "1", parameters="k = 1\n%matplotlib inline"), "runs")


def test_a_notebook_without_parameters_takes_none(tmp_path):
    with pytest.raises(InputError, match="tagged 'parameters'"):
        run_notebook(notebook(tmp_path / "tiny.ipynb", "1", parameters=None), "runs", {"k": 1})


def test_text_becomes_what_papermill_makes_of_it(monkeypatch):
    from papermill import cli

    from vosnb.run import _typed

    for text in ["5", "-5", "0.1", "1e-3", "True", "False", "None", "true", "x", "", "001", "1_000", "[1, 2]", "-inf"]:
        ours, theirs = _typed(text, ""), cli._resolve_type(text)
        assert ours == theirs and type(ours) is type(theirs)
        assert _typed(text, "str") == text
    assert _typed(5, "str") == 5 and _typed((1, 2), "") == (1, 2)


def test_results_are_kept_unless_told(tmp_path):
    source = notebook(tmp_path / "tiny.ipynb", "1")
    for name in ("tiny.ipynb", "tiny.html"):
        (tmp_path / "runs" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "runs" / name).write_text("mine")
        with pytest.raises(InputError, match="existing"):
            run_notebook(source, "runs")
        (tmp_path / "runs" / name).unlink()


def test_a_notebook_is_never_run_over_itself(tmp_path):
    source = notebook(tmp_path / "tiny.ipynb", "1")
    with pytest.raises(InputError, match="than the notebook's own"):
        run_notebook(source, tmp_path, overwrite=True)


@pytest.mark.parametrize("content", [None, "", "not a notebook", "{}", "[]", b"\xff\xfe"])
def test_what_is_no_notebook_is_refused(content, tmp_path):
    path = tmp_path / "tiny.ipynb"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match="a notebook at"):
        run_notebook(path, "runs")


def test_an_unknown_kernel_is_refused(tmp_path):
    with pytest.raises(InputError, match="kernel among"):
        run_notebook(notebook(tmp_path / "tiny.ipynb", "1"), "runs", kernel="cobol")
    assert not Path("runs").exists()
