"""The streaming contract, held by every strategy that needs no weights, and the verb's own promises."""

import itertools

import numpy as np
import pytest

from vosnb import Box, Clip, InputError, Masks, Point, Prompts, Propagation, propagate, stream
from vosnb.evaluate import jaccard
from vosnb.models import Decoded
from vosnb.strategies import get, names

BY = [("flow", {}), ("sam", {"model": "grabcut"})]


def overlap(masks, labels, obj):
    return np.mean([jaccard(np.asarray(m) == obj, true == obj) for m, true in zip(masks, labels, strict=True)])


@pytest.mark.parametrize(("by", "settings"), BY)
def test_objects_are_followed(moving, by, settings):
    images, labels = moving
    masks = propagate(images, {0: labels[0]}, by, **settings)
    assert masks.shape == (12, 96, 128)
    assert min(overlap(masks, labels, obj) for obj in (1, 2)) > 0.9


@pytest.mark.parametrize(("by", "settings"), BY)
def test_every_frame_gets_one_result_with_a_score_per_object_that_has_begun(moving, by, settings):
    images, labels = moving
    prompts = {2: np.where(labels[2] == 1, 1, 0), 5: {2: labels[5] == 2}}
    results = list(stream(images, prompts, by, **settings))
    assert [t for t, _ in results] == list(range(12))
    assert [sorted(r.scores) for _, r in results] == [[]] * 2 + [[1]] * 3 + [[1, 2]] * 7
    assert not any(r.labels.any() for _, r in results[:2])
    assert not (results[4][1].labels == 2).any()
    assert jaccard(results[11][1].labels == 2, labels[11] == 2) > 0.8


@pytest.mark.parametrize(("by", "settings"), BY)
def test_a_reversed_clip_is_followed_backward(moving, by, settings):
    images, labels = moving
    by_slice = propagate(Clip(images)[::-1], {0: labels[11]}, by, **settings)
    by_direction = propagate(images, {11: labels[11]}, by, direction="backward", **settings)
    assert (np.asarray(by_slice)[::-1] == np.asarray(by_direction)).all()
    assert overlap(by_direction, labels, 1) > 0.9


def test_both_directions_meet_at_the_prompt(moving):
    images, labels = moving
    prompts = {6: {1: labels[6] == 1}, 8: {2: labels[8] == 2}}
    masks = propagate(images, prompts, direction="both")
    assert min(overlap(masks, labels, obj) for obj in (1, 2)) > 0.9
    forward = propagate(images, prompts)
    assert (masks[9] == forward[9]).all() and not forward[0].any()


def test_the_first_results_come_before_the_last_frame_is_read(moving):
    images, labels = moving
    read = itertools.count()
    seen = (image for image in images if next(read) >= 0)
    results = stream(Clip(seen), {0: labels[0]})
    next(results)
    results.close()
    assert next(read) < 12


def test_auxiliary_objects_compete_and_are_left_out(moving):
    images, labels = moving
    masks = propagate(images, {0: labels[0]}, aux=(2,))
    assert masks.ids == (1,) and 2 not in masks.scores[3]


def test_points_and_boxes_become_a_first_mask(moving):
    images, labels = moving
    masks = propagate(images, {0: {1: Box(20, 10, 53, 43), 2: [Point(96, 71), Box(80, 55, 113, 88)]}}, "flow")
    assert min(overlap(masks, labels, obj) for obj in (1, 2)) > 0.8


def test_an_empty_first_mask_is_allowed_and_stays_empty(moving):
    images, _ = moving
    for by, settings in BY:
        masks = propagate(images[:3], {0: {4: np.zeros((96, 128), bool)}}, by, **settings)
        assert not np.asarray(masks).any() and masks.scores[2][4].iou == 0


def test_folder_and_memory_hold_the_same(moving, tmp_path):
    images, labels = moving
    kept = propagate(images, {0: labels[0]})
    written = propagate(images, {0: labels[0]}, out=tmp_path / "m")
    assert (np.asarray(kept) == np.asarray(written)).all()
    assert written.names == kept.names == [f"{t:05d}" for t in range(12)]
    assert written.scores_table().equals(kept.scores_table())
    split = propagate(images, {0: labels[0]}, out=tmp_path / "o", per_object=True)
    assert (tmp_path / "o" / "001" / "00003.png").exists() and split.shape == kept.shape


