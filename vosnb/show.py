"""Pictures: contact sheets, pictures side by side, and figures for a notebook."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import InputError
from .files import frame_numbers
from .paint import Color, brighter, check_image, overlay, with_colors
from .prompts import Prompt, Prompts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .clip import Clip
    from .masks import Masks
    from .strategies import Score

__all__ = ["contact_sheet", "plot_frames", "plot_scores", "plot_tree", "png", "show", "side_by_side"]

_PAPER, _INK = (255, 255, 255), (60, 60, 60)


# -- sheets --------------------------------------------------------------------------------------------------------------


def contact_sheet(
    clip: Clip | np.ndarray,
    masks: Masks | np.ndarray | None = None,
    frames: Sequence[int] | None = None,
    *,
    columns: int = 4,
    width: int = 1280,
    titles: Sequence[str] | None = None,
    colors: Mapping[int, Color] | None = None,
    alpha: float = 0.5,
    contour: bool = True,
) -> np.ndarray:
    """Frames of a clip in rows, with their masks over them, as one image (H, `width`, 3) uint8.

    `frames`: which ones; by default two rows, evenly spaced, with the first and the last. `titles` replaces "frame 12".
    """
    if frames is None:
        frames = sorted({round(t) for t in np.linspace(0, len(clip) - 1, 2 * columns)})
    cell = _cell(columns, width)
    pictures = []
    for t in frames:
        picture = _fit(check_image(clip[t]), cell)
        if masks is not None:
            labels = np.asarray(Image.fromarray(masks[t]).resize(picture.shape[1::-1], Image.Resampling.NEAREST))
            picture = overlay(picture, labels, colors, alpha, contour)  # after resizing, so that lines stay crisp
        pictures.append(picture)
    return _sheet(pictures, [f"frame {t}" for t in frames] if titles is None else titles, columns, width)


def side_by_side(images: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, width: int = 1280) -> np.ndarray:
    """Images (H, W, 3) uint8, of any sizes, in one row of equal columns under their titles; (H, `width`, 3) uint8."""
    cell = _cell(len(images), width)
    return _sheet([_fit(check_image(image), cell) for image in images], titles or [""] * len(images), len(images), width)


_GAP = 8  # pixels between and around the pictures of a sheet


def _cell(columns: int, width: int) -> int:
    cell = (width - _GAP * (columns + 1)) // columns if columns > 0 else 0
    if cell < 16:
        raise InputError("at least one picture, 16 pixels wide", f"{columns} columns in {width} pixels", "give a greater width")
    return cell


def _fit(image: np.ndarray, width: int) -> np.ndarray:
    import cv2

    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_CUBIC)


def _sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int, width: int) -> np.ndarray:
    if len(titles) != len(pictures) or not pictures:
        raise InputError(
            "a title for each of at least one picture", f"{len(titles)} titles, {len(pictures)} pictures", "give as many"
        )
    cell = pictures[0].shape[1]
    size = max(13, cell // 22)
    font = ImageFont.load_default(size)
    strip = size + 8 if any(titles) else 0
    row = max(picture.shape[0] for picture in pictures) + strip + _GAP
    sheet = Image.new("RGB", (width, -(-len(pictures) // columns) * row + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = _GAP + i % columns * (cell + _GAP), _GAP + i // columns * row
        draw.text((x, y + strip // 2 - 1), title, _INK, font, anchor="lm")
        sheet.paste(Image.fromarray(picture), (x, y + strip))
    return np.asarray(sheet)


# -- figures -------------------------------------------------------------------------------------------------------------


def show(
    image: np.ndarray | Clip,
    masks: np.ndarray | Masks | None = None,
    prompts: Mapping[int, Any] | None = None,
    *,
    title: str = "",
    colors: Mapping[int, Color] | None = None,
    alpha: float = 0.5,
    contour: bool = True,
    width: float = 8.0,
) -> Figure:
    """A figure for a notebook, `width` inches wide; as the last line of a cell it displays itself.

    An image (H, W, 3) with a label map (H, W) and {object: prompt}; or a clip with `Masks` and {frame: {object: prompt}}: its
    prompted frames, or without prompts a contact sheet. Green stars are points on the object, red ones on the background.
    """
    panels: list[tuple[np.ndarray, np.ndarray | None, Mapping[int, Prompt], str]]
    if isinstance(image, np.ndarray) and image.ndim == 3:
        panels = [(check_image(image), masks, Prompts.of({0: prompts or {}}).get(0, {}), title)]
    elif prompts is None:
        sheet = contact_sheet(image, masks, width=round(100 * width), columns=3, colors=colors, alpha=alpha, contour=contour)
        panels = [(sheet, None, {}, title)]
    else:
        panels = [
            (check_image(image[t]), None if masks is None else masks[t], given, f"{title} frame {t}".strip())
            for t, given in Prompts.of(prompts).items()
        ]
    if not panels:
        raise InputError("something to show", "no prompts", "leave prompts out to see the clip")
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    aspect = max(picture.shape[0] / picture.shape[1] for picture, *_ in panels)
    figure = _figure(width, rows * (width / columns * aspect + (0.24 if panels[0][3] else 0)))
    for i, (picture, labels, given, text) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        if labels is None:
            labels = _labels_of(given, picture.shape[:2])
        axes.imshow(overlay(picture, labels, colors, alpha, contour), interpolation="antialiased")
        axes.set_title(text, fontsize=10, color="0.25", loc="left")
        axes.set_axis_off()
        _draw_prompts(axes, given, colors)
    return figure


def plot_scores(masks: Masks, colors: Mapping[int, Color] | None = None, width: float = 8.0) -> Figure:
    """Predicted IoU, object score and the disagreement of hypotheses over time, whichever there are; a line per object."""
    table = masks.scores_table()
    table["frame"] = table["frame"].map(dict(enumerate(frame_numbers(masks.names))))  # those of a slice begin later
    kinds = {"iou": "predicted IoU", "present": "object score\n(> 0: visible)", "disagreement": "disagreement"}
    kinds = {column: text for column, text in kinds.items() if table[column].abs().max() > 0}  # NaN: no such notion
    if not kinds:
        raise InputError("masks with scores", "none", "use a strategy that gives scores, such as sam2")
    figure = _figure(width, 0.4 + 1.6 * len(kinds))
    palette = with_colors(colors) / 255  # not brightened: these lines are on white
    first = None
    for i, (column, text) in enumerate(kinds.items()):
        first = axes = figure.add_subplot(len(kinds), 1, i + 1, sharex=first)
        for obj, rows in table.groupby("object"):
            name = masks.objects.get(obj, {}).get("name", f"object {obj}")
            axes.plot(rows["frame"], rows[column], color=palette[obj], linewidth=1.5, label=name)
        axes.set_ylabel(text, fontsize=9)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=i == len(kinds) - 1, labelsize=8)
        if column == "present":
            axes.axhline(0, color="0.6", linewidth=0.8)
        else:
            axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("frame", fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=6, fontsize=8, frameon=False)
    return figure


def plot_tree(scores: Sequence[Mapping[int, Score]], obj: int, width: float = 10.0) -> Figure:
    """The hypotheses of one object over time, best at the top: which lived, when they branched and when they died out.

    `scores`: per frame {object: `Score`}, as `Masks.scores` has them. A dot is a mask that was kept, larger for a higher predicted
    IoU, hollow where the object is held to be absent; the reported line is in colour. Equal hypotheses are one dot.
    """
    rows = [(t, frame[obj].hypotheses) for t, frame in enumerate(scores) if obj in frame and frame[obj].hypotheses]
    if not rows:
        raise InputError(
            f"scores with hypotheses of object {obj}", "none", "use a strategy with pathways, and masks kept in memory"
        )
    spot: list[dict[int, int]] = []  # per frame {slot: row of its dot}: slots that hold the same mask share one
    for i, (_, hypotheses) in enumerate(rows):
        first: dict[tuple[int, int], int] = {}
        above = spot[i - 1] if i else {}
        spot.append(
            {slot: first.setdefault((above.get(h.parent, 0), h.choice), len(first)) for slot, h in enumerate(hypotheses)}
        )
    best, slot = set(), 0
    for i in range(len(rows) - 1, -1, -1):
        best.add((i, spot[i][slot]))
        slot = rows[i][1][slot].parent
    depth = 1 + max(max(places.values()) for places in spot)
    figure = _figure(width, 0.8 + 0.35 * depth)
    axes = figure.add_subplot()
    for i, (t, hypotheses) in enumerate(rows):
        for slot, h in reversed(list(enumerate(hypotheses))):
            at, chosen = spot[i][slot], (i, spot[i][slot]) in best
            color, order = ("#d62728", 3) if chosen else ("0.65", 2)
            if i:
                on = chosen and (i - 1, spot[i - 1].get(h.parent, 0)) in best
                axes.plot(
                    [rows[i - 1][0], t],
                    [spot[i - 1].get(h.parent, 0), at],
                    color="#d62728" if on else "0.8",
                    linewidth=1.2,
                    zorder=order - 1,
                )
            axes.scatter([t], [at], s=8 + 40 * h.iou, color=color if h.present > 0 else "white", edgecolors=color, zorder=order)
    axes.set(xlabel="frame", yticks=range(depth), ylabel="hypothesis", ylim=(depth - 0.5, -0.5))
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def plot_frames(
    values: Mapping[int, Mapping[int, float]], label: str, colors: Mapping[int, Color] | None = None, width: float = 8.0
) -> Figure:
    """One number per frame and object, such as a report's J: {object: {frame: value}}, a line per object."""
    figure = _figure(width, 2.4)
    axes = figure.add_subplot()
    palette = with_colors(colors) / 255
    for obj, row in values.items():
        mean = np.mean(list(row.values()))
        axes.plot(list(row), list(row.values()), color=palette[obj], linewidth=1.5, label=f"object {obj}, mean {mean:.3f}")
    axes.set(xlabel="frame", ylabel=label, ylim=(-0.02, 1.02))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=6, fontsize=8, frameon=False)
    return figure


def png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as the bytes of a PNG file, for `IPython.display.Image`."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _figure(width: float, height: float) -> Figure:
    """Not pyplot's, so nothing global is kept and worker threads may draw; it carries what a notebook needs to display it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)

    def png() -> bytes:
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    figure._repr_png_ = png
    return figure


def _labels_of(prompts: Mapping[int, Prompt], shape: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for obj, prompt in prompts.items():
        if prompt.mask is not None:
            labels[prompt.mask] = obj
    return labels


def _draw_prompts(axes: Axes, prompts: Mapping[int, Prompt], colors: Mapping[int, Color] | None) -> None:
    from matplotlib.patches import Rectangle

    palette = brighter(with_colors(colors)) / 255
    for obj, prompt in prompts.items():
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box.xyxy
            for color, line in (("white", 3.0), (palette[obj], 1.6)):  # a white rim, for dark and for light frames
                axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=line))
        for label, color in ((1, "limegreen"), (0, "red")):
            points = [(p.x, p.y) for p in prompt.points if p.label == label]
            if points:
                axes.scatter(
                    *zip(*points, strict=True), s=150, marker="*", color=color, edgecolor="white", linewidth=0.9, zorder=3
                )
