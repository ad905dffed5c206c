"""How good masks are, against ground truth: J and F per object, frame, sequence and data set, by the rules of each benchmark.

`evaluate` scores one sequence or, with a `protocol`, a folder of sequences; its `Report` holds every frame's score and writes the
tables; a `Comparison` sets several reports against one another. What J and F are is in `metrics`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from html import escape
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import InputError, few
from .files import frame_numbers, replacing, replacing_folder
from .masks import LARGEST, Masks, _decode
from .metrics import ABSENT, Score, episodes, ids_in, jaccard, scores, statistics, variation

try:  # twice as quick
    from zlib_ng import zlib_ng as zlib
except ImportError:
    import zlib

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROTOCOLS", "Comparison", "Protocol", "Report", "Track", "evaluate", "jaccard"]

BLOCK = 32  # frames that a process takes at a time


@dataclass(frozen=True)
class Protocol:
    """Which objects of a sequence are scored, and on which frames.

    `objects`: "first", ids from 1 to the largest on the first frame, those between that never occur included; "one", all that is not
    background as one object; "listed", those of meta.json or, without one, all that occur in the truth; "seen", those that occur on the
    frames scored.  `frames`: "inner", all but the sequence's first and last; "own", all but the first and last of each object's;
    "later", each object's after its first.  `leading`: are frames scored on which an object has not yet occurred in truth or masks?
    `void`: a value that is background.  `f_dot`: J and F as the MOSEv2 scorer has them.  `wrap`: the decay as DAVIS' code has it
    beyond 256 frames.
    """

    name: str
    objects: str = "seen"
    frames: str = "inner"
    leading: bool = True
    void: int | None = 255
    f_dot: bool = False
    wrap: bool = False


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("davis2016", "one", void=None),
        Protocol("davis2017", "first"),
        # The server's code is not public. This is what is known of it: each object, from its first appearance on.
        Protocol("youtube-vos", "listed", "later"),
        Protocol("lvos", "listed", "own"),
        Protocol("mose", "listed", f_dot=True),
        Protocol("sa-v", leading=False, void=None),
    )
}


@dataclass(frozen=True)
class Track:
    """One object's scores. `frames`: the names of the T frames scored; `scores`: (T, 5) float, columns as in `metrics.Score`.

    `numbers`: the T frames' numbers in the clip, from their names where these are numbers (frames that are not scored, such as the
    prompted one, are not among them).  `group`: "seen", "unseen" or "", as data sets divide what a model was trained on.
    """

    sequence: str
    object: int | str
    frames: tuple[str, ...]
    scores: np.ndarray
    numbers: tuple[int, ...]
    group: str = ""

    @property
    def key(self) -> int | str:
        """SEQUENCE_OBJECT, or the object alone where there is one sequence without a name."""
        return f"{self.sequence}_{self.object}" if self.sequence else self.object

    @property
    def j(self) -> np.ndarray:
        return self.scores[:, 0]

    @property
    def f(self) -> np.ndarray:
        return self.scores[:, 1]

    @property
    def f_dot(self) -> np.ndarray:
        return self.scores[:, 2]

    @property
    def absent(self) -> np.ndarray:
        """(T,) bool: is the object not there, in truth? (A sequence without masks is not read: its areas are NaN.)"""
        return self.scores[:, 4] == 0


@dataclass(frozen=True)
class Report:
    """What was scored, and how good it was. Keys are `Track.key`; `about` is what was run (free form, goes into the JSON).

    `notes` say what a reader should know: what was left out, what was not found. `read(track, t)` gives the two (H, W) bool masks of a
    frame, found and true; None where they are no more at hand.
    """

    tracks: tuple[Track, ...]
    protocol: Protocol | None = None
    notes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    read: Callable[[Track, int], tuple[np.ndarray, np.ndarray]] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def J(self) -> dict[int | str, float]:
        """{object: mean over its frames}."""
        return {t.key: float(np.mean(t.j)) for t in self.tracks}

    @cached_property
    def F(self) -> dict[int | str, float]:
        """{object: mean over its frames}."""
        return {t.key: float(np.mean(t.f)) for t in self.tracks}

    @property
    def frames(self) -> dict[int | str, dict[int, float]]:
        """{object: {frame: its J}}; frames that are not scored, such as the prompted one, are not in it."""
        return {t.key: dict(zip(t.numbers, t.j.tolist(), strict=True)) for t in self.tracks}

    @property
    def mean(self) -> float:
        """The mean of the objects' J."""
        return float(np.mean(list(self.J.values())))

    @property
    def sequences(self) -> dict[str, dict[str, float]]:
        """{sequence: {"J": mean over its objects, "F": …, "J&F": …}}."""
        found: dict[str, list[Track]] = {}
        for track in self.tracks:
            found.setdefault(track.sequence, []).append(track)
        return {name: _means(tracks) for name, tracks in found.items()}

    @cached_property
    def summary(self) -> dict[str, float]:
        """The data set's numbers, from 0 to 1, the one that ranks methods first: means over objects, never over frames.

        Always J&F, and mean, recall and decay of J and of F. With MOSE's F first its own: J&F-dot, F-dot, and these where objects had
        disappeared (_d) and reappeared (_r). With seen and unseen groups first the mean of their four numbers, G, and each. For
        LVOS also V, and with groups J, F and V are the means of the two groups.
        """
        j, f = ([statistics(v, wrap=bool(self.protocol and self.protocol.wrap)) for v in values] for values in self._values())
        (jm, jr, jd), (fm, fr, fd) = np.mean(j, axis=0).tolist(), np.mean(f, axis=0).tolist()
        found = {
            "J&F-Mean": (jm + fm) / 2,
            "J-Mean": jm,
            "J-Recall": jr,
            "J-Decay": jd,
            "F-Mean": fm,
            "F-Recall": fr,
            "F-Decay": fd,
        }
        if self.protocol and self.protocol.f_dot:
            f_dot = float(np.mean([np.mean(t.f_dot) for t in self.tracks]))
            own = {"J&F-dot": (jm + f_dot) / 2, "F-dot": f_dot}
            for suffix, spans in (("_d", [gone for gone, _ in self._episodes]), ("_r", [back for _, back in self._episodes])):
                parts = [
                    [np.mean([np.mean(values[s]) for s in own_spans]) for values in (t.j, t.f_dot)]
                    for t, own_spans in zip(self.tracks, spans, strict=True)
                    if own_spans
                ]
                own[f"J&F-dot{suffix}"] = float(np.mean(parts)) if parts else math.nan
            found = own | found
        if self.protocol and self.protocol.name == "lvos":
            found["V"] = float(np.mean([variation(t.j, t.f) for t in self.tracks]))
        groups = {g: [t for t in self.tracks if t.group == g] for g in ("seen", "unseen")}
        if all(groups.values()):
            parts = {f"{k}_{g}": v for g, tracks in groups.items() for k, v in _means(tracks).items() if k != "J&F"}
            if "V" in found:
                v = {f"V_{g}": float(np.mean([variation(t.j, t.f) for t in tracks])) for g, tracks in groups.items()}
                found, parts = found | {"V": float(np.mean(list(v.values())))}, parts | v
            four = [parts[f"{k}_{g}"] for g in groups for k in "JF"]
            found = {"G": float(np.mean(four)), **parts, **found}
        return found

    @property
    def headline(self) -> tuple[str, float]:
        """The number that ranks methods under this protocol, and its name."""
        return next(iter(self.summary.items()))

    def _values(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [t.j for t in self.tracks], [t.f for t in self.tracks]

    @cached_property
    def _episodes(self) -> list[tuple[list[slice], list[slice]]]:
        return [episodes(t.absent) for t in self.tracks]

    # -- to look at and to keep --------------------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """One row per object: sequence, object, frames, J and F with recall and decay, J&F."""
        import pandas as pd

        rows = []
        for t in self.tracks:
            j, f = statistics(t.j), statistics(t.f)
            rows.append([t.sequence, t.object, len(t.frames), (j.mean + f.mean) / 2, *j, *f])
        columns = ["sequence", "object", "frames", "J&F", "J", "J recall", "J decay", "F", "F recall", "F decay"]
        return pd.DataFrame(rows, columns=columns)

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON, in full precision; NaN is None."""
        objects = [
            {
                "sequence": t.sequence, "object": t.object, "group": t.group, "frames": list(t.frames), "numbers": list(t.numbers),
                "J": t.j.tolist(), "F": t.f.tolist(),
                **({"F-dot": t.f_dot.tolist()} if self.protocol and self.protocol.f_dot else {}),
                "area": t.scores[:, 3].tolist(), "true area": t.scores[:, 4].tolist(),
            }
            for t in self.tracks
        ]  # fmt: skip
        found = {
            "mean J": self.mean, "protocol": self.protocol and asdict(self.protocol), "summary": self.summary, "J": self.J, "F": self.F,
            "frames": self.frames, "sequences": self.sequences, "notes": list(self.notes), "about": self.about, "objects": objects,
        }  # fmt: skip
        return _without_nan(found)

    def save(self, path: str | Path, *, split: str = "val", overwrite: bool = False, images: str | Path | None = None) -> Path:
        """`path` ending in .json: all of it as JSON. Else a folder:

        - global_results-SPLIT.csv, per-sequence_results-SPLIT.csv: byte for byte as davis2017-evaluation writes them
        - per-frame.csv: sequence, object, frame, J, F, the areas
        - report.json, and index.html with the curves and the worst frames. `images`: the folder of the frames to draw these on.
        """
        path = Path(path)
        if path.suffix == ".json":
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(self.as_dict(), indent=1, default=str))
            return path
        from .report import page

        with replacing_folder(path, overwrite) as folder:
            (folder / f"global_results-{split}.csv").write_text(self._global_csv())
            (folder / f"per-sequence_results-{split}.csv").write_text(self._sequence_csv())
            (folder / "per-frame.csv").write_text(self._frame_csv())
            (folder / "report.json").write_text(json.dumps(self.as_dict(), indent=1, default=str))
            (folder / "index.html").write_text(page(self, images), encoding="utf-8")
        return path

    def _global_csv(self) -> str:
        names = ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
        return _csv([names, [_three(self.summary[name]) for name in names]])

    def _sequence_csv(self) -> str:
        return _csv(
            [["Sequence", "J-Mean", "F-Mean"], *([t.key, _three(self.J[t.key]), _three(self.F[t.key])] for t in self.tracks)]
        )

    def _frame_csv(self) -> str:
        rows: list[list[Any]] = [["sequence", "object", "frame", "J", "F", "area", "true area"]]
        for t in self.tracks:
            for name, (j, f, _, area, true) in zip(t.frames, t.scores.tolist(), strict=True):
                rows.append([t.sequence, t.object, name, repr(j), repr(f), f"{area:.0f}", f"{true:.0f}"])
        return _csv(rows)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{k}</td><td>{self.J[k]:.3f}</td><td>{self.F[k]:.3f}</td></tr>" for k in self.J)
        mean = f"<tr><th>mean</th><th>{self.mean:.3f}</th><th>{np.mean(list(self.F.values())):.3f}</th></tr>"
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<table><tr><th>object</th><th>J</th><th>F</th></tr>{rows}{mean}</table>{notes}"


def _means(tracks: Iterable[Track]) -> dict[str, float]:
    tracks = list(tracks)
    j, f = (float(np.mean([np.mean(v) for v in values])) for values in ([t.j for t in tracks], [t.f for t in tracks]))
    return {"J&F": (j + f) / 2, "J": j, "F": f}


def _three(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# -- the verb ------------------------------------------------------------------------------------------------------------


def evaluate(
    masks: Any,
    truth: Any,
    *,
    protocol: str | Protocol | None = None,
    ids: Sequence[int] | None = None,
    skip: Sequence[int] = (0,),
    sequences: Iterable[str] | None = None,
    unseen: Collection[str] | None = None,
    missing: str = "refuse",
    jobs: int = 1,
    **about: Any,
) -> Report:
    """J and F of every object.

    Without `protocol`: one sequence, `Masks`, arrays (T, H, W) or folders of PNGs; the objects `ids`, by default those of the truth; the
    frames but those in `skip` (the prompted ones, by default the first).

    With a `protocol`, one of `PROTOCOLS` or your own: folders that hold a folder of PNGs per sequence, or one sequence's PNGs. Frames
    are matched by name, so that the truth may be sparse. An Annotations folder inside either is found, and meta.json or
    valid_meta.json in or beside it. `sequences` chooses and orders them, by default all, sorted. `unseen`: names of sequences, or of
    meta.json's categories, that count as unseen. `missing`: "refuse"; "empty", a missing mask is an empty one, and a missing
    sequence scores 0; "skip", missing sequences are left out. `jobs`: processes.

    `InputError`: masks of another size, in colour or damaged; missing ones; nothing to score; an unknown protocol.
    """
    if protocol is None:
        return _evaluate_one(masks, truth, ids, skip, about)
    if ids is not None or tuple(skip) != (0,):
        raise InputError(
            "ids and skip without a protocol", f"both, {ids=}, {skip=}", "leave them out: a protocol says what it scores"
        )
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise InputError("a protocol: " + ", ".join(PROTOCOLS), repr(protocol), "choose one of these")
        protocol = PROTOCOLS[protocol]
    if missing not in ("refuse", "empty", "skip"):
        raise InputError("missing 'refuse', 'empty' or 'skip'", repr(missing), "choose one of these")
    begun = time.monotonic()
    found_at, truth_at = _root(Path(masks), "masks"), _root(Path(truth), "ground truth")
    notes: list[str] = []
    if found_at.resolve() == truth_at.resolve():
        notes.append("The masks are the ground truth itself: every score is 1.")
    meta = _meta(truth_at) if protocol.objects == "listed" else {}
    plans = list(_plans(protocol, found_at, truth_at, sequences, meta, missing, notes))
    _refuse_missing([path for plan in plans for path in plan.missing], missing)
    tracks: list[Track] = []
    for plan, found in zip(plans, _scored(plans, protocol, jobs), strict=True):
        tracks += _tracks(plan, found, protocol, meta.get(plan.sequence, {}), unseen, notes)
    if not tracks:
        raise InputError(
            "at least one object and one frame to score",
            "; ".join(filter(None, [f"{len(plans)} sequences in {truth_at}", few(notes)])),
            f"check the folder, and whether {protocol.name} is its protocol"
            + ("; masks of 0 and 255 are scored by davis2016" if protocol.objects == "first" else ""),
        )
    scored = list(dict.fromkeys(t.sequence for t in tracks))
    about = {
        "masks": str(found_at), "truth": str(truth_at), "sequences": scored,
        "sequences sha256": sha256("\n".join(scored).encode()).hexdigest(),
        "objects": len(tracks), "frames": len({(t.sequence, name) for t in tracks for name in t.frames}),
        "seconds": round(time.monotonic() - begun, 3), **about,
    }  # fmt: skip
    return Report(tuple(tracks), protocol, tuple(notes), about, partial(_read_pair, found_at, truth_at, protocol))


def _evaluate_one(masks: Any, truth: Any, ids: Sequence[int] | None, skip: Sequence[int], about: dict[str, Any]) -> Report:
    masks, truth = (m if isinstance(m, Masks) else Masks(m) for m in (masks, truth))
    if masks.shape != truth.shape:
        raise InputError(
            f"masks of the truth's shape {truth.shape} (T, H, W)", masks.shape, "compare the same frames at the same size"
        )
    ids = tuple(truth.ids) if ids is None else tuple(ids)
    kept = [t for t in range(len(truth)) if t not in set(skip)]
    if not ids or not kept:
        raise InputError(
            "at least one object and one frame to compare", f"objects {ids}, {len(kept)} frames", "check the ground truth"
        )
    found = [scores(masks[t], truth[t], ids) for t in kept]
    names = tuple(truth.names[t] for t in kept)
    numbers = frame_numbers(truth.names)
    tracks = tuple(
        Track("", obj, names, np.array([frame[obj] for frame in found]), tuple(numbers[t] for t in kept)) for obj in ids
    )
    never = [t.object for t in tracks if t.scores[:, 4].any() and not t.scores[:, 3].any()]
    notes = (f"{_never(never)}: prompt it, or choose what counts: ids=(…), --object on the command line.",) if never else ()

    def read(track: Track, t: int) -> tuple[np.ndarray, np.ndarray]:
        return masks[kept[t]] == track.object, truth[kept[t]] == track.object

    return Report(tracks, None, notes, about, read)


# -- what there is to score ----------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What to read of one sequence; of one object of it where each has its own folder."""

    sequence: str
    object: str | None  # the name of the object's folder
    names: tuple[str, ...]  # all frames of the truth
    pairs: dict[str, tuple[Path | None, Path]]  # per frame scored: the mask (None: scores as empty) and its truth
    ids: tuple[int, ...] | None  # None: whichever occur
    missing: tuple[Path, ...]
    lost: bool  # there are no masks of this sequence: it scores 0


def _plans(
    protocol: Protocol,
    found_at: Path,
    truth_at: Path,
    sequences: Iterable[str] | None,
    meta: dict[str, Any],
    missing: str,
    notes: list[str],
) -> Iterator[_Plan]:
    if _pngs(truth_at):
        here = {"": truth_at}
        found = {"": found_at if _pngs(found_at) or not (found_at / truth_at.name).is_dir() else found_at / truth_at.name}
    else:
        names = list(sequences) if sequences is not None else sorted(p.name for p in truth_at.iterdir() if p.is_dir())
        here, found = {name: truth_at / name for name in names}, {name: found_at / name for name in names}
        extra = sorted({p.name for p in found_at.iterdir() if p.is_dir() and not p.name.startswith(".")} - {*names})
        if extra and sequences is None:
            notes.append(f"The ground truth has no sequence {few(extra)}: not scored.")
    for name, folder in here.items():
        lost = not found[name].is_dir()
        if lost and missing == "skip":
            notes.append(f"{name}: there are no masks of it; left out.")
            continue
        parts: dict[str | None, tuple[Path, Path]] = {None: (found[name], folder)}
        if not folder.is_dir() or not _pngs(folder):
            subfolders = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
            parts = {sub: (found[name] / sub, folder / sub) for sub in subfolders if _pngs(folder / sub)}
            if not parts:
                raise InputError(
                    "a folder of PNG masks", f"{folder}, which holds none", "check the path, and the list of sequences"
                )
        for obj, (masks, truth) in parts.items():
            frames = _pngs(truth)
            inner = frames[1:-1] if protocol.frames == "inner" else frames
            if not inner:
                notes.append(
                    f"{name or folder.name}: {len(frames)} frames, of which the first and last do not count; left out."
                )
                continue
            have = {*_pngs(masks)} if masks.is_dir() else set()
            pairs = {f: (masks / f"{f}.png" if f in have else None, truth / f"{f}.png") for f in inner}
            gone = (
                (masks,) if not masks.is_dir() else tuple(masks / f"{f}.png" for f, (path, _) in pairs.items() if path is None)
            )
            ids = None
            if obj is not None or protocol.objects == "one":
                ids = (1,)
            elif protocol.objects == "first":
                ids = tuple(range(1, max(ids_in(_read(truth / f"{frames[0]}.png", protocol.void)), default=0) + 1))
            elif name in meta:
                ids = tuple(sorted(int(i) for i in meta[name]))
            yield _Plan(name, obj, tuple(frames), pairs, ids, gone, lost)


def _pngs(folder: Path) -> list[str]:
    """The names of its frames, sorted as strings."""
    return sorted(p.stem for p in folder.iterdir() if p.suffix == ".png" and not p.name.startswith("."))


def _root(folder: Path, what: str) -> Path:
    """The folder that holds the sequences: `folder`, or what it has in DAVIS' or YouTube-VOS' places."""
    if not folder.is_dir():
        raise InputError(f"a folder of PNG masks, {what}", f"{folder}, which is none", "check the path")
    for inside in ("Annotations", "Annotations_6fps", "480p"):
        if not _pngs(folder) and (folder / inside).is_dir():
            folder = folder / inside
    return folder


def _meta(truth_at: Path) -> dict[str, dict[str, Any]]:
    """{sequence: {object: what is known of it}} of meta.json (YouTube-VOS, MOSE) or valid_meta.json (LVOS), {} without one."""
    names = ("meta.json", "valid_meta.json", "test_meta.json")
    for path in (folder / name for folder in (truth_at, truth_at.parent) for name in names):
        if path.is_file():
            try:
                videos = json.loads(path.read_text())["videos"]
                objects = {name: video["objects"] for name, video in videos.items()}
                return {n: found if isinstance(found, dict) else {key: {} for key in found} for n, found in objects.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    '{"videos": {NAME: {"objects": …}}}', f"{path} ({error!r})", "take the data set's own file"
                ) from error
    return {}


def _refuse_missing(paths: list[Path], missing: str) -> None:
    if paths and missing != "empty":
        raise InputError(
            "masks of every frame that is scored", f"none at {few(map(str, paths))}",
            "make them, or say missing='empty' (such a mask is empty) or 'skip' (such a sequence is left out)",
        )  # fmt: skip


def _never(objects: list[int | str]) -> str:
    return f"object {few(objects)} is nowhere in the masks and lowers the mean"


# -- reading and scoring frames ------------------------------------------------------------------------------------------


def _read(path: Path, void: int | None = None) -> np.ndarray:
    """The values of a PNG label map, (H, W) uint8, as they are; `void` becomes 0.

    Indexed PNGs as Pillow, DAVIS' tools and we write them have neither filters nor interlacing: they are only inflated, in a third
    of the time that a PNG library takes.
    """
    try:
        labels = _inflated(path.read_bytes())
    except OSError:
        labels = None
    if labels is None:
        labels, _ = _decode(path, None)
        if labels.ndim == 3:
            raise InputError("an indexed or grey PNG", f"{path}, which is in colour", "write ids, not the colours of a palette")
    if void is not None and labels.max() >= void:
        labels = np.where(labels == void, np.uint8(0), labels)
    return labels


def _inflated(data: bytes) -> np.ndarray | None:
    """(H, W) uint8, or None where it takes more than inflating. Of the two checksums only that of the few compressed bytes is used."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[24:29] != b"\x08\x03\x00\x00\x00":
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    parts, at, size = [], 8, height * (width + 1)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                return None
            parts.append(data[at + 8 : end])
        at = end + 4
    packed = b"".join(parts)
    if size > LARGEST or len(packed) > size:
        return None
    try:
        # room for a byte more than there is: a buffer that is full is doubled, and copied, before the end is seen
        rows = np.frombuffer(zlib.decompress(packed[2:], -zlib.MAX_WBITS, size + 1), np.uint8)
    except zlib.error:
        return None
    if rows.size != size:
        return None
    rows = rows.reshape(height, width + 1)
    return None if rows[:, 0].any() else np.ascontiguousarray(rows[:, 1:])


class _Task(NamedTuple):
    pairs: tuple[tuple[Path | None, Path], ...]
    ids: tuple[int, ...] | None  # 1 … n where these are all that count, None: whichever occur
    binary: bool
    void: int | None
    f_dot: bool


def _score_block(task: _Task) -> list[dict[int, Score]] | tuple[str, str, str]:
    """Per frame the scores of what occurs; or the three parts of an `InputError`, which itself does not pass between processes."""
    found = []
    try:
        for mask_at, truth_at in task.pairs:
            truth = _read(truth_at, task.void)
            mask = np.zeros_like(truth) if mask_at is None else _read(mask_at, task.void)
            if mask.shape != truth.shape:
                raise InputError(
                    f"a mask of its truth's size, {truth.shape[1]}×{truth.shape[0]}", f"{mask.shape[1]}×{mask.shape[0]} in {mask_at}",
                    "make masks at the frames' own size, nearest neighbour",
                )  # fmt: skip
            if task.binary:
                mask, truth = (mask > 0).view(np.uint8), (truth > 0).view(np.uint8)
            ids = task.ids if task.ids and mask.max() <= len(task.ids) else None
            found.append(scores(mask, truth, ids, mose=task.f_dot))
    except InputError as error:
        return error.expected, str(error.got), error.do
    return found


def _scored(plans: Sequence[_Plan], protocol: Protocol, jobs: int) -> Iterator[dict[str, dict[int, Score]]]:
    """Per plan {frame: {object: score}}, of the objects that occur there."""
    tasks: list[tuple[int, tuple[str, ...], _Task]] = []
    for number, plan in enumerate(plans):
        names, binary = tuple(plan.pairs), plan.object is not None or protocol.objects == "one"
        ids = plan.ids if binary or protocol.objects == "first" else None
        for at in range(0, len(names), BLOCK):
            block = names[at : at + BLOCK]
            pairs = tuple(plan.pairs[name] for name in block)
            tasks.append((number, block, _Task(pairs, ids, binary, protocol.void, protocol.f_dot)))
    found: list[dict[str, dict[int, Score]]] = [{} for _ in plans]
    work = [task for _, _, task in tasks]
    if jobs > 1 and len(work) > 1:
        with ProcessPoolExecutor(min(jobs, len(work)), get_context("spawn")) as pool:
            results: Iterable[Any] = list(pool.map(_score_block, work))
    else:
        results = map(_score_block, work)
    for (number, block, _), result in zip(tasks, results, strict=True):
        if isinstance(result, tuple):
            raise InputError(*result)
        found[number].update(zip(block, result, strict=True))
    yield from found


def _read_pair(found_at: Path, truth_at: Path, protocol: Protocol, track: Track, t: int) -> tuple[np.ndarray, np.ndarray]:
    name = f"{track.frames[t]}.png"
    own = str(track.object) if isinstance(track.object, str) else ""
    pair = []
    truth = _read(truth_at / track.sequence / own / name, protocol.void)
    path = found_at / track.sequence / own / name
    mask = _read(path, protocol.void) if path.is_file() else np.zeros_like(truth)
    for labels in (mask, truth):
        pair.append(labels > 0 if own or protocol.objects == "one" else labels == track.object)
    return pair[0], pair[1]


# -- from frames to objects ----------------------------------------------------------------------------------------------


def _tracks(
    plan: _Plan,
    found: dict[str, dict[int, Score]],
    protocol: Protocol,
    meta: dict[str, Any],
    unseen: Collection[str] | None,
    notes: list[str],
) -> Iterator[Track]:
    where = plan.sequence or "the sequence"
    numbers = dict(zip(plan.names, frame_numbers(plan.names), strict=True))
    in_truth = {i for frame in found.values() for i, s in frame.items() if s.truth_area}
    in_masks = {i for frame in found.values() for i, s in frame.items() if s.area}
    ids = plan.ids
    if plan.ids is None or (plan.object is not None and protocol.objects == "seen"):
        ids = tuple(sorted(in_truth))
        if plan.object is None:
            truth_of = next(iter(plan.pairs.values()))[1].parent
            ends = (ids_in(_read(truth_of / f"{name}.png", protocol.void)) for name in (plan.names[0], plan.names[-1]))
            once = set().union(*ends) - in_truth
            if protocol.objects == "listed":  # a prompt that is never seen again counts too
                ids = tuple(sorted(in_truth | once))
            elif once:
                notes.append(f"{where}: object {few(sorted(once))} is on no frame scored; left out.")
    if plan.object is None and not plan.lost:
        if extra := sorted(in_masks - {*ids}):
            notes.append(f"{where}: the ground truth has no object {few(extra)}; ignored.")
        if never := sorted({*ids} & in_truth - in_masks):
            notes.append(f"{where}: {_never(never)}: was it prompted?")
        if protocol.objects == "first" and (phantom := sorted({*ids} - in_truth)):
            notes.append(
                f"{where}: object {few(phantom)} is on no frame scored; where it is not found it counts as 1, as in DAVIS' code."
            )
    if plan.lost:
        notes.append(f"{where}: there are no masks of it; scores 0.")
    if plan.object is not None and not ids and not plan.lost:
        notes.append(f"{where}: object {plan.object} is on no frame scored; left out.")
    for obj in ids or ():
        known = meta.get(str(obj), {})
        frames = _frames_of(obj, plan, found, protocol, known)
        if not frames:
            notes.append(f"{where}: object {obj} has no frame to score; left out.")
            continue
        rows = np.array([found[name].get(obj, ABSENT) if not plan.lost else (0, 0, 0, 0, math.nan) for name in frames], float)
        group = "" if unseen is None else "unseen" if plan.sequence in unseen or known.get("category") in unseen else "seen"
        own = tuple(numbers[name] for name in frames)
        yield Track(plan.sequence, obj if plan.object is None else plan.object, frames, rows, own, group)


def _frames_of(
    obj: int, plan: _Plan, found: dict[str, dict[int, Score]], protocol: Protocol, known: dict[str, Any]
) -> tuple[str, ...]:
    """The frames of its sequence that count for an object."""
    names = tuple(plan.pairs)
    if protocol.frames != "inner":
        if "frames" in known:  # YouTube-VOS
            own = tuple(name for name in names if name in {*known["frames"]})
        elif "frame_range" in known:  # LVOS
            own = tuple(name for name in names if known["frame_range"]["start"] <= name <= known["frame_range"]["end"])
        else:
            own = names[_begins(names, lambda name: name in found and found[name].get(obj, ABSENT).truth_area > 0) :]
        return own[1:-1] if protocol.frames == "own" else own[1:]
    if not protocol.leading:
        return names[_begins(names, lambda name: found[name].get(obj, ABSENT) != ABSENT) :]
    return names


def _begins(names: Sequence[str], holds: Callable[[str], bool]) -> int:
    return next((t for t, name in enumerate(names) if holds(name)), len(names))


# -- several methods ------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Of one method to the first: the mean over objects of what J&F gains, its 95 % interval, and on how many objects it gains or loses."""

    mean: float
    low: float
    high: float
    better: int
    worse: int


@dataclass(frozen=True)
class Comparison:
    """Several reports {name: `Report`} of the same objects on the same frames; the first is what the others are compared with.

    Intervals are of a paired bootstrap: sequences are drawn with replacement, since objects of one sequence fare alike (objects, where
    there is one sequence), `draws` times, from a fixed seed.
    """

    reports: dict[str, Report]
    draws: int = 5000

    def __post_init__(self) -> None:
        first, *others = self.reports.values()
        for name, report in zip(list(self.reports)[1:], others, strict=True):
            if {t.key: t.frames for t in report.tracks} != {t.key: t.frames for t in first.tracks}:
                raise InputError(
                    "reports of the same objects and frames",
                    f"others in {name!r}",
                    "evaluate all by one protocol, on the same sequences",
                )

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """{name: to the first}."""
        base = self._jf(next(iter(self.reports.values())))
        return {name: self._difference(self._jf(report) - base) for name, report in list(self.reports.items())[1:]}

    @staticmethod
    def _jf(report: Report) -> np.ndarray:
        order = sorted(report.J, key=str)
        return np.array([(report.J[k] + report.F[k]) / 2 for k in order])

    def _difference(self, gains: np.ndarray) -> Difference:
        tracks = sorted(next(iter(self.reports.values())).tracks, key=lambda t: str(t.key))
        names = [t.sequence for t in tracks]
        if len({*names}) == 1:
            names = [str(t.key) for t in tracks]
        _, of = np.unique(names, return_inverse=True)
        sums, counts = np.bincount(of, gains), np.bincount(of)
        drawn = np.random.default_rng(0).integers(len(sums), size=(self.draws, len(sums)))
        means = sums[drawn].sum(1) / counts[drawn].sum(1)
        low, high = np.quantile(means, (0.025, 0.975))
        return Difference(float(gains.mean()), float(low), float(high), int((gains > 0).sum()), int((gains < 0).sum()))

    def table(self) -> pd.DataFrame:
        """One row per method: its summary, then its difference to the first."""
        import pandas as pd

        rows = {
            name: {**report.summary, **(self.differences[name]._asdict() if name in self.differences else {})}
            for name, report in self.reports.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename(columns={"mean": "gain"})

    def as_dict(self) -> dict[str, Any]:
        gains = {name: difference._asdict() for name, difference in self.differences.items()}
        return _without_nan({"summary": {name: r.summary for name, r in self.reports.items()}, "differences": gains})

    def save(self, path: str | Path, *, overwrite: bool = False, images: str | Path | None = None) -> Path:
        """`path` ending in .json: the summaries and differences. Else a folder: that of each report (see `Report.save`),
        comparison.csv, comparison.json, index.html."""
        path = Path(path)
        if path.suffix == ".json":
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(self.as_dict(), indent=1))
            return path
        from .report import comparison_page

        with replacing_folder(path, overwrite) as folder:
            for name, report in self.reports.items():
                report.save(folder / name, images=images)
            (folder / "comparison.csv").write_text(self.table().to_csv(index_label="method"))
            (folder / "comparison.json").write_text(json.dumps(self.as_dict(), indent=1))
            (folder / "index.html").write_text(comparison_page(self), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return self.table().to_html(float_format="{:.3f}".format, na_rep="")