def test_an_interrupted_run_leaves_nothing_under_the_final_name(moving, tmp_path):
    images, labels = moving

    def broken():
        yield from images[:3]
        raise OSError("the camera was unplugged")

    with pytest.raises(OSError, match="unplugged"):
        propagate(Clip(broken()), {0: labels[0]}, out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": {}}, "no prompt at all"),
        ({"prompts": {12: np.ones((96, 128), int)}}, "below 12"),
        ({"prompts": {0: np.ones((5, 5), int)}}, "own size"),
        ({"by": "magic"}, "strategy among"),
        ({"by": "flow", "speed": 3}, "setting of flow"),
        ({"by": "flow", "tolerance": "much"}, "tolerance"),
        ({"by": "flow", "tolerance": -1}, "above 0"),
        ({"by": "flow", "quality": "best"}, "quality"),
        ({"direction": "sideways"}, "direction"),
        ({"aux": (9,)}, "auxiliary"),
    ],
)
def test_bad_input_is_refused_before_a_frame_is_read(moving, change, words):
    images, labels = moving
    arguments = {"prompts": {0: labels[0]}, **change}
    with pytest.raises(InputError, match=words):
        stream(images, **arguments)


def test_backward_from_an_iterator_is_refused(moving):
    images, labels = moving
    with pytest.raises(InputError, match="known length"):
        stream(Clip(iter(images)), {0: labels[0]}, direction="backward")


def test_settings_from_text_have_the_types_of_the_fields():
    flow = get("flow", tolerance="2", quality="fast")
    assert flow.tolerance == 2.0 and flow.quality == "fast"
    assert get("sam", box="no").box is False
    assert {"flow", "sam"} <= set(names())


def test_prompts_from_a_segmentation_keep_the_auxiliary_object(moving):
    from vosnb import segment

    images, _ = moving
    first = segment(images[0], {1: Box(20, 10, 53, 43), 2: Box(80, 55, 113, 88)}, aux=(2,))
    assert Prompts({0: first}).ids == (1, 2)
    assert Masks([first.labels]).ids == (1,)


@pytest.mark.parametrize(("by", "settings"), BY)
def test_a_pass_goes_on_where_it_was_left_and_a_correction_repeats_nothing_before_it(moving, by, settings):
    images, labels = moving
    whole = {t: r.labels for t, r in stream(images, {0: labels[0]}, by, **settings)}
    run = Propagation(images, {0: labels[0]}, by, keep=1, **settings)
    seen = {}
    for t, result in run:
        seen[t] = result.labels
        if t == 4:
            break
    seen.update({t: r.labels for t, r in run})
    assert all((seen[t] == whole[t]).all() for t in range(12))

    wrong = {1: labels[6] == 2}
    assert run.correct(6, wrong) == 6
    corrected = {t: r.labels for t, r in run}
    afresh = {t: r.labels for t, r in stream(images, {0: labels[0], 6: wrong}, by, **settings)}
    assert list(corrected) == list(range(6, 12))
    assert all((corrected[t] == afresh[t]).all() for t in range(6, 12)) and (corrected[11] != whole[11]).any()


def test_a_correction_needs_a_state_to_go_back_to(moving):
    images, labels = moving
    run = Propagation(images, {2: labels[2]})
    list(run)
    with pytest.raises(InputError, match="keep=1"):
        run.correct(5, {1: labels[5] == 1})


class Fake:
    """An image model that answers every mask prompt with that mask and writes down what it was asked."""

    name = "fake"

    def __init__(self):
        self.asked = []

    def encode(self, image):
        return image.shape[:2]

    def decode(self, encoded, prompts, *, multimask=False, strength=18.0, mask_logits=None):
        self.asked.append(prompts)
        masks = [p.mask if p.mask is not None else box_mask(encoded, p.box) for p in prompts]
        logits = np.where(np.stack(masks)[:, None], 5.0, -5.0).astype(np.float32)
        return Decoded(logits, np.full((len(prompts), 1), 0.9), logits)


def box_mask(shape, box):
    mask = np.zeros(shape, bool)
    mask[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
    return mask


def test_sam_refines_the_prompted_frame_once_and_then_asks_with_the_last_mask_and_its_box(moving):
    images, _ = moving
    model = Fake()
    propagate(images[:3], {0: {1: Box(20, 10, 53, 43)}}, "sam", model=model)
    first, refined, second, third = (asked[0] for asked in model.asked)
    assert first.mask is None and first.box == Box(20, 10, 53, 43)
    assert all(p.box == Box(20, 10, 53, 43) and p.mask.sum() == 33 * 33 for p in (refined, second, third))


@pytest.mark.parametrize("by", [None, 5, get])
def test_what_is_no_strategy_is_refused(moving, by):
    images, labels = moving
    with pytest.raises(InputError, match="strategy or its name"):
        stream(images, {0: labels[0]}, by)


def test_a_model_that_does_not_exist_is_refused_before_a_late_prompt_needs_it(moving):
    images, labels = moving
    with pytest.raises(InputError, match="model among"):
        list(stream(images, {0: labels[0], 9: {2: Point(3, 3)}}, "flow", model="nope"))


def test_overwriting_a_folder_of_something_else_is_refused(moving, tmp_path):
    images, labels = moving
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="only masks"):
        propagate(images, {0: labels[0]}, out=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()
