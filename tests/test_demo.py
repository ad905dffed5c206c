"""The demo: everything it promises is there, everything it shows can be followed, and it replaces nothing but itself."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosnb import demo as module
from vosnb.clip import Clip
from vosnb.demo import demo
from vosnb.errors import InputError, RunFailed
from vosnb.masks import Masks

FRAMES = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished demo, made in the place of an earlier one and called by a relative path."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "runs" / "demo").mkdir(parents=True)
    (folder / "runs" / "demo" / "index.html").write_text(f"{module.TITLE} of yesterday")
    (folder / "runs" / "demo" / "yesterday.txt").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert demo("runs/demo", frames=FRAMES) == Path("runs/demo/index.html")
        assert Path.cwd() == folder
    return folder / "runs" / "demo"


def test_everything_is_there_and_an_earlier_demo_is_gone(made):
    assert sorted(path.name for path in made.iterdir()) == [
        "01_clip", "02_first_frame", "03_xmem", "04_sam_frame_to_frame", "06_pathways", "compare", "contact_sheet.png", "data",
        "index.html", "overlay.mp4", "report.json",
    ]  # fmt: skip
    assert [path.name for path in made.parent.iterdir()] == ["demo"]
    assert Clip(made / "overlay.mp4").shape == (FRAMES, 256, 480, 3)
    assert all(len(Masks(made / "compare" / "masks" / by)) == FRAMES for by in module.BY)
    with Image.open(made / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).std() > 10
    assert (made / "02_first_frame" / "first.png").exists()


def test_the_report_says_how_good_each_strategy_is(made):
    report = json.loads((made / "report.json").read_text())
    assert (report["frames"], report["size"]) == (FRAMES, [480, 256])
    assert [row["by"] for row in report["strategies"]] == list(module.BY)
    for row in report["strategies"]:
        assert row["J"] == pytest.approx((row["J 1"] + row["J 2"]) / 2)
        assert 0.3 < row["J&F"] <= 1 and row["s/frame"] > 0


def test_the_table_of_a_report_goes_between_the_marks_of_a_readme(made, tmp_path, monkeypatch):
    readme = Path(module.__file__).parents[1] / "README.md"
    copy = tmp_path / "README.md"
    copy.write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["demo", str(copy), str(made / "report.json")])
    module.main()
    report = json.loads((made / "report.json").read_text())
    assert module.markdown(report) in copy.read_text(encoding="utf-8")
    assert copy.read_text(encoding="utf-8").splitlines()[0] == readme.read_text(encoding="utf-8").splitlines()[0]
    copy.write_text("no marks", encoding="utf-8")
    with pytest.raises(InputError, match="the marks of the comparison"):
        module.main()


def test_every_link_of_the_page_leads_somewhere(made):
    page = (made / "index.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    inner = re.findall(r"""(?:src|href)=["']([^"']+)""", (made / "compare" / "index.html").read_text(encoding="utf-8"))
    assert all((made / "compare" / link).exists() for link in inner)
    assert {
        "overlay.mp4",
        "contact_sheet.png",
        "report.json",
        "compare/index.html",
        "02_first_frame/02_first_frame.html",
    } <= set(links)
    assert all((made / link).is_file() for link in links)


def test_nothing_names_the_folder_that_it_was_made_in(made):
    texts = [path for path in made.rglob("*") if path.suffix in (".html", ".json", ".ipynb")]
    assert len(texts) >= 8
    for path in texts:
        assert f".{made.name}.{os.getpid()}.part" not in path.read_text(encoding="utf-8"), path
    assert "data/JPEGImages/turbulence" in (made / "01_clip" / "01_clip.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["a file", "a folder", "a website"])
def test_something_else_is_left_alone(kind, tmp_path):
    mine = tmp_path / "mine"
    if kind == "a file":
        mine.write_text("mine")
    else:
        mine.mkdir()
        (mine / ("index.html" if kind == "a website" else "thesis.tex")).write_text("<title>My site</title>")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match="an earlier demo"):
        demo(mine)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_without_the_notebooks_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NOTEBOOKS", tmp_path / "none")
    with pytest.raises(InputError, match="in a clone of the repository"):
        demo(tmp_path / "demo")
    assert not any(tmp_path.iterdir())


def test_a_notebook_that_fails_is_kept_and_no_half_demo(made, tmp_path, monkeypatch):
    def run_notebook(notebook: Path, out: str, parameters: dict) -> Path:
        Path(out).mkdir()
        raise RunFailed(Path(shutil.copy(notebook, out)), 2, "ValueError: no dye")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "run_notebook", run_notebook)
    with pytest.raises(RunFailed, match="code cell 2: ValueError: no dye") as failed:
        demo("demo", frames=FRAMES)
    assert failed.value.notebook == tmp_path / "01_clip.ipynb"
    assert [path.name for path in tmp_path.iterdir()] == ["01_clip.ipynb"]
