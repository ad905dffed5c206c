"""Prompts are checked where they are made, and their file holds exactly them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vosnb import Box, InputError, Point, Prompt, Prompts
from vosnb.prompts import by_label, rle_decode, rle_encode

xy = st.floats(0, 4000, allow_nan=False) | st.integers(0, 4000)
points = st.builds(Point, xy, xy, st.sampled_from((0, 1)))
boxes = st.tuples(xy, xy, st.integers(1, 500), st.integers(1, 500)).map(lambda b: Box(b[0], b[1], b[0] + b[2], b[1] + b[3]))
masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31)).map(
    lambda s: np.random.default_rng(s[2]).random(s[:2]) < 0.4
)
one = st.tuples(st.lists(points, max_size=3), st.none() | boxes, st.none() | masks)
prompt = one.filter(lambda p: p[0] or p[1] is not None or p[2] is not None).map(lambda p: Prompt(tuple(p[0]), p[1], p[2]))
frames = st.dictionaries(st.integers(0, 300), st.dictionaries(st.integers(1, 255), prompt, min_size=1, max_size=3), max_size=3)
about = st.dictionaries(st.integers(1, 255), st.fixed_dictionaries({"name": st.text(max_size=5)}), max_size=3)


@settings(deadline=None)
@given(frames, about)
def test_import_after_export_is_the_identity(asked, objects):
    prompts = Prompts(asked, objects, {"name": "clip", "width": 640})
    text = prompts.to_json()
    assert Prompts.from_json(text) == prompts
    assert Prompts.from_json(text).to_json() == text


def test_the_file_has_the_form_that_the_field_reads(tmp_path):
    prompts = Prompts({0: {1: [Point(288, 324), Box(5, 6, 7, 8)]}}, {1: {"name": "girl", "color": "#e6194b"}})
    data = json.loads(prompts.save(tmp_path / "p.json").read_text())
    assert data["version"] == 1
    assert data["objects"] == [{"id": 1, "name": "girl", "color": "#e6194b"}]
    assert data["prompts"] == [
        {"frame": 0, "obj": 1, "kind": "box", "xyxy": [5, 6, 7, 8]},
        {"frame": 0, "obj": 1, "kind": "point", "x": 288, "y": 324, "label": 1},
    ]
    assert Prompts.load(tmp_path / "p.json") == prompts


@given(masks)
def test_run_lengths_hold_the_mask(mask):
    assert (rle_decode(rle_encode(mask), list(mask.shape)) == mask).all()


def test_run_lengths_go_down_the_columns_and_begin_with_zeros_as_in_coco():
    assert rle_encode(np.array([[1, 0], [1, 1]], bool)) == [0, 2, 1, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Box(10, 10, 5, 20), "x0 < x1"),
        (lambda: Box(10, 10, 10, 20), "x0 < x1"),
        (lambda: Box(0, 0, float("nan"), 5), "finite"),
        (lambda: Point(1, 2, 2), "label 1"),
        (lambda: Point("a", 2), "finite"),
        (lambda: Prompt(), "at least one point"),
        (lambda: Prompt(mask=np.zeros((2, 2, 3))), r"\(H, W\)"),
        (lambda: Prompts({0: {0: Point(1, 1)}}), "from 1 to 255"),
        (lambda: Prompts({0: {256: Point(1, 1)}}), "from 1 to 255"),
        (lambda: Prompts({-1: {1: Point(1, 1)}}), "frame number"),
        (lambda: Prompts({0: np.zeros((2, 2), float)}), "integers"),
        (lambda: Prompts({0: np.array([[300]])}), "from 1 to 255"),
        (lambda: Prompts({0: {1: "a box"}}), "Prompt, Box, Point"),
        (lambda: Prompts.from_json("{"), "JSON"),
        (lambda: Prompts.from_json('{"version": 2, "prompts": []}'), "version"),
        (lambda: Prompts.from_json('{"version": 1, "prompts": [{"frame": 0}]}'), "frame, obj, kind"),
        (
            lambda: Prompts.from_json('{"version": 1, "prompts": [{"frame": 0, "obj": 1, "kind": "lasso"}]}'),
            "point, box or mask",
        ),
        (lambda: rle_decode([1, 2], [2, 2]), "add up"),
        (lambda: Prompts.load("nowhere.json"), "does not exist"),
    ],
)
def test_bad_input_says_what_was_expected(make, words):
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "; got " in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Point(5, 30), "x comes before y"),  # swapped: the frame is 40 wide, 20 high
        (Point(50, 50), "move the point"),
        (Point(-1, 5), "move the point"),
        (Box(0, 0, 41, 20), "clip the box"),
        (Box(0, 0, 10, 30), "x comes before y"),
        (np.ones((40, 20), bool), "the frame's own size"),
    ],
)
def test_what_lies_outside_the_frame_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        Prompts({0: {1: given}}).check(1, 20, 40)


def test_no_prompt_and_a_frame_beyond_the_clip_are_refused():
    with pytest.raises(InputError, match="no prompt at all"):
        Prompts().check(5, 20, 40)
    with pytest.raises(InputError, match="below 5"):
        Prompts({5: {1: Point(1, 1)}}).check(5, 20, 40)


def test_a_label_map_is_one_mask_per_object():
    labels = np.array([[0, 1], [7, 7]])
    assert Prompts({3: labels}).ids == (1, 7)
    assert (by_label(labels)[7] == [[False, False], [True, True]]).all()


def test_prompts_are_frozen_and_changes_make_copies():
    mask = np.ones((2, 2), bool)
    prompt = Prompt(mask=mask)
    mask[:] = False
    assert prompt.mask.all()
    with pytest.raises(ValueError):
        prompt.mask[0, 0] = False
    before = Prompts({0: {1: Point(1, 1)}})
    after = before.with_prompt(2, 4, Box(0, 0, 1, 1)).without(0, 1)
    assert list(before) == [0] and list(after) == [2] and after.ids == (4,)
