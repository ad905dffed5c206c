"""`vosnb demo`: the embedded clip through the strategies and the notebooks, judged against ground truth, on one page."""

from __future__ import annotations

import html
import json
import shutil
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clip import Clip
from .compare import Comparison, compare
from .errors import InputError, RunFailed
from .files import replacing, replacing_folder
from .masks import Masks
from .run import run_notebook
from .segment import segment
from .synth import Scene, scene, turbulence, write_scenes

if TYPE_CHECKING:
    import pandas as pd

TITLE = "<title>vosnb demo</title>"
MODEL, XMEM = "vosnb-mini-sam2", "vosnb-mini-xmem"  # whatever else was fetched: the demo is the same everywhere
COLORS = {1: "#3b6cff", 2: "#ff4040"}  # the two dyes, as in the example
BY = ("flow", "sam", "sam2", "sam2long", "xmem", "xmem+refine")
SETTINGS = {
    **{by: {"model": MODEL} for by in ("sam", "sam2", "sam2long")}, "xmem": {"model": XMEM}, "xmem+refine": {"refine_model": MODEL},
}  # fmt: skip
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
    beside = out.parent.resolve()
    with replacing_folder(out, overwrite=True) as making, chdir(making):  # so that what is shown holds in the finished folder
        print("1/3 two clips with ground truth: dyes in a channel, and something that goes behind a pillar")
        dyes, hidden = turbulence(frames=frames), scene(7, "occluder", frames)
        write_scenes("data", [dyes, hidden])
        clip, truth = Clip(_images(dyes)), Masks(_truth(dyes))

        print("2/3 the notebooks")
        for name, parameters in _notebooks(dyes, hidden).items():
            try:
                run_notebook(NOTEBOOKS / f"{name}.ipynb", name, {**parameters, "out": name})
            except RunFailed as error:
                raise RunFailed(Path(shutil.copy(error.notebook, beside)), error.cell, error.reason) from error

        print("3/3 the first frame from a box per dye, then every strategy from there")
        first = segment(clip[0], dyes.prompts()[0], MODEL, fill_holes=True, aux=dyes.aux)
        found = compare(clip, {0: first}, BY, truth, settings=SETTINGS, aux=dyes.aux, out="compare")
        found.save("compare", colors=COLORS)
        table = found.table()
        best = str(table["J&F"].idxmax())
        found.runs[best].masks.video(clip, "overlay.mp4", colors=COLORS)
        _write_sheet(Path("contact_sheet.png"), found)
        about = {
            "clip": dyes.name, "frames": len(clip), "size": [clip.width, clip.height], "models": [MODEL, XMEM],
            "seconds": round(time.monotonic() - begun, 1),
        }  # fmt: skip
        rows = table.reset_index(names="by").to_dict(orient="records")
        Path("report.json").write_text(json.dumps({**about, "strategies": rows}, indent=1), encoding="utf-8")
        Path("index.html").write_text(_page(table, best, list(_notebooks(dyes, hidden))), encoding="utf-8")
    print(table.to_string(float_format="{:.3f}".format))
    print(f"\nLook at {out / 'index.html'} ({time.monotonic() - begun:.0f} s)")
    return out / "index.html"


def markdown(report: dict[str, Any]) -> str:
    """A demo's report as the README's table, which `python -m vosnb.demo README.md` puts there."""
    lines = ["| `by=` | J top dye | J bottom dye | J&F | s/frame | MB |", "|---|---|---|---|---|---|"]
    for row in report["strategies"]:
        values = (f"{row[key]:.3f}" for key in ("J 1", "J 2", "J&F", "s/frame"))
        lines.append(f"| `{row['by']}` | {' | '.join(values)} | {row['MB']:.0f} |")
    return "\n".join(lines)


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
        "03_xmem": {
            **{key: value for key, value in shared.items() if key != "model"},
            "first_model": MODEL,
            "model": XMEM,
            "truth": _truth(dyes),
            "frames": 40,
        },
        "04_sam_frame_to_frame": {**shared, "truth": _truth(dyes), "frames": 60},
        "06_pathways": {**shared, "clip": _images(hidden), "prompts": f"data/prompts/{hidden.name}.json"},
    }


def _is_demo(folder: Path) -> bool:
    page = folder / "index.html"
    return page.is_file() and TITLE in page.read_text(encoding="utf-8", errors="replace")


def _write_sheet(path: Path, found: Comparison) -> None:
    from PIL import Image

    frames = [round(i * (len(found.clip) - 1) / 3) for i in range(4)]
    Image.fromarray(found.contact_sheet(frames, colors=COLORS)).save(path)


def _page(table: pd.DataFrame, best: str, notebooks: list[str]) -> str:
    numbers = html.escape(table.to_string(float_format="{:.3f}".format))
    links = "".join(f'<li><a href="{n}/{n}.html">{n}</a></li>' for n in notebooks)
    return f"""<!doctype html><meta charset="utf-8">{TITLE}
<style>body{{font:16px/1.5 system-ui;max-width:1300px;margin:2em auto;padding:0 1em}}img,video{{max-width:100%}}</style>
<h1>Two dyes in a channel</h1>
<p>One box per dye on frame 0, then every strategy from the same first masks: optical flow (flow), SAM frame by frame (sam), SAM 2
(sam2), SAM 2 with three pathways (sam2long), XMem (xmem), and XMem's masks refined by SAM 2 (xmem+refine); J and F against the ground
truth, without frame 0. The networks are {MODEL} and {XMEM}, small models for clips like this one, not for real footage. The video shows
{html.escape(best)}.</p>
<video src="overlay.mp4" controls autoplay loop muted></video>
<pre>{numbers}</pre>
<p><a href="compare/index.html">The comparison</a>: the frames where they disagree most, quality over time, all in one film.</p>
<img src="contact_sheet.png" alt="ground truth and strategies on four frames">
<h2>The notebooks, executed</h2><ul>{links}</ul>
<p>Also here: <a href="report.json">report.json</a>, compare/masks/ (indexed PNGs by strategy), data/ (the clips and
their ground truth).</p>
"""


def main() -> None:
    """README FILE [REPORT]: puts the table of a demo's report between README's two marks."""
    readme, report = Path(sys.argv[1]), json.loads(Path(*sys.argv[2:] or ["runs/demo/report.json"]).read_text(encoding="utf-8"))
    before, mark, rest = readme.read_text(encoding="utf-8").partition("<!-- comparison: python -m vosnb.demo README.md -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not (mark and end):
        raise InputError("a file with the marks of the comparison", str(readme), "see README.md of the repository")
    with replacing(readme) as part:
        part.write_text(f"{before}{mark}{markdown(report)}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
