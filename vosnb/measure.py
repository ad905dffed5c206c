"""The verb `measure`: what a fluid scientist reads off masks, per frame, in units of length and time; and how much it depends on the
strategy that made them.

Lengths come from counting, in eight directions, how often neighbouring pixels differ (Cauchy and Crofton's formula on a grid). On a
straight line this is right within 2 %, on a smooth curve within 1 %; a sharp corner loses half a pixel. The frame's edge is no outline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .files import replacing_folder
from .masks import Masks
from .paint import with_colors

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .paint import Color

__all__ = ["Measurements", "box_dimension", "crossings", "measure", "mixing_profile"]

_STEPS = ((1, 0), (2, 1), (1, 1), (1, 2), (0, 1), (-1, 2), (-1, 1), (-2, 1))  # (x, y), directions from 0° to 180°
SMALLEST = 4  # pixels: smaller boxes count the grid
LARGEST = 1 / 8  # of a line's extent: larger boxes count its ends
OFFSETS = 4  # places in x and in y where the grid of boxes may begin


@dataclass(frozen=True)
class Measurements:
    """Two tables, a row per frame and object, and per frame and pair of objects; `unit` of length, `clock` of time ("s" or "frame").

    `objects`: by, frame, name, time, object; area, x, y (centroid, from the top left corner), perimeter, parts (8-connected),
    dimension (of its outline, see `box_dimension`), vx, vy (of the centroid).  `interfaces`: by, frame, name, time, a, b; length;
    dimension; thickness (of the mixing layer, see `measure`). NaN where there is no such thing. `by`: the strategy, "" where there is one.
    """

    objects: pd.DataFrame
    interfaces: pd.DataFrame
    unit: str = "px"
    clock: str = "frame"

    def band(self) -> pd.DataFrame:
        """The spread across strategies: a row per frame, what ("1", "1–2") and quantity, with its min, median and max, and how many
        strategies know it."""
        table = self._long().dropna(subset="value").groupby(["frame", "time", "what", "quantity"], sort=False)["value"]
        return table.agg(["min", "median", "max", "count"]).reset_index()

    def plot(
        self,
        quantities: Sequence[str] = ("area", "perimeter", "length", "thickness", "dimension"),
        colors: Mapping[int, Color] | None = None,
        width: float = 8.0,
    ) -> Figure:
        """A panel per quantity over time, a line per object (dashed: per pair); of several strategies the median, in the band from the
        least to the most."""
        from .show import _figure

        band = self.band()
        shown = [q for q in quantities if (band["quantity"] == q).any()]
        if not shown:
            raise InputError("a quantity among " + ", ".join(band["quantity"].unique()), list(quantities), "choose from these")
        palette = with_colors(colors) / 255
        figure = _figure(width, 0.5 + 1.7 * len(shown))
        first, handles = None, {}
        for i, quantity in enumerate(shown):
            first = axes = figure.add_subplot(len(shown), 1, i + 1, sharex=first)
            for what, rows in band[band["quantity"] == quantity].groupby("what", sort=False):
                a, _, b = what.partition("–")
                line, color = ("--", "0.35") if b else ("-", palette[int(a)])
                axes.fill_between(rows["time"], rows["min"], rows["max"], color=color, alpha=0.2, linewidth=0)
                handles[what] = axes.plot(rows["time"], rows["median"], line, color=color, linewidth=1.5)[0]
            axes.set_ylabel(f"{quantity}\n{self._unit(quantity)}".strip(), fontsize=9)
            axes.grid(color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelbottom=i == len(shown) - 1, labelsize=8)
        axes.set_xlabel(self.clock, fontsize=9)
        labels = [("interface " if "–" in what else "object ") + what for what in handles]
        figure.legend(list(handles.values()), labels, loc="outside upper left", ncols=6, fontsize=8, frameon=False)
        return figure

    def save(self, folder: str | Path, *, overwrite: bool = False, colors: Mapping[int, Color] | None = None) -> Path:
        """objects.csv, interfaces.csv, band.csv, whose first line names the units, and measures.png."""
        with replacing_folder(folder, overwrite) as making:
            for name, table in (("objects", self.objects), ("interfaces", self.interfaces), ("band", self.band())):
                with (making / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                    file.write(f"# lengths in {self.unit}, areas in {self.unit}², times in {self.clock}\n")
                    table.to_csv(file, index=False)
            self.plot(colors=colors).savefig(making / "measures.png")
        return Path(folder)

    def _unit(self, quantity: str) -> str:
        none = {"dimension": "", "parts": "", "area": f"{self.unit}²", "vx": f"{self.unit}/{self.clock}"}
        return {**none, "vy": none["vx"]}.get(quantity, self.unit)

    def _long(self) -> pd.DataFrame:
        """Both tables in one: by, frame, time, what, quantity, value."""
        import pandas as pd

        parts = []
        for table, names in ((self.objects, ["object"]), (self.interfaces, ["a", "b"])):
            what = table[names].astype(str).agg("–".join, axis=1) if len(table) else table["frame"].astype(str)
            rest = table.drop(columns=[*names, "name"]).assign(what=what)
            parts.append(rest.melt(["by", "frame", "time", "what"], var_name="quantity"))
        return pd.concat([part for part in parts if len(part)])


def measure(
    masks: Any,
    *,
    pixel: float = 1.0,
    unit: str = "px",
    times: Sequence[float] | None = None,
    ids: Sequence[int] | None = None,
    gap: float = 2.0,
    across: str = "y",
) -> Measurements:
    """Area, centroid, perimeter, parts and velocity of every object; length, box dimension and mixing-layer thickness of every interface.

    `masks`: `Masks`, an array (T, H, W) or a folder of PNGs; or {strategy: masks} of the same clip, for the spread among them.
    `pixel`: the length of a pixel's side in `unit`s. `times`: seconds of each frame (`clip.times`); None: frames are the clock.
    `ids`: the objects, by default all that occur. `gap`: objects so many pixels apart, an even number, share an interface half-way.
    `across`: the axis across the layer, y or x. Two objects that share an interface anywhere have a thickness: 6 ∫ f (1 − f), where
    f(y) is the second one's share of both on the line y; of a share that grows evenly from 0 to 1, that is the distance over which it
    does (Andrews & Spalding, "A simple experiment to investigate two-dimensional mixing by Rayleigh–Taylor instability", 1990).

    `InputError` where lengths, sizes or times do not fit, and where there is no object.
    """
    import pandas as pd

    given = dict(masks) if isinstance(masks, Mapping) else {"": masks}
    found = {by: m if isinstance(m, Masks) else Masks(m) for by, m in given.items()}
    shapes = {m.shape for m in found.values()}
    if len(shapes) != 1 or not (pixel > 0 and np.isfinite(pixel)) or not gap >= 0 or across not in ("x", "y"):
        raise InputError(
            "masks of one shape, pixel > 0, gap ≥ 0, across x or y",
            f"{sorted(shapes)}, {pixel}, {gap}, {across!r}",
            "correct it",
        )
    length = next(iter(shapes))[0]
    if times is not None and (len(times) != length or (np.diff(times) <= 0).any()):
        raise InputError(f"{length} times in order, one per frame", f"{len(times)} of them", "give clip.times of this clip")
    clock = np.arange(length, dtype=float) if times is None else np.asarray(times, float)
    ids = sorted({obj for m in found.values() for obj in m.ids}) if ids is None else list(ids)
    if not ids:
        raise InputError(
            "masks with an object on some frame", "empty ones", "look at them: the strategy may have found nothing"
        )
    objects, interfaces = [], []
    for by, m in found.items():
        for t, labels in enumerate(m):
            key = (by, t, m.names[t], clock[t])
            labels = np.where(np.isin(labels, ids), labels, np.uint8(0))
            outlines = crossings(labels)
            objects += [(*key, *row) for row in _objects(labels, ids, outlines, pixel)]
            interfaces += [(*key, *row) for row in _interfaces(labels, gap, across, pixel)]
    key = ["by", "frame", "name", "time"]
    table = pd.DataFrame(objects, columns=[*key, "object", "area", "x", "y", "perimeter", "parts", "dimension"])
    for axis in "xy":
        table[f"v{axis}"] = _rate(table, axis)
    pairs = pd.DataFrame(interfaces, columns=[*key, "a", "b", "length", "dimension", "thickness"])
    return Measurements(table, pairs, unit, "frame" if times is None else "s")


def _objects(
    labels: np.ndarray, ids: Sequence[int], outlines: Mapping[tuple[int, int], float], pixel: float
) -> Iterable[tuple[float, ...]]:
    import cv2

    for obj in ids:
        mask = labels == obj
        area = int(np.count_nonzero(mask))
        if not area:
            yield obj, 0.0, np.nan, np.nan, 0.0, 0, np.nan
            continue
        x, y = mask.sum(0) @ np.arange(mask.shape[1]) / area, mask.sum(1) @ np.arange(mask.shape[0]) / area
        perimeter = sum(length for pair, length in outlines.items() if obj in pair)
        parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        at = (x + 0.5) * pixel, (y + 0.5) * pixel
        yield obj, area * pixel**2, *at, perimeter * pixel, parts, box_dimension(_edge(mask, ~mask))


def _interfaces(labels: np.ndarray, gap: float, across: str, pixel: float) -> Iterable[tuple[float, ...]]:
    from scipy.ndimage import distance_transform_edt

    near = labels
    if gap and (labels == 0).any() and labels.any():
        distance, (rows, columns) = distance_transform_edt(labels == 0, return_indices=True)
        near = np.where(distance <= (gap + 1) / 2, labels[rows, columns], np.uint8(0))
    for (a, b), length in sorted(crossings(near).items()):
        if a:
            f = mixing_profile(labels, a, b, across)
            thickness = 6 * float(np.nansum(f * (1 - f))) * pixel
            yield a, b, length * pixel, box_dimension(_edge(near == a, near == b)), thickness


def crossings(labels: np.ndarray) -> dict[tuple[int, int], float]:
    """{(a, b), a < b: length in pixels of the line between label a and label b} of a label map (H, W); 0 is the background.

    Half the integral over all directions and parallel lines of how often these lines go from a to b (Cauchy and Crofton), over
    the directions of `_STEPS`, each for half of the angle to the next on either side, and the pixels' own lines.
    """
    height, width = labels.shape
    padded = np.pad(labels, 2, mode="edge").astype(np.int32)
    angles = np.array([np.arctan2(y, x) for x, y in _STEPS])
    between = np.diff(angles, append=np.pi)
    shares = (between + np.roll(between, 1)) / 2
    found = np.zeros(1 << 16)
    here = padded[2:-2, 2:-2]
    for (x, y), share in zip(_STEPS, shares, strict=True):
        there = padded[2 + y : 2 + y + height, 2 + x : 2 + x + width]
        differ = here != there
        a, b = here[differ], there[differ]
        codes = np.minimum(a, b) << 8 | np.maximum(a, b)
        found += np.bincount(codes, minlength=1 << 16) * (share / 2 / np.hypot(x, y))
    return {(int(code) >> 8, int(code) & 255): float(found[code]) for code in np.flatnonzero(found)}


def box_dimension(line: np.ndarray) -> float:
    """The box-counting dimension of the pixels (H, W) bool of a line: how steeply the number of boxes that it takes grows as they
    get smaller, from an eighth of its extent to 4 pixels. NaN where that is less than a factor of 2, i.e. below 64 pixels.

    Of all ways to lay the grid, sixteen are tried, and the fewest boxes count. Waves shorter than a third of the extent make a
    smooth line look rougher than 1: at the scale of the waves it fills the plane.
    """
    points = np.argwhere(line)
    extent = int(np.ptp(points, axis=0).max()) + 1 if len(points) else 0
    largest = extent * LARGEST
    if largest < 2 * SMALLEST:
        return float("nan")
    points -= points.min(axis=0)
    sizes = np.unique(np.round(np.geomspace(SMALLEST, largest, 8)).astype(int))
    shifts = [[s * i // OFFSETS for i in range(OFFSETS)] for s in sizes]
    counts = [
        min(len(np.unique((points[:, 0] + y) // s << 32 | (points[:, 1] + x) // s)) for y in shift for x in shift)
        for s, shift in zip(sizes, shifts, strict=True)
    ]
    return float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def mixing_profile(labels: np.ndarray, a: int, b: int, across: str = "y") -> np.ndarray:
    """b's share of the pixels that are a or b, per row (H,), or per column (W,) `across` "x"; NaN where there are none."""
    axis = 1 if across == "y" else 0
    first, second = ((labels == obj).sum(axis).astype(float) for obj in (a, b))
    both = first + second
    return np.divide(second, both, out=np.full(len(both), np.nan), where=both > 0)


def _edge(mask: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pixels of (H, W) `mask` beside one of `other`, above, below, left or right."""
    found = np.zeros_like(mask)
    for axis in (0, 1):
        for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:])):
            i, j = (here, there) if axis == 0 else ((slice(None), here), (slice(None), there))
            found[i] |= mask[i] & other[j]
    return found


def _rate(table: pd.DataFrame, column: str) -> np.ndarray:
    """Per second, by central differences; a row beside a frame where the object is absent has none."""
    rate = np.full(len(table), np.nan)
    for rows in table.groupby(["by", "object"]).indices.values():
        if len(rows) > 1:
            place = table[column].to_numpy()[rows]
            rate[rows] = np.where(np.isnan(place), np.nan, np.gradient(place, table["time"].to_numpy()[rows]))
    return rate
