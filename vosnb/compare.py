"""The verb `compare`: the same clip and prompts by several strategies, side by side: how good, how quick, how much memory, and where they
disagree, which takes no ground truth. Agreement is not accuracy: all may be wrong together.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import html
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .clip import Clip
from .errors import InputError
from .evaluate import Report, evaluate, jaccard
from .files import replacing
from .masks import Masks
from .progress import progress
from .prompts import Prompts
from .propagate import collect, stream
from .provenance import described, settled
from .strategies import Strategy, get

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .paint import Color

__all__ = ["Comparison", "Run", "compare"]

PAGE = "<title>vosnb compare</title>"
MARK = ".comparison"  # in the folder of the masks: they are ours to replace


@dataclass(frozen=True)
class Run:
    """One strategy on the clip. `seconds` per frame, reading included and loading the model not; `memory`: MB that it needed at most while
    it ran, beside its loaded model; `gpu`: MB of the device at most, NaN without one."""

    masks: Masks
    seconds: float
    memory: float
    gpu: float = float("nan")
    report: Report | None = None


@dataclass(frozen=True)
class Comparison:
    """`runs` {strategy: `Run`} on `clip`; `ids` the objects compared; `skip` the prompted frames, which count for nothing; `truth`
    where there is ground truth; `about` what was asked; `out` the folder in whose masks/ the masks are, if they are on disk."""

    clip: Clip
    runs: dict[str, Run]
    ids: tuple[int, ...]
    skip: frozenset[int]
    truth: Masks | None = None
    about: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None

    # -- numbers -----------------------------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> dict[tuple[str, str], np.ndarray]:
        """Of every two strategies the IoU of their masks, (T, objects): 1 where both agree, also that the object is not there."""
        names = list(self.runs)
        found = {pair: np.ones((len(self.clip), len(self.ids))) for pair in combinations(names, 2)}
        for t, labels in enumerate(zip(*(self.runs[name].masks for name in names), strict=True)):
            for i, obj in enumerate(self.ids):
                own = [of_run == obj for of_run in labels]
                for a, b in combinations(range(len(names)), 2):
                    found[names[a], names[b]][t, i] = jaccard(own[a], own[b])
        return found

    @cached_property
    def disagreement(self) -> np.ndarray:
        """(T, objects): 1 − the mean IoU of every two strategies."""
        return 1 - np.mean(list(self.pairs.values()), axis=0) if self.pairs else np.zeros((len(self.clip), len(self.ids)))

    def frames(self, count: int = 4) -> list[int]:
        """The frames where strategies disagree most, in order of time, a good way apart where the clip is long enough."""
        total, found = self.disagreement.mean(axis=1), []
        for apart in (len(self.clip) // (2 * count), 1):
            for t in np.argsort(-total, kind="stable").tolist():
                if len(found) < count and all(abs(t - other) >= apart for other in found):
                    found.append(t)
        return sorted(found)

    def table(self) -> pd.DataFrame:
        """A row per strategy: with truth J per object, its mean, and J&F where F is known; agreement (mean IoU with the others), of one
        strategy NaN; s/frame, MB and, where there is a device, MB of it."""
        import pandas as pd

        kept = [t for t in range(len(self.clip)) if t not in self.skip]
        rows = {}
        for name, run in self.runs.items():
            row: dict[str, float] = {}
            if run.report:
                row |= {f"J {obj}": run.report.J[obj] for obj in self.ids} | {"J": run.report.mean}
                if f := getattr(run.report, "F", None):
                    row["J&F"] = (run.report.mean + float(np.mean(list(f.values())))) / 2
            others = [iou[kept].mean() for pair, iou in self.pairs.items() if name in pair and kept]
            row |= {"agreement": float(np.mean(others)) if others else np.nan, "s/frame": run.seconds, "MB": run.memory}
            rows[name] = row | ({} if np.isnan(run.gpu) else {"GPU MB": run.gpu})
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("strategy")

    # -- pictures ----------------------------------------------------------------------------------------------------------

    def contact_sheet(
        self, frames: Sequence[int] | None = None, *, colors: Mapping[int, Color] | None = None, width: int = 1280
    ) -> np.ndarray:
        """A row per strategy, the truth first, a column per frame, by default where they disagree most: (H, `width`, 3) uint8."""
        from .show import contact_sheet

        frames = self.frames() if frames is None else list(frames)
        sheets = [
            contact_sheet(
                self.clip, masks, frames, columns=len(frames), width=width, titles=[f"{name}, frame {t}" for t in frames], colors=colors
            )
            for name, masks in self._shown().items()
        ]  # fmt: skip
        return np.concatenate(sheets)

    def video(self, path: str | Path, *, colors: Mapping[int, Color] | None = None, width: int = 1280) -> Path:
        """All strategies, and the truth, in one film, synchronised."""
        from .paint import overlay
        from .show import contact_sheet
        from .video import write_video

        shown = self._shown()
        columns = min(len(shown), 1 if len(shown) == 1 else 2 if len(shown) <= 4 else 3)

        def pictures() -> Iterator[np.ndarray]:
            for image, *labels in zip(self.clip, *shown.values(), strict=True):
                cells = [overlay(image, of_run, colors) for of_run in labels]
                yield contact_sheet(cells, frames=range(len(cells)), columns=columns, width=width, titles=list(shown))

        return write_video(path, pictures(), self.clip.fps, None if self.clip.rate_is_constant else self.clip.times)

    def plot(self, width: float = 8.0) -> Figure:
        """Over time: with truth J of each strategy, a panel per object; and below it how much the strategies disagree."""
        from .show import _figure

        judged = {name: run.report for name, run in self.runs.items() if run.report}
        panels = [*(self.ids if judged else ()), "disagreement"]
        figure = _figure(width, 0.5 + 1.7 * len(panels))
        first = None
        for i, panel in enumerate(panels):
            first = axes = figure.add_subplot(len(panels), 1, i + 1, sharex=first, ylim=(-0.02, 1.02))
            if panel == "disagreement":
                for j, obj in enumerate(self.ids):
                    axes.plot(
                        self.disagreement[:, j], color="0.2", linestyle=("-", "--", ":", "-.")[j % 4], label=f"object {obj}"
                    )
                axes.legend(fontsize=8, frameon=False, ncols=6)
                axes.set_ylabel("disagreement", fontsize=9)
            else:
                for j, (name, report) in enumerate(judged.items()):
                    shown = report.frames[panel]
                    axes.plot(list(shown), list(shown.values()), color=f"C{j}", linewidth=1.5, label=name if i == 0 else None)
                axes.set_ylabel(f"J, object {panel}", fontsize=9)
            axes.grid(color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelbottom=i == len(panels) - 1, labelsize=8)
        axes.set_xlabel("frame", fontsize=9)
        if judged:
            handles = figure.axes[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside upper left", ncols=6, fontsize=8, frameon=False)
        return figure

    def _shown(self) -> dict[str, Masks]:
        shown = {name: run.masks for name, run in self.runs.items()}
        if self.truth is None:
            return shown
        return {
            "ground truth": Masks(np.where(np.isin(of_frame, self.ids), of_frame, np.uint8(0)) for of_frame in self.truth),
            **shown,
        }

    # -- to keep -----------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """The table, the frames of disagreement and all values per frame, for JSON; NaN is None."""
        table = self.table().to_dict(orient="index")
        return {
            "about": {
                **self.about,
                "judged by": "ground truth" if self.truth is not None else "agreement among the strategies, not accuracy",
            },
            "strategies": {name: {k: None if np.isnan(v) else v for k, v in row.items()} for name, row in table.items()},
            "disagree most": self.frames(),
            "disagreement": {str(obj): self.disagreement[:, i].tolist() for i, obj in enumerate(self.ids)},
            "J": {name: {str(k): v for k, v in run.report.frames.items()} for name, run in self.runs.items() if run.report},
        }

    def save(self, folder: str | Path, *, colors: Mapping[int, Color] | None = None) -> Path:
        """report.json, comparison.csv, index.html with contact_sheet.png, over_time.png and side_by_side.mp4, and masks/STRATEGY/*.png."""
        from .show import png

        folder = Path(folder)
        if self.out is None or folder.resolve() != self.out.resolve():
            for name, run in self.runs.items():
                run.masks.save(folder / "masks" / _file(name), overwrite=True)
        self.video(folder / "side_by_side.mp4", colors=colors)
        for name, content in {
            "report.json": json.dumps(self.as_dict(), indent=1, default=repr).encode(),
            "comparison.csv": self.table().to_csv().encode(),
            "contact_sheet.png": png(self.contact_sheet(colors=colors)),
            "over_time.png": self.plot()._repr_png_(),
            "index.html": self._page().encode(),
        }.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        return folder

    def _repr_html_(self) -> str:
        return self.table().to_html(float_format="{:.3f}".format, na_rep="")

    def _page(self) -> str:
        judged = "J against ground truth." if self.truth is not None else "No ground truth: agreement, not accuracy."
        links = "".join(f'<li><a href="masks/{_file(name)}/">{html.escape(name)}</a></li>' for name in self.runs)
        return f"""<!doctype html><meta charset="utf-8">{PAGE}
<style>body{{font:16px/1.5 system-ui;max-width:1300px;margin:2em auto;padding:0 1em}}img,video{{max-width:100%}}
table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:right;border:0;border-bottom:1px solid #ddd}}</style>
<h1>{html.escape(self.clip.name)}</h1>
<p>{len(self.clip)} frames of {self.clip.width}×{self.clip.height}. {judged}</p>
{self._repr_html_()}
<video src="side_by_side.mp4" controls autoplay loop muted></video>
<h2>Where they disagree most</h2><img src="contact_sheet.png" alt="strategies on the frames where they disagree most">
<img src="over_time.png" alt="quality and disagreement over time">
<p><a href="report.json">report.json</a>, <a href="comparison.csv">comparison.csv</a>, masks:</p><ul>{links}</ul>
"""


def compare(
    clip: Clip,
    prompts: Prompts | Mapping[int, Any],
    by: Sequence[str] | Mapping[str, str | Strategy] = ("flow", "sam"),
    truth: Masks | np.ndarray | str | Path | None = None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    aux: Sequence[int] = (),
    direction: str = "forward",
    out: str | Path | None = None,
    show_progress: bool = True,
) -> Comparison:
    """Propagates the same prompts by every strategy in `by`, names or {label: name or strategy}, one after the other.

    `settings` {strategy: {name: value}} are also those of its refinements: {"xmem": {"size": 240}} holds for xmem+refine too. `truth`:
    ground truth of the clip, for J on all frames without a prompt. With `out`, masks lie in out/masks/STRATEGY, and a strategy that an
    earlier call has finished there, with the same clip, prompts and settings, is not run again; `Comparison.save` adds the page.

    `InputError` before the first frame: an unknown strategy or setting, a checkpoint that is not there, truth of another clip.
    """
    clip = clip if isinstance(clip, Clip) else Clip(clip)
    prompts = Prompts.of(prompts)
    if clip.length is None:
        raise InputError("a clip of known length", "frames from an iterator", "save its frames first: clip.save_frames")
    prompts.check(clip.length, clip.height, clip.width)
    truth = truth if truth is None or isinstance(truth, Masks) else Masks(truth)
    if truth is not None and truth.shape != (len(clip), clip.height, clip.width):
        raise InputError(f"truth of {len(clip)} frames of {clip.width}×{clip.height}", repr(truth), "give that of this clip")
    chosen = {name: settled(strategy) for name, strategy in _strategies(by, settings or {}).items()}
    ids, skip = tuple(sorted(set(prompts.ids) - set(aux))), frozenset(prompts)
    if not ids or len(skip) == len(clip):
        asked = f"prompts of {list(prompts.ids)} on {len(skip)} of {len(clip)} frames, aux {list(aux)}"
        raise InputError("an object to compare on a frame without a prompt", asked, "prompt fewer frames, or more objects")
    known = _Kept(None if out is None else Path(out) / "masks", clip, prompts, direction, aux)
    for name, strategy in chosen.items():
        if not known.has(name, strategy):
            strategy.tracker((clip.height, clip.width), len(clip))  # is its model there?
    known.begin(name for name, strategy in chosen.items() if not known.has(name, strategy))
    runs = {}
    for name, strategy in chosen.items():
        run = known.get(name, strategy)
        if run is None:
            known.forget(name)
            strategy.tracker((clip.height, clip.width), len(clip))  # so that loading is not timed
            began = _settled_memory()
            with _Peak() as peak:
                started = time.perf_counter()
                results = stream(clip, prompts, strategy, direction=direction, aux=aux)
                results = progress(results, total=clip.length, label=name, show=show_progress)
                masks = collect(results, clip, out=known.folder(name), overwrite=True)
                seconds = (time.perf_counter() - started) / len(clip)
            run = Run(masks, seconds, max(0.0, peak.resident - began), peak.gpu)
            known.put(name, strategy, run)
        runs[name] = run
    if truth is not None:
        for name, run in runs.items():
            report = evaluate(run.masks, truth, ids=ids, skip=tuple(skip), by=name, seconds_per_frame=run.seconds)
            runs[name] = replace(run, report=report)
    asked = {
        "clip": str(clip.source), "frames": len(clip), "size": [clip.width, clip.height], "aux": list(aux), "direction": direction,
        "strategies": {name: described(strategy) for name, strategy in chosen.items()},
    }  # fmt: skip
    return Comparison(clip, runs, ids, skip, truth, asked, None if out is None else Path(out))


def _strategies(by: Any, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Strategy]:
    named = dict(by) if isinstance(by, Mapping) else {name: name for name in by}
    if not named or isinstance(by, str):
        raise InputError("a list of strategies", repr(by), "for example by=['flow', 'sam']")
    bases = {*named, *(name.partition("+")[0] for name in named)}
    if strange := set(settings) - bases:
        raise InputError("settings of " + ", ".join(named), sorted(strange), "name a strategy that is compared")
    return {
        name: get(kind, **{**settings.get(name.partition("+")[0], {}), **settings.get(name, {})})
        for name, kind in named.items()
    }


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9+._-]", "_", name)


def _text(strategy: Strategy) -> str:
    """All that a strategy's masks depend on, its checkpoints' hashes included."""
    return json.dumps(described(strategy), sort_keys=True, default=repr)


class _Kept:
    """Finished runs in `at`/STRATEGY, with a note beside them that says what was run."""

    def __init__(self, at: Path | None, clip: Clip, prompts: Prompts, direction: str, aux: Sequence[int]):
        self.at, self.frames = at, clip.length
        if at is not None:
            asked = [clip.sha256, clip.names, [clip.height, clip.width], prompts.to_json(), direction, sorted(aux)]
            self.asked = hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def folder(self, name: str) -> Path | None:
        return None if self.at is None else self.at / _file(name)

    def _note(self, name: str) -> Path:
        return self.at / f"{_file(name)}.json"

    def has(self, name: str, strategy: Strategy) -> bool:
        note = self._told(name)
        if note is None or not self.folder(name).is_dir() or len(Masks(self.folder(name))) != self.frames:
            return False
        return note["asked"] == self.asked and note["strategy"] == _text(strategy)

    def _told(self, name: str) -> dict[str, Any] | None:
        """What the note says; None where there is none that can be read."""
        if self.at is None:
            return None
        try:
            return json.loads(self._note(name).read_text())
        except (OSError, ValueError):
            return None

    def get(self, name: str, strategy: Strategy) -> Run | None:
        if not self.has(name, strategy):
            return None
        note = self._told(name)
        return Run(
            Masks(self.folder(name)), note["seconds"], note["memory"], float("nan") if note["gpu"] is None else note["gpu"]
        )

    def begin(self, names: Iterable[str]) -> None:
        """`InputError` where there are masks under these names that no comparison has made; they are to be replaced."""
        if self.at is None:
            return
        mark = self.at / MARK
        for folder in map(self.folder, names):
            if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
                raise InputError(f"{folder} to be new, or of an earlier comparison", "other files", "choose another folder")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def forget(self, name: str) -> None:
        """Before masks are replaced, so that no note ever stands beside masks of something else."""
        if self.at is not None:
            self._note(name).unlink(missing_ok=True)

    def put(self, name: str, strategy: Strategy, run: Run) -> None:
        if self.at is not None:
            note = {"asked": self.asked, "strategy": _text(strategy), "seconds": run.seconds, "memory": run.memory}
            with replacing(self._note(name)) as temporary:
                temporary.write_text(json.dumps({**note, "gpu": None if np.isnan(run.gpu) else run.gpu}))


# -- memory --------------------------------------------------------------------------------------------------------------


def _settled_memory() -> float:
    """Resident memory in MB after what was freed has gone back to the system, so that nobody runs in what others left."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc can
        ctypes.CDLL(None).malloc_trim(0)
    return _resident()


def _resident() -> float:
    """This process's resident memory in MB."""
    import psutil

    return psutil.Process(os.getpid()).memory_info().rss / 2**20


class _Peak:
    """The most memory that is held inside the `with`: `resident` MB of the process, looked at every 10 ms, and `gpu` MB that torch
    holds on CUDA."""

    resident, gpu = 0.0, float("nan")

    def __enter__(self) -> _Peak:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vosnb-memory", daemon=True)
        self._cuda = torch.cuda if (torch := sys.modules.get("torch")) and torch.cuda.is_available() else None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        self.resident = _resident()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        if self._cuda:
            self.gpu = self._cuda.max_memory_allocated() / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.resident = max(self.resident, _resident())
