"""Every notebook of the project runs headless on a small clip, and ends in a picture or a table."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from vosnb.clip import Clip
from vosnb.errors import InputError
from vosnb.masks import Masks
from vosnb.prompts import Prompts
from vosnb.run import parameters_of, run_notebook
from vosnb.synth import turbulence

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
FRAMES = 6
DRY = {"08_evaluate": {"by": "flow, sam2long"}}
SEEN = {"image/png", "image/jpeg", "text/html"}  # pictures and tables


@pytest.fixture(scope="session")
def given(tmp_path_factory) -> dict[str, object]:
    """A small clip with its ground truth, and what a notebook may want to know of it, by the name of the parameter."""
    folder = tmp_path_factory.mktemp("scene")
    scene = turbulence(frames=FRAMES, height=96, width=160)
    scene.write(folder)
    return {
        "clip": str(folder / "JPEGImages" / scene.name),
        "data": str(folder),
        "source": str(folder / "JPEGImages" / scene.name),
        "prompts": str(folder / "prompts" / f"{scene.name}.json"),
        "truth": str(folder / "Annotations" / scene.name),
        "background": "4,4; 150,4",
        "frames": 4,
    }


@pytest.fixture(scope="session")
def executed(given, tmp_path_factory):
    """Notebook → the folder of its results; each is run once, when first asked for."""
    done: dict[Path, Path] = {}

    def run(notebook: Path) -> Path:
        if notebook not in done:
            declared = parameters_of(notebook)
            done[notebook] = tmp_path_factory.mktemp(notebook.stem)
            values = {name: value for name, value in given.items() if name in declared}
            run_notebook(notebook, done[notebook], {**values, **DRY.get(notebook.stem, {})})
        return done[notebook]

    return run


def cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(notebook, as_version=4).cells


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_ends_in_a_picture_or_a_table(notebook, executed):
    out = executed(notebook)
    assert (out / f"{notebook.stem}.html").stat().st_size > 10_000
    code = [cell for cell in cells(out / notebook.name) if cell.cell_type == "code"]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert SEEN & {kind for output in code[-1].outputs for kind in output.get("data", {})}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_in_the_repository_as_a_person_reads_it(notebook):
    """Without outputs, without functions, with one cell of parameters, each of which says what it is."""
    code = [cell for cell in cells(notebook) if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert "out" in parameters_of(notebook) and all("#" in line for line in parameters.source.splitlines())
    first = cells(notebook)[0]
    assert first.cell_type == "markdown" and "**You will see**" in first.source


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_unknown_parameter_is_refused(notebook, tmp_path):
    with pytest.raises(InputError, match=r"'colour'.*correct the name"):
        run_notebook(notebook, tmp_path, {"colour": "red"})
    assert not any(tmp_path.iterdir())


def test_before_the_demo_the_default_paths_say_how_they_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for notebook in NOTEBOOKS:
        given = {name: ast.literal_eval(default) for name, (_, default) in parameters_of(notebook).items()}
        if "runs/demo" in given.get("clip", ""):
            for read, name in ((Clip, "clip"), (Prompts.load, "prompts")):
                with pytest.raises(InputError, match="does not exist; run `make demo` first"):
                    read(given[name])


def named(stem: str) -> Path:
    return next(path for path in NOTEBOOKS if path.stem == stem)


def test_the_first_frame_is_saved_as_a_label_map(executed):
    with Image.open(executed(named("02_first_frame")) / "first.png") as image:
        assert image.mode == "P" and image.size == (160, 96)
        assert np.unique(np.array(image)).tolist() == [0, 1, 2]  # the auxiliary surface is background


def test_frame_to_frame_saves_masks_and_a_report_of_the_frames_asked_for(executed, given):
    out = executed(named("04_sam_frame_to_frame"))
    masks = Masks(out / "masks")
    assert masks.names == Clip(given["clip"]).names[: given["frames"]] and masks.ids == (1, 2)
    report = (out / "report.json").read_text()
    assert '"mean J"' in report and '"by": "sam"' in report


def test_a_comparison_is_kept_as_a_page_with_its_tables(executed):
    out = executed(named("07_compare"))
    report = json.loads((out / "report.json").read_text())
    assert (
        list(report["strategies"]) == ["flow", "sam", "sam2", "sam2long", "xmem", "xmem+refine"]
        and report["strategies"]["flow"]["J"] > 0.5
    )
    assert {"index.html", "comparison.csv", "side_by_side.mp4"} <= {path.name for path in out.iterdir()}


def test_measures_are_kept_as_tables(executed):
    text = (executed(named("09_measure")) / "measures" / "objects.csv").read_text()
    assert text.startswith("# lengths in mm") and text.count("\nxmem,") == 2 * 4
