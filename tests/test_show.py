import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from vosnb.errors import InputError
from vosnb.masks import Masks
from vosnb.paint import davis_palette, layer, overlay
from vosnb.prompts import Box, Point
from vosnb.show import contact_sheet, plot_frames, plot_scores, show, side_by_side
from vosnb.strategies import Score

rng = np.random.default_rng(0)


def frame(height: int = 60, width: int = 90) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def rendered(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


@pytest.mark.parametrize("obj, edged", [(1, True), (127, True), (128, False), (255, False)])
def test_a_layer_is_a_translucent_indexed_png_with_opaque_edges(obj, edged):
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 5:25] = obj
    with Image.open(io.BytesIO(layer(labels, {obj: "#010203"}))) as image:
        assert image.mode == "P"
        shown = np.array(image.convert("RGBA"))
    assert shown[10, 10].tolist() == [1, 2, 3, 115] and shown[5, 10].tolist() == [1, 2, 3, 255 if edged else 115]
    assert not shown[labels == 0][:, 3].any()


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=20), elements=st.integers(0, 3)), st.booleans()
)
@settings(deadline=None)
def test_overlay_touches_objects_only(labels, contour):
    image = frame(*labels.shape)
    before = image.copy()
    drawn = overlay(image, labels, alpha=0.5, contour=contour)
    assert (image == before).all()
    assert (drawn[labels == 0] == image[labels == 0]).all()
    if not contour:
        blend = (image + davis_palette()[labels].astype(float)) / 2
        assert np.abs(drawn[labels > 0] - blend[labels > 0]).max(initial=0) <= 0.5


def test_contour_lies_inside_the_object_and_not_at_the_frames_border():
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 40:] = 1
    drawn = overlay(np.zeros((40, 60, 3), np.uint8), labels, colors={1: "#400000"}, alpha=0)
    line = drawn[..., 0] > 0
    assert line[10, 40:].all() and line[29, 40:].all() and line[10:30, 40].all()
    assert line.sum() == 2 * 20 + 18


def test_colours_may_be_chosen():
    labels = np.full((9, 9), 2, np.uint8)
    for color, rgb in (("blue", (0, 0, 255)), ("#010203", (1, 2, 3)), ((7, 8, 9), (7, 8, 9))):
        assert (overlay(frame(9, 9), labels, colors={2: color}, alpha=1) == rgb).all()


@pytest.mark.parametrize(
    "image, labels, alpha",
    [
        (frame(), np.zeros((60, 91), np.uint8), 0.5),
        (frame(), np.zeros((60, 90), np.int64), 0.5),
        (frame()[..., 0], np.zeros((60, 90), np.uint8), 0.5),
        (frame() / 255, np.zeros((60, 90), np.uint8), 0.5),
        (frame(), np.zeros((60, 90), np.uint8), 50),
    ],
)
def test_bad_overlays_are_refused(image, labels, alpha):
    with pytest.raises(InputError):
        overlay(image, labels, alpha=alpha)


def test_contact_sheet_shows_the_frames_in_rows():
    clip = np.stack([np.full((54, 96, 3), 20 * t, np.uint8) for t in range(10)])
    sheet = contact_sheet(clip, frames=[1, 5, 9], columns=2, width=400)
    assert sheet.dtype == np.uint8 and sheet.shape[1:] == (400, 3)
    cell, row = (400 - 3 * 8) // 2, sheet.shape[0] // 2
    assert [int(sheet[row - 20, 8 + cell // 2, 0]), int(sheet[row - 20, 400 - 8 - cell // 2, 0]), int(sheet[-20, 100, 0])] == [
        20,
        100,
        180,
    ]
    assert (sheet[-20, 300] == 255).all()  # the empty cell
    assert sheet[:30].min() < 100  # a title is drawn
    assert contact_sheet(clip, Masks(np.ones((10, 54, 96), np.uint8)), titles=list("abcdefgh")).shape[1] == 1280
    assert contact_sheet(clip[:1]).shape[1] == 1280


def test_sheets_refuse_what_cannot_be_drawn():
    for bad in (
        lambda: contact_sheet(np.zeros((3, 8, 8, 3), np.uint8), columns=0),
        lambda: contact_sheet(np.zeros((3, 8, 8, 3), np.uint8), frames=[]),
        lambda: side_by_side([]),
        lambda: side_by_side([frame()], ["a", "b"]),
    ):
        with pytest.raises(InputError):
            bad()


def test_side_by_side_takes_any_sizes():
    row = side_by_side([frame(30, 40), frame(200, 100), frame(50, 90)], ["a", "b", "c"], width=640)
    assert row.shape[1:] == (640, 3)
    assert side_by_side([frame(60, 90)], width=106).shape == (60 + 16, 106, 3)  # no titles, no strip for them


def test_figures_draw_prompts_and_leave_pyplot_alone():
    image = np.full((60, 90, 3), 128, np.uint8)
    labels = np.zeros((60, 90), np.uint8)
    labels[30:50, 10:30] = 1
    plain = rendered(show(image))
    figure = show(image, labels, {1: [Box(10, 30, 30, 50), Point(20, 40)], 2: Point(80, 5, 0)}, title="frame 0")
    drawn = rendered(figure)
    assert (plain[plain.shape[0] // 2, plain.shape[1] // 2] == 128).all()
    assert (drawn == (50, 205, 50)).all(axis=2).sum() > 20  # the green star
    assert (drawn == (255, 0, 0)).all(axis=2).sum() > 20  # the red one
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_clip_is_shown_by_its_prompted_frames_or_as_a_sheet():
    clip, masks = np.stack([frame()] * 5), Masks(np.ones((5, 60, 90), np.uint8))
    assert len(show(clip, masks, {0: {1: Box(1, 2, 30, 40)}, 3: {1: masks[3] > 0}}).axes) == 2
    assert len(show(clip, masks, title="all").axes) == 1
    with pytest.raises(InputError, match="no prompts"):
        show(clip, masks, {})


def test_scores_are_plotted_per_object_as_far_as_there_are_any():
    both = [{1: Score(0.9, 2.0), 3: Score(0.8, -1.0)}] * 4
    figure = plot_scores(Masks(np.ones((4, 2, 2), np.uint8), scores=both, objects={3: {"name": "red dye"}}))
    assert [len([line for line in axes.lines if len(line.get_xdata()) == 4]) for axes in figure.axes] == [2, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["object 1", "red dye"]
    assert rendered(figure).min() < 255
    with pytest.raises(InputError, match="masks with scores"):
        plot_scores(Masks(np.ones((4, 2, 2), np.uint8)))


def test_plots_number_frames_as_the_clip_does():
    masks = Masks(np.ones((9, 2, 2), np.uint8), scores=[{}, {}, *[{1: Score(0.9, 2.0)}] * 7])
    assert plot_scores(masks).axes[0].lines[0].get_xdata().tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert plot_scores(masks[5:]).axes[0].lines[0].get_xdata().tolist() == [5, 6, 7, 8]
    assert plot_frames({1: {3: 0.5, 7: 1.0}}, "J").axes[0].lines[0].get_xdata().tolist() == [3, 7]
