"""What must stay true of the package as a whole: quick to import, dependencies one way, notebooks clean."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vosnb

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_and_its_command_line_loads_no_torch_and_nothing_slow():
    slow = {"torch", "cv2", "av", "matplotlib", "moviepy", "pandas", "papermill", "yt_dlp", "scipy"}
    loaded = run("import sys, vosnb, vosnb.cli; print(' '.join(sys.modules))").split()
    assert not slow & {name.split(".")[0] for name in loaded}


def test_only_models_import_torch():
    for file in (ROOT / "vosnb").rglob("*.py"):
        tree = ast.parse(file.read_text())
        top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) and not getattr(n, "level", 0)]
        found = {(n.module if isinstance(n, ast.ImportFrom) else n.names[0].name) or "" for n in top}
        if file.parent.name not in ("models", "embedded"):
            assert not {"torch", "sam2"} & {name.split(".")[0] for name in found}, file


def test_the_nouns_and_the_tree_know_no_verb():
    verbs = {"segment", "propagate", "refine", "evaluate", "measure", "show", "run", "demo", "cli"}
    for name in ("prompts", "files", "errors", "tree", "frames", "clip", "paint", "masks"):
        tree = ast.parse((ROOT / "vosnb" / f"{name}.py").read_text())
        found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level}
        assert not found & verbs, name


@pytest.mark.parametrize("name", vosnb.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert getattr(vosnb, name).__doc__


def test_verbs_stay_functions_whatever_is_imported_first():
    assert (
        run(
            "import vosnb.segment, vosnb.propagate; from vosnb import segment, propagate; print(callable(segment), callable(propagate))"
        )
        == "True True"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stripped_parametrised_small_and_hold_no_functions(path):
    notebook = json.loads(path.read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    assert [c["metadata"].get("tags") for c in code].count(["parameters"]) == 1
    assert notebook["metadata"]["kernelspec"]["name"] == "python3" and "widgets" not in notebook["metadata"]
    assert notebook["cells"][0]["cell_type"] == "markdown" and "You will see" in "".join(notebook["cells"][0]["source"])
    assert not any(line.startswith(("def ", "class ", "    def ")) for c in code for line in c["source"])
    assert path.stat().st_size < 100_000
