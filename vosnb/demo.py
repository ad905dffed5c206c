"""`vosnb demo`: the embedded clip through the notebooks and the strategies, judged against ground truth, on one page."""

from __future__ import annotations

import html
import json
import shutil
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

from .clip import Clip
from .errors import InputError, RunFailed
from .evaluate import evaluate
from .files import replacing, replacing_folder
from .masks import Masks
from .propagate import propagate
from .run import run_notebook
from .segment import segment
from .show import contact_sheet
from .synth import turbulence

TITLE = "<title>vosnb demo</title>"
COLORS = {1: "#3b6cff", 2: "#ff4040"}  # the two dyes, as in the example
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
        print("1/4 the clip: two dyes in a channel, with ground truth")
        scene = turbulence(frames=frames)
        scene.write(making / "data")
        frames_in, truth_in = (f"data/{kind}/{scene.name}" for kind in ("JPEGImages", "Annotations"))
        clip, truth = Clip(making / frames_in), Masks(making / truth_in)

        print("2/4 the notebooks, frame by frame with a classical model among them")
        shared = {"clip": frames_in, "prompts": f"data/prompts/{scene.name}.json"}
        beside = out.parent.resolve()
        with chdir(making):  # so that what they show holds in the finished folder, whose name this is not
            for name, parameters in {
                "01_clip": {"source": frames_in},
                "02_first_frame": shared,
                "04_sam_frame_to_frame": {**shared, "truth": truth_in},
            }.items():
                try:
                    run_notebook(NOTEBOOKS / f"{name}.ipynb", name, {**parameters, "out": name})
                except RunFailed as error:
                    raise RunFailed(Path(shutil.copy(error.notebook, beside)), error.cell, error.reason) from error
        frame_to_frame = making / "04_sam_frame_to_frame"
        found = {"sam": Masks(frame_to_frame / "masks")}
        rows = [_row("sam", json.loads((frame_to_frame / "report.json").read_text()))]

        print("3/4 optical flow")
        start = time.monotonic()
        first = segment(clip[0], scene.prompts()[0], fill_holes=True, aux=scene.aux)
        found["flow"] = propagate(clip, {0: first}, "flow", aux=scene.aux, out=making / "masks")
        report = evaluate(found["flow"], truth, ids=(1, 2), seconds_per_frame=(time.monotonic() - start) / len(clip))
        rows.append(_row("flow", report.as_dict()))

        print("4/4 pictures")
        found["flow"].video(clip, making / "overlay.mp4", colors=COLORS)
        _write_sheet(making / "contact_sheet.png", clip, {"ground truth": truth, **found})
        about = {
            "clip": scene.name,
            "frames": len(clip),
            "size": [clip.width, clip.height],
            "seconds": round(time.monotonic() - begun, 1),
        }
        (making / "report.json").write_text(json.dumps({**about, "strategies": rows}, indent=1))
        with replacing(making / "index.html") as page:
            page.write_text(_page(rows), encoding="utf-8")
    print(_table(rows))
    print(f"\nLook at {out / 'index.html'} ({time.monotonic() - begun:.0f} s)")
    return out / "index.html"


def _is_demo(folder: Path) -> bool:
    page = folder / "index.html"
    return page.is_file() and TITLE in page.read_text(encoding="utf-8", errors="replace")


def _row(by: str, report: dict[str, Any]) -> dict[str, Any]:
    top, bottom = report["J"].values()
    return {
        "by": by,
        "J top dye": top,
        "J bottom dye": bottom,
        "mean J": (top + bottom) / 2,
        "s/frame": report["about"]["seconds_per_frame"],
    }


def _write_sheet(path: Path, clip: Clip, found: dict[str, Masks]) -> None:
    from PIL import Image

    frames = [round(i * (len(clip) - 1) / 3) for i in range(4)]
    sheets = [
        contact_sheet(clip, masks, frames, titles=[f"{name}, frame {t}" for t in frames], colors=COLORS)
        for name, masks in found.items()
    ]
    import numpy as np

    Image.fromarray(np.concatenate(sheets)).save(path)


def _table(rows: list[dict[str, Any]]) -> str:
    line = "{:8} {:>11} {:>13} {:>8} {:>9}".format
    head = line("strategy", "J top dye", "J bottom dye", "mean J", "s/frame")
    body = [
        line(r["by"], f"{r['J top dye']:.3f}", f"{r['J bottom dye']:.3f}", f"{r['mean J']:.3f}", f"{r['s/frame']:.3f}")
        for r in rows
    ]
    return "\n".join([head, *body])


def _page(rows: list[dict[str, Any]]) -> str:
    table = html.escape(_table(rows))
    notebooks = "".join(
        f'<li><a href="{n}/{n}.html">{n}</a></li>' for n in ("01_clip", "02_first_frame", "04_sam_frame_to_frame")
    )
    return f"""<!doctype html><meta charset="utf-8">{TITLE}
<style>body{{font:16px/1.5 system-ui;max-width:1300px;margin:2em auto;padding:0 1em}}img,video{{max-width:100%}}</style>
<h1>Two dyes in a channel</h1>
<p>One box per dye on frame 0; masks by optical flow (flow) and frame by frame (sam); J against the ground truth.</p>
<video src="overlay.mp4" controls autoplay loop muted></video>
<pre>{table}</pre>
<img src="contact_sheet.png" alt="ground truth and strategies on four frames">
<h2>The notebooks, executed</h2><ul>{notebooks}</ul>
<p>Also here: <a href="report.json">report.json</a>, masks/ (indexed PNGs), data/ (the clip with its ground truth).</p>
"""
