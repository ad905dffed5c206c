"""The HTML pages of an evaluation: numbers, curves over the frames, the worst frames as pictures. One file each, nothing to load."""

from __future__ import annotations

import base64
import glob
import io
from dataclasses import asdict
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from . import __version__
from .errors import InputError
from .frames import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from .evaluate import Comparison, Report, Track

__all__ = ["comparison_page", "page", "picture", "worst"]

PICTURES, PER_OBJECT, WIDTH = 12, 2, 380  # how many worst frames, of one object at most, pixels wide
AGREED, MISSED, EXTRA = (0, 158, 115), (213, 94, 0), (86, 180, 233)  # told apart by the colour-blind too (Okabe & Ito)

STYLE = """<style>
body{font:15px/1.5 system-ui;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.15em .7em;text-align:right}
td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}th{cursor:pointer;border-bottom:1px solid #999}
svg{display:block;background:#fff}figure{display:inline-block;margin:.4em;vertical-align:top}figcaption{font-size:13px}
img{display:block;max-width:100%}.j{color:#0072b2}.f{color:#e69f00}.about td{text-align:left}
.box{display:inline-block;width:.9em;height:.9em;vertical-align:-.1em}
</style>"""
SORT = """<script>document.querySelectorAll("th").forEach(h=>h.onclick=()=>{
const b=h.closest("table").tBodies[0],i=h.cellIndex,d=h.down=h.down==1?-1:1;
const v=r=>r.cells[i].textContent;[...b.rows].sort((x,y)=>d*(isNaN(v(x))?v(x).localeCompare(v(y)):v(x)-v(y))).forEach(r=>b.append(r))})
</script>"""


def page(report: Report, images: str | Path | None = None) -> str:
    """The page of one report. `images`: the folder of the frames (a folder per sequence), to draw the worst masks on."""
    about = [[k, v if not isinstance(v, list) else f"{len(v)}: {' '.join(map(str, v))}"] for k, v in report.about.items()]
    name = report.protocol.name if report.protocol else "one sequence"
    about += [["protocol", ", ".join(f"{k} {v}" for k, v in asdict(report.protocol).items())]] if report.protocol else []
    about.append(["vosnb", __version__])
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    objects = [[str(t.key), len(t.frames), *_numbers(t)] for t in report.tracks]
    sequences = [[s, m["J&F"], m["J"], m["F"]] for s, m in report.sequences.items()] if len(report.sequences) > 1 else []
    curves = "".join(
        f"<details{' open' if len(report.sequences) <= 10 else ''}><summary>{escape(s or 'objects')}</summary>"
        + "".join(f"<figure><figcaption>{escape(str(t.key))}</figcaption>{_curve(t)}</figure>" for t in tracks)
        + "</details>"
        for s, tracks in groupby(report.tracks, key=lambda t: t.sequence)
    )
    return "".join(
        [
            f"<!doctype html><meta charset='utf-8'><title>J&amp;F, {escape(name)}</title>{STYLE}<h1>J&amp;F, {escape(name)}</h1>",
            _table(list(report.summary), [list(report.summary.values())]),
            f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
            "<h2>The worst frames</h2>", _pictures(report, images),
            "<h2>Sequences</h2>" + _table(["sequence", "J&F", "J", "F"], sequences) if sequences else "",
            "<h2>Objects</h2>", _table(["object", "frames", "J&F", "J", "F", "lowest J"], objects),
            "<h2>Over the frames</h2><p><b class=j>J</b> and <b class=f>F</b> from 0 to 1; grey where the object is not there.</p>", curves,
            f"<h2>What was run</h2><div class=about>{_table(['', ''], about)}</div>",
            SORT,
        ]
    )  # fmt: skip


def comparison_page(comparison: Comparison) -> str:
    """The page that sets several reports side by side; it links to theirs, in folders of their names."""
    names = list(comparison.reports)
    columns = list(next(iter(comparison.reports.values())).summary)
    rows = [[name, *report.summary.values()] for name, report in comparison.reports.items()]
    gains = [[n, d.mean, d.low, d.high, d.better, d.worse] for n, d in comparison.differences.items()]
    objects = [
        [str(key), *((r.J[key] + r.F[key]) / 2 for r in comparison.reports.values())]
        for key in next(iter(comparison.reports.values())).J
    ]
    links = " · ".join(f"<a href='{escape(name)}/index.html'>{escape(name)}</a>" for name in names)
    return "".join(
        [
            f"<!doctype html><meta charset='utf-8'><title>Comparison</title>{STYLE}<h1>{' · '.join(map(escape, names))}</h1><p>{links}</p>",
            _table(["method", *columns], rows),
            f"<h2>J&amp;F gained over {escape(names[0])}</h2><p>Mean over objects; 95 % interval of a paired bootstrap over sequences.</p>",
            _table(["method", "gain", "from", "to", "objects better", "objects worse"], gains),
            "<h2>J&amp;F of each object</h2>", _table(["object", *names], objects), SORT,
        ]
    )  # fmt: skip


