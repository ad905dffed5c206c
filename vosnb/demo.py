"""`vosnb demo`: the embedded clip through the strategies and the notebooks, judged against ground truth, on one page."""

from __future__ import annotations

import html
import json
import shutil
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Clip
from .errors import InputError, RunFailed
from .evaluate import Report, evaluate
from .files import replacing, replacing_folder
from .masks import Masks
from .propagate import propagate
from .run import run_notebook
from .segment import segment
from .show import contact_sheet
from .synth import Scene, scene, turbulence, write_scenes

TITLE = "<title>vosnb demo</title>"
MODEL = "vosnb-mini-sam2"  # whatever else was fetched: the demo is the same everywhere
COLORS = {1: "#3b6cff", 2: "#ff4040"}  # the two dyes, as in the example
STRATEGIES: dict[str, dict[str, Any]] = {
    "flow": {}, "sam": {"model": MODEL}, "sam2": {"model": MODEL}, "sam2long": {"model": MODEL},
}  # fmt: skip
PAGES = ("01_clip", "02_first_frame", "04_sam_frame_to_frame", "06_pathways")
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def demo(out: str | Path = "runs/demo", frames: int = 120) -> Path:
    """Makes everything under `out` anew and returns the page, `out/index.html`.

    Paths in the executed notebooks are relative to `out`. Raises `InputError`, before anything is made, where the notebooks are
    not beside the package (they come with the repository) or `out` holds something else; `RunFailed` where one fails: it is
    kept beside `out`.
    """
    if not NOTEBOOKS.is_dir():
        raise InputError(
            "the notebooks beside the package", f"no folder {NOTEBOOKS}", "run the demo in a clone of the repository"
        )
    out, begun = Path(out), time.monotonic()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_demo(out))):
        raise InputError(f"{out} to be new, empty or an earlier demo", "something else", "choose another with --out")
    with replacing_folder(out, overwrite=True) as making:
        print("1/4 two clips with ground truth: dyes in a channel, and something that goes behind a pillar")
        dyes, hidden = turbulence(frames=frames), scene(7, "occluder", frames)
        write_scenes(making / "data", [dyes, hidden])
        clip, truth = Clip(making / _images(dyes)), Masks(making / _truth(dyes))

        print("2/4 the first frame from a box per dye, then every strategy")
        first = segment(clip[0], dyes.prompts()[0], MODEL, fill_holes=True, aux=dyes.aux)
        found: dict[str, Masks] = {}
        rows = []
        for by, settings in STRATEGIES.items():
            start = time.monotonic()
            found[by] = propagate(clip, {0: first}, by, aux=dyes.aux, **settings, out=making / "masks" / by)
            seconds = (time.monotonic() - start) / len(clip)
            rows.append(_row(by, evaluate(found[by], truth, ids=(1, 2)), seconds))

        print("3/4 the notebooks")
        beside = out.parent.resolve()
        with chdir(making):  # so that what they show holds in the finished folder, whose name this is not
            for name, parameters in _notebooks(dyes, hidden).items():
                try:
                    run_notebook(NOTEBOOKS / f"{name}.ipynb", name, {**parameters, "out": name})
                except RunFailed as error:
                    raise RunFailed(Path(shutil.copy(error.notebook, beside)), error.cell, error.reason) from error

        print("4/4 pictures")
        best = max(rows, key=lambda row: row["J&F"])["by"]
        found[best].video(clip, making / "overlay.mp4", colors=COLORS)
        shown = Masks([np.where(np.isin(labels, dyes.aux), np.uint8(0), labels) for labels in truth])
        _write_sheet(making / "contact_sheet.png", clip, {"ground truth": shown, **found})
        about = {
            "clip": dyes.name,
            "frames": len(clip),
            "size": [clip.width, clip.height],
            "model": MODEL,
            "seconds": round(time.monotonic() - begun, 1),
        }
        (making / "report.json").write_text(json.dumps({**about, "strategies": rows}, indent=1))
        with replacing(making / "index.html") as page:
            page.write_text(_page(rows, best), encoding="utf-8")
    print(_table(rows))
    print(f"\nLook at {out / 'index.html'} ({time.monotonic() - begun:.0f} s)")
    return out / "index.html"


def _images(of: Scene) -> str:
    return f"data/JPEGImages/{of.name}"


def _truth(of: Scene) -> str:
    return f"data/Annotations/{of.name}"


def _notebooks(dyes: Scene, hidden: Scene) -> dict[str, dict[str, Any]]:
    """Names and parameters; the second clip is where pathways have something to decide."""
    shared = {"clip": _images(dyes), "prompts": f"data/prompts/{dyes.name}.json", "model": MODEL}
    return {
        "01_clip": {"source": _images(dyes)},
        "02_first_frame": shared,
        "04_sam_frame_to_frame": {**shared, "truth": _truth(dyes), "frames": 60},
        "06_pathways": {**shared, "clip": _images(hidden), "prompts": f"data/prompts/{hidden.name}.json"},
    }


def _is_demo(folder: Path) -> bool:
    page = folder / "index.html"
    return page.is_file() and TITLE in page.read_text(encoding="utf-8", errors="replace")


def _row(by: str, report: Report, seconds: float) -> dict[str, Any]:
    top, bottom = report.J.values()
    summary = report.summary
    return {
        "by": by, "J top dye": top, "J bottom dye": bottom, "J": summary["J-Mean"], "F": summary["F-Mean"],
        "J&F": summary["J&F-Mean"], "s/frame": seconds,
    }  # fmt: skip


def _write_sheet(path: Path, clip: Clip, found: dict[str, Masks]) -> None:
    from PIL import Image

    frames = [round(i * (len(clip) - 1) / 3) for i in range(4)]
    sheets = [
        contact_sheet(clip, masks, frames, titles=[f"{name}, frame {t}" for t in frames], colors=COLORS)
        for name, masks in found.items()
    ]
    Image.fromarray(np.concatenate(sheets)).save(path)


def _table(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if name != "by"]
    head = f"{'strategy':9}" + "".join(f"{name:>14}" for name in names)
    return "\n".join([head, *(f"{row['by']:9}" + "".join(f"{row[name]:14.3f}" for name in names) for row in rows)])


def _page(rows: list[dict[str, Any]], best: str) -> str:
    table = html.escape(_table(rows))
    notebooks = "".join(f'<li><a href="{n}/{n}.html">{n}</a></li>' for n in PAGES)
    return f"""<!doctype html><meta charset="utf-8">{TITLE}
<style>body{{font:16px/1.5 system-ui;max-width:1300px;margin:2em auto;padding:0 1em}}img,video{{max-width:100%}}</style>
<h1>Two dyes in a channel</h1>
<p>One box per dye on frame 0, then every strategy from the same first masks: optical flow (flow), SAM frame by frame (sam), SAM 2
(sam2), SAM 2 with three pathways (sam2long); J and F against the ground truth, without frame 0. The networks are {MODEL}, a small
model for clips like this one, not for real footage. The video shows {best}.</p>
<video src="overlay.mp4" controls autoplay loop muted></video>
<pre>{table}</pre>
<img src="contact_sheet.png" alt="ground truth and strategies on four frames">
<h2>The notebooks, executed</h2><ul>{notebooks}</ul>
<p>Also here: <a href="report.json">report.json</a>, masks/ (indexed PNGs by strategy), data/ (the clips with their ground truth).</p>
"""
