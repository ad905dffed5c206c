"""Refinement: the image model is asked what it should be, once a frame, and by name behind any strategy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import disc

from vosnb.clip import Clip
from vosnb.errors import InputError
from vosnb.logits import mask_to_box
from vosnb.masks import Masks
from vosnb.metrics import jaccard
from vosnb.models import Decoded, Encoded, weights
from vosnb.propagate import Propagation, propagate
from vosnb.refine import changes, refine
from vosnb.strategies import get
from vosnb.strategies.refined import Refined
from vosnb.synth import turbulence


class Spy:
    """An image model that says of each prompt the mask it was given, or its box, moved by `shift` pixels to the right."""

    name = "spy"

    def __init__(self, shift: int = 0, iou: float = 0.75):
        self.shift, self.iou, self.asked, self.strengths = shift, iou, [], []

    def encode(self, image):
        return Encoded(image.shape[:2], None)

    def decode(self, encoded, prompts, *, multimask=False, strength=18.0, mask_logits=None):
        self.asked.append(list(prompts))
        self.strengths.append(strength)
        logits = np.full((len(prompts), 1, *encoded.shape), -strength, np.float32)
        for row, prompt in zip(logits, prompts, strict=True):
            if prompt.mask is not None:
                row[0][np.roll(prompt.mask, self.shift, axis=1)] = strength
            else:
                x0, y0, x1, y1 = map(int, prompt.box.xyxy)
                row[0, y0:y1, x0 + self.shift : x1 + self.shift] = strength
        return Decoded(logits, np.full((len(prompts), 1), self.iou, np.float32), logits)


@pytest.mark.parametrize("prompt", ["mask+box", "box", "mask"])
def test_the_model_is_asked_once_a_frame_for_all_objects_with_what_was_chosen(moving, prompt):
    images, labels = moving
    spy = Spy()
    refined = refine(images, labels, prompt, spy, strength=7, show_progress=False)
    assert [len(asked) for asked in spy.asked] == [2] * len(images) and set(spy.strengths) == {7}
    for t, asked in enumerate(spy.asked):
        for obj, given in zip((1, 2), asked, strict=True):
            mask = labels[t] == obj
            assert (given.box == mask_to_box(mask)) if "box" in prompt else given.box is None
            assert np.array_equal(given.mask, mask) if "mask" in prompt else given.mask is None
    assert (np.asarray(refined) == labels).all() == ("mask" in prompt)


def test_it_says_how_much_it_changed(moving):
    images, labels = moving
    refined = refine(images, labels, model=Spy(shift=3), show_progress=False)
    for obj, kept in changes(refined).items():
        for t, iou in kept.items():
            before, after = labels[t] == obj, refined[t] == obj
            assert iou == pytest.approx((before & after).sum() / (before | after).sum()) and 0.7 < iou < 0.9
    assert refined.scores[4][1].iou == 0.75


def test_what_is_absent_stays_absent_and_an_empty_frame_asks_nothing(moving):
    images, labels = moving
    labels = labels.copy()
    labels[3], labels[5][labels[5] == 2] = 0, 0
    spy = Spy()
    refined = refine(images, labels, model=spy, show_progress=False)
    assert len(spy.asked) == len(images) - 1 and not refined[3].any()
    assert not (refined[5] == 2).any() and (refined[5] == 1).any()


def test_refined_masks_are_written_under_the_names_of_the_frames(moving, tmp_path):
    images, labels = moving
    folder = Clip(images).save_frames(tmp_path / "frames", ".png")
    refined = refine(folder, Masks(labels), model=Spy(), out=tmp_path / "refined", show_progress=False)
    assert sorted(p.name for p in (tmp_path / "refined").glob("*.png")) == [f"{name}.png" for name in folder.names]
    assert np.array_equal(np.asarray(Masks(tmp_path / "refined")), labels)
    assert changes(Masks(tmp_path / "refined")) == changes(refined)  # kept in scores.csv


def test_a_real_model_moves_a_sloppy_mask_to_the_edge(moving):
    images, labels = moving
    sloppy = np.roll(labels, (2, 2), axis=(1, 2))

    def mean(masks):
        pairs = [(m == obj, t == obj) for m, t in zip(masks, labels, strict=True) for obj in (1, 2)]
        return np.mean([(m & t).sum() / (m | t).sum() for m, t in pairs])

    assert mean(refine(images, sloppy, show_progress=False)) > mean(sloppy) + 0.05
    assert mean(refine(images, labels, show_progress=False)) > 0.95  # and does little harm to a perfect one


# -- by name -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "prompt"), [("flow+refine", "mask+box"), ("flow+refine-box", "box"), ("flow+refine-mask", "mask")]
)
def test_a_name_composes_any_strategy_with_a_refinement(by, prompt):
    strategy = get(by, tolerance="2", refine_strength="9")
    assert strategy == Refined(get("flow", tolerance=2.0), prompt, None, 9.0)


def test_behind_propagate_it_equals_refining_the_strategys_masks(moving):
    images, labels = moving
    plain = propagate(images, {0: {1: mask_to_box(labels[0] == 1)}}, "flow", show_progress=False)
    composed = propagate(images, {0: {1: mask_to_box(labels[0] == 1)}}, "flow+refine", refine_model=Spy(2), show_progress=False)
    assert np.array_equal(np.asarray(composed), np.asarray(refine(images, plain, model=Spy(2), show_progress=False)))


def test_a_mask_that_a_person_gave_stays(moving):
    images, labels = moving
    given = {0: {1: labels[0] == 1, 2: mask_to_box(labels[0] == 2)}}
    spy = Spy(2)
    masks = propagate(images[:3], given, "flow+refine", refine_model=spy, show_progress=False)
    assert np.array_equal(masks[0] == 1, labels[0] == 1) and [len(asked) for asked in spy.asked] == [1, 2, 2]


def test_objects_that_become_background_compete_before_they_do(moving):
    images, labels = moving
    spy = Spy()
    masks = propagate(images[:3], {0: labels[0]}, "flow+refine", refine_model=spy, aux=(2,), show_progress=False)
    assert masks.ids == (1,) and all(len(asked) == 2 for asked in spy.asked)


def test_a_strategy_that_reports_late_is_refined_on_the_right_frames(moving):
    images, labels = moving

    class Late:
        """Reports everything at the end, each frame's mean grey as a label."""

        def __init__(self):
            self.seen = []

        def tracker(self, shape, frames):
            return Late()

        def step(self, image, prompts):
            self.seen.append(image)
            return ()

        def finish(self):
            from vosnb.strategies import Result

            return [Result(np.where(disc(96, 128, 20 + 2 * t, 40, 9), np.uint8(1), np.uint8(0))) for t in range(len(self.seen))]

        def fork(self):
            twin = Late()
            twin.seen = self.seen.copy()
            return twin

    class Looks(Spy):
        def encode(self, image):
            self.asked.append(image)
            return super().encode(image)

    looks = Looks()
    run = Propagation(images, {0: labels[0]}, Refined(Late(), model=looks))
    run.tracker = run.tracker.fork()
    assert [t for t, _ in run] == list(range(12))
    seen = [asked for asked in looks.asked if isinstance(asked, np.ndarray)]
    assert all(np.array_equal(a, b) for a, b in zip(seen, images[1:], strict=True))  # frame 0 was given