def worst(report: Report, count: int = PICTURES) -> list[tuple[Track, int]]:
    """The frames with the lowest (J + F) / 2, as (track, its t), lowest first; of one object not more than two, not next to each
    other, and none that is perfect."""
    found = []
    for track in report.tracks:
        both = (track.j + track.f) / 2
        kept: list[int] = []
        for t in np.argsort(both, kind="stable").tolist():
            if len(kept) < PER_OBJECT and both[t] < 1 and all(abs(t - k) > len(both) // 10 for k in kept):
                kept.append(t)
        found += [(float(both[t]), n, track, t) for n, t in enumerate(kept)]
    return [(track, t) for _, _, track, t in sorted(found, key=lambda entry: entry[:2])[:count]]


def picture(mask: np.ndarray, truth: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) uint8: green where both (H, W) bool masks agree, orange what was missed, blue what is too much; on `image` if given."""
    out = np.full((*truth.shape, 3), 40, np.uint8) if image is None else (image * 0.6).astype(np.uint8)
    for where, color in ((mask & truth, AGREED), (truth & ~mask, MISSED), (mask & ~truth, EXTRA)):
        out[where] = color if image is None else (0.45 * image[where] + 0.55 * np.array(color)).astype(np.uint8)
    return out


def _pictures(report: Report, images: str | Path | None) -> str:
    frames = worst(report)
    if report.read is None or not frames:
        return "<p>None.</p>"
    key = "".join(
        f"<span class=box style='background:rgb{color}'></span> {what} &nbsp; "
        for color, what in ((AGREED, "found"), (MISSED, "missed"), (EXTRA, "too much"))
    )
    figures = []
    for track, t in frames:
        drawn = Image.fromarray(picture(*report.read(track, t), _frame(images, track, t)))
        drawn.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS if images else Image.Resampling.NEAREST)
        data = io.BytesIO()
        drawn.save(data, "JPEG", quality=85) if images else drawn.save(data, "PNG")
        uri = f"data:image/{'jpeg' if images else 'png'};base64,{base64.b64encode(data.getvalue()).decode()}"
        caption = f"{escape(str(track.key))}, frame {escape(track.frames[t])}: J {track.j[t]:.3f}, F {track.f[t]:.3f}"
        figures.append(f"<figure><img src='{uri}' alt='{caption}'><figcaption>{caption}</figcaption></figure>")
    return f"<p>{key}</p>" + "".join(figures)


def _frame(images: str | Path | None, track: Track, t: int) -> np.ndarray | None:
    if images is None:
        return None
    folder, name = Path(images) / track.sequence, track.frames[t]
    found = sorted(path for path in folder.glob(f"{glob.escape(name)}.*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError("the frames to draw on", f"no {name}.jpg in {folder}", "give the folder of the frames, or none")
    with Image.open(found[0]) as image:
        return np.asarray(image.convert("RGB"))


def _curve(track: Track, width: int = 360, height: int = 70) -> str:
    """J and F over the frames as a picture of lines; bands where the object is not there."""
    step = width / max(len(track.frames) - 1, 1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], track.absent, [0]]))).reshape(-1, 2)
    bands = "".join(
        f"<rect x='{(a - 0.5) * step:.1f}' y='0' width='{(b - a) * step:.1f}' height='{height}' fill='#ddd'/>"
        for a, b in edges.tolist()
    )
    lines = ""
    for values, color in ((track.f, "#e69f00"), (track.j, "#0072b2")):
        points = " ".join(f"{n * step:.1f},{(1 - v) * height:.1f}" for n, v in enumerate(values.tolist()))
        lines += f"<polyline points='{points}' fill='none' stroke='{color}' stroke-width='1.3'/>"
    half = f"<line x1='0' x2='{width}' y1='{height / 2}' y2='{height / 2}' stroke='#bbb' stroke-dasharray='3'/>"
    box = f"-2 -3 {width + 4} {height + 6}"
    return f"<svg viewBox='{box}' width='{width}' height='{height}'>{bands}{half}{lines}</svg>"


def _numbers(track: Track) -> list[float]:
    j, f = float(track.j.mean()), float(track.f.mean())
    return [(j + f) / 2, j, f, float(track.j.min())]


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    cells = ("".join(f"<td>{f'{v:.3f}' if isinstance(v, float) else escape(str(v))}</td>" for v in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