@pytest.mark.parametrize(
    ("by", "settings", "says"),
    [
        ("flow+polish", {}, r"\+refine, \+refine-box, \+refine-mask"),
        ("flaw+refine", {}, "a strategy among"),
        ("flow+refine", {"refine_colour": 1}, "a setting of refine among"),
        ("flow+refine", {"refine_strength": 0}, "a strength, in logits, above 0"),
        ("flow+refine", {"colour": 1}, "a setting of flow among"),
    ],
)
def test_a_composition_that_cannot_be_is_refused(by, settings, says):
    with pytest.raises(InputError, match=says):
        get(by, **settings)


def test_masks_of_another_clip_are_refused(moving):
    images, labels = moving
    with pytest.raises(InputError, match=r"masks of 12 frames of 128×96.*11 frames"):
        refine(images, labels[:11])
    with pytest.raises(InputError, match="a prompt among"):
        refine(images, labels, "points")
    with pytest.raises(InputError, match="a model among"):
        refine(images, labels, model="grabcat")


@pytest.mark.parametrize(("sure", "trust", "moves"), [(3, 2, True), (1, 2, False), (1, 0, True), (3, 4, False)])
def test_the_model_overrules_a_mask_only_where_it_is_surer_than_trust(moving, sure, trust, moves):
    images, labels = moving
    refined = refine(images, labels, model=Spy(shift=3), strength=sure, trust=trust, show_progress=False)
    assert (np.asarray(refined) != labels).any() == moves


def test_refining_gains_more_than_it_costs_a_perfect_mask():
    """With the small model, on masks whose outlines are wrong, and on the truth itself."""
    images, labels = zip(*turbulence(seed=301, frames=3, height=128, width=240), strict=True)
    truth = np.stack([np.where(frame == 3, 0, frame) for frame in labels]).astype(np.uint8)
    sloppy = np.stack([cv2.dilate(frame, np.ones((7, 7), np.uint8)) for frame in truth])
    found = {
        name: refine(np.stack(images), masks, model=weights.SMALL, show_progress=False)
        for name, masks in {"truth": truth, "sloppy": sloppy}.items()
    }

    def quality(masks) -> float:
        return float(
            np.mean([jaccard(np.asarray(m) == obj, t == obj) for m, t in zip(masks, truth, strict=True) for obj in (1, 2)])
        )

    cost, gain = 1 - quality(found["truth"]), quality(found["sloppy"]) - quality(sloppy)
    assert cost < 0.01 and gain > cost
