import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import disc
from scipy.ndimage import gaussian_filter

from vosnb import models
from vosnb.errors import InputError
from vosnb.logits import mask_to_box
from vosnb.models import Decoded, Encoded
from vosnb.models.grabcut import GrabCut
from vosnb.prompts import Box, Point, Prompt, Prompts
from vosnb.segment import segment


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def two_dyes(seed=0, shape=(160, 240)):
    """Two coloured blobs, side by side, on a textured grey background with film grain: (H, W, 3) uint8 and the label map."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    angle = lambda y, x: np.arctan2(rows - y, columns - x)  # noqa: E731
    labels = np.zeros(shape, np.uint8)
    labels[np.hypot(rows - 80, columns - 160) < 48 + 10 * np.sin(4 * angle(80, 160))] = 2
    labels[np.hypot(rows - 70, columns - 85) < 40 + 8 * np.sin(5 * angle(70, 85))] = 1
    texture = cv2.GaussianBlur(rng.normal(0, 60, shape), (0, 0), 3)[..., None] + 15 * np.sin(columns / 7)[..., None]
    colours = np.array([(150, 150, 145), (40, 70, 170), (190, 50, 50)], float)
    image = cv2.GaussianBlur(colours[labels], (0, 0), 1) + texture + rng.normal(0, 8, (*shape, 3))
    return np.clip(image, 0, 255).astype(np.uint8), labels


CENTRES = {1: Point(85, 70), 2: Point(165, 80)}


def boxes_of(labels):
    return {obj: mask_to_box(labels == obj) for obj in (1, 2)}


def clicks(obj):
    return [CENTRES[obj], Point(5, 5, 0), Point(230, 150, 0)]


# -- grabcut -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_grabcut_finds_two_dyes_from_boxes_and_from_points(seed):
    image, truth = two_dyes(seed)
    for prompts in (boxes_of(truth), {1: clicks(1), 2: clicks(2)}, {1: Point(85, 70), 2: boxes_of(truth)[2]}):
        found = segment(image, prompts, "grabcut")
        for obj in (1, 2):
            assert iou(found.labels == obj, truth == obj) > 0.9


@pytest.mark.parametrize("colour, x, y", [((95, 95, 95), 80, 60), ((190, 70, 70), 110, 30), ((60, 80, 220), 80, 60)])
def test_grabcut_finds_what_lies_within_another_object(colour, x, y):
    """Of the ground's colour, much like the larger object, and unlike both."""
    rng = np.random.default_rng(0)

    def texture(colour):
        coarse = gaussian_filter(rng.standard_normal((120, 160)), 2)
        return np.clip(np.array(colour) + 20 * (coarse / coarse.std())[..., None], 0, 255)

    inner = disc(120, 160, x, y, 12)
    outer = disc(120, 160, 80, 60, 45) & ~inner
    image = np.where(inner[..., None], texture(colour), texture((90, 90, 90)))
    image = np.where(outer[..., None], texture((200, 60, 60)), image).astype(np.uint8)
    found = segment(image, {1: Box(33, 13, 128, 108), 2: Box(x - 14, y - 14, x + 15, y + 15)}, "grabcut").labels
    assert iou(found == 1, outer) > 0.9 and iou(found == 2, inner) > 0.7


def test_grabcut_follows_a_mask_that_is_slightly_off():
    image, truth = two_dyes()
    earlier = np.roll(truth, (3, -3), axis=(0, 1))
    found = segment(image, earlier, "grabcut")
    for obj in (1, 2):
        assert iou(found.labels == obj, truth == obj) > max(0.93, iou(earlier == obj, truth == obj))


def test_grabcut_is_deterministic():
    image, truth = two_dyes()
    first = segment(image, boxes_of(truth), "grabcut")
    cv2.setRNGSeed(12345)
    np.testing.assert_array_equal(segment(image, boxes_of(truth), "grabcut").logits[1], first.logits[1])


def test_grabcut_logits_are_signed_distances_within_the_strength():
    image, truth = two_dyes()
    decoded = GrabCut().decode(GrabCut().encode(image), [Prompt(box=b) for b in boxes_of(truth).values()], strength=10)
    assert decoded.logits.shape == (2, 1, *truth.shape) and decoded.logits.dtype == decoded.low.dtype == np.float32
    assert decoded.logits.min() == -10 and decoded.logits.max() == 10 and np.isnan(decoded.iou).all()
    for one in decoded.logits[:, 0]:
        steps = np.abs(np.diff(one, axis=0))
        assert steps.max() < 1.5, "a distance grows by a pixel per pixel"


def test_grabcut_works_at_a_reduced_size_and_answers_at_the_images():
    image, truth = two_dyes()
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    truth = cv2.resize(truth, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    model = GrabCut(long_side=240)
    found = segment(large, boxes_of(truth), model)
    assert model.encode(large).features.shape == (160, 240, 3) and found.labels.shape == truth.shape
    assert min(iou(found.labels == obj, truth == obj) for obj in (1, 2)) > 0.9


@pytest.mark.parametrize(
    "prompt",
    [
        Box(0, 0, 240, 160), Box(10, 10, 11, 11), Box(239, 159, 240, 160), Point(0, 0), Point(239.9, 159.9), Point(9, 9, 0),
        np.zeros((160, 240), bool), np.ones((160, 240), bool), Prompt(box=Box(5, 5, 60, 60), points=(Point(200, 150),)),
    ],
    ids=["all", "pixel", "corner", "first pixel", "last pixel", "background only", "empty mask", "full mask", "out of its box"],
)  # fmt: skip
def test_grabcut_survives_prompts_at_the_edge_of_sense(prompt):
    image, _ = two_dyes()
    found = segment(image, {1: prompt}, "grabcut")
    assert found.labels.shape == image.shape[:2] and np.isfinite(found.logits[1]).all()
    assert segment(image[:9, :9], {1: Box(2, 2, 5, 5)}, "grabcut").labels.shape == (9, 9)
    assert segment(np.full((20, 30, 3), 7, np.uint8), {1: Box(2, 2, 15, 15)}, "grabcut").labels.shape == (20, 30)


def test_an_empty_mask_is_an_object_that_is_not_there():
    image, truth = two_dyes()
    found = segment(image, {1: np.zeros(truth.shape, bool), 2: boxes_of(truth)[2]}, "grabcut")
    assert not found.masks[1].any() and found.boxes[1] is None and iou(found.labels == 2, truth == 2) > 0.9


def test_a_box_counts_where_the_mask_beside_it_is_empty():
    image, truth = two_dyes()
    found = segment(image, {2: Prompt(box=boxes_of(truth)[2], mask=np.zeros(truth.shape, bool))}, "grabcut")
    assert iou(found.labels == 2, truth == 2) > 0.9


# -- the verb ------------------------------------------------------------------------------------------------------------


class Fake:
    """An image model that answers with given logits (N, C, H, W) and IoUs."""

    name = "fake"

    def __init__(self, logits, iou):
        self.logits, self.iou, self.asked = np.asarray(logits, np.float32), np.asarray(iou, np.float32), []

    def encode(self, image):
        return Encoded(image.shape[:2], None)

    def decode(self, encoded, prompts, *, multimask=False, strength=18.0, mask_logits=None):
        self.asked.append((prompts, multimask, strength))
        return Decoded(self.logits, self.iou, self.logits)


IMAGE = np.zeros((5, 6, 3), np.uint8)


def planes(*values):
    return [[np.full((5, 6), v) for v in row] for row in values]


def test_objects_are_decoded_together_in_order_of_their_ids():
    fake = Fake(planes([2.0], [1.0]), [[0.9], [0.8]])
    found = segment(IMAGE, {7: Box(0, 0, 3, 3), 3: Point(1, 1)}, fake, multimask=True, strength=5)
    ((prompts, multimask, strength),) = fake.asked
    assert prompts == [Prompt.of(Point(1, 1)), Prompt.of(Box(0, 0, 3, 3))] and multimask and strength == 5
    assert (found.labels == 3).all() and list(found.logits) == [3, 7] and found.iou[3] == pytest.approx(0.9)
    assert found.boxes == {3: Box(0, 0, 6, 5), 7: None}


def test_of_several_masks_the_one_with_the_highest_predicted_iou_is_taken_and_all_are_kept():
    fake = Fake(planes([-1.0, 4.0, 2.0]), [[0.3, 0.5, 0.9]])
    found = segment(IMAGE, {1: Point(1, 1)}, fake, multimask=True)
    assert (found.logits[1] == 2).all() and found.iou[1] == pytest.approx(0.9)
    assert found.candidates[1].shape == (3, 5, 6) and found.candidate_iou[1].tolist() == pytest.approx([0.3, 0.5, 0.9])


def test_an_auxiliary_object_competes_and_then_is_background():
    logits = planes([1.0], [1.0])
    logits[1][0][:, 3:] = 2.0
    found = segment(IMAGE, {1: Point(1, 1), 3: Point(5, 4)}, Fake(logits, [[1], [1]]), aux=(3,))
    assert (found.labels[:, :3] == 1).all() and (found.labels[:, 3:] == 0).all()
    assert (found.all_labels[:, 3:] == 3).all() and found.boxes[3] == Box(3, 0, 6, 5)
    np.testing.assert_array_equal(np.asarray(found), found.labels)
    np.testing.assert_array_equal(found.masks[3], found.all_labels == 3)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_holes_are_filled_and_islands_removed_on_each_objects_logits(threshold):
    plane = np.full((5, 6), 3.0)
    plane[2, 2] = plane[0, 0] = -1
    plane[:, 4] = -1  # leaves an island of five pixels in the last column
    answer = lambda **settings: segment(IMAGE, {1: Point(1, 1)}, Fake([[plane]], [[1]]), threshold=threshold, **settings)  # noqa: E731
    assert not answer().labels[2, 2] and answer().labels[0, 5]
    assert answer(fill_holes=1).labels[[2, 0], [2, 0]].all()
    by_shape = answer(fill_holes=True)
    assert by_shape.labels[2, 2] and not by_shape.labels[0, 0] and by_shape.raw[1][2, 2] == -1
    assert not answer(remove_islands=5).labels[:, 5].any() and answer(remove_islands=4).labels[:, 5].all()


def test_a_label_map_and_the_prompts_of_a_frame_are_prompts_too():
    labels = np.zeros((5, 6), np.uint8)
    labels[1:3, 1:4] = 4
    fake = Fake(planes([1.0]), [[1]])
    segment(IMAGE, labels, fake)
    segment(IMAGE, Prompts({0: labels})[0], fake)
    assert fake.asked[0][0] == fake.asked[1][0] == [Prompt(mask=labels == 4)]


@pytest.mark.parametrize(
    ("image", "prompts", "settings", "message"),
    [
        (IMAGE.astype(float), {1: Point(1, 1)}, {}, "uint8"),
        (IMAGE[..., 0], {1: Point(1, 1)}, {}, r"\(H, W, 3\)"),
        (IMAGE[:0], {1: Point(1, 1)}, {}, r"\(H, W, 3\)"),
        (IMAGE, {}, {}, "at least one"),
        (IMAGE, {0: Point(1, 1)}, {}, "id from 1 to 255"),
        (IMAGE, {256: Point(1, 1)}, {}, "id from 1 to 255"),
        (IMAGE, {1: Point(6, 1)}, {}, "inside a frame"),
        (IMAGE, {1: Box(0, 0, 5, 6)}, {}, "x comes before y"),
        (IMAGE, {1: np.ones((6, 5), bool)}, {}, "own size"),
        (IMAGE, {1: Point(1, 1)}, {"aux": (2,)}, "auxiliary"),
        (IMAGE, {1: Point(1, 1)}, {"model": "sam3"}, "grabcut, vosnb-mini-sam2"),
        (IMAGE, {1: Point(1, 1)}, {"model": "nowhere/net.pt", "device": "cpu"}, "does not exist"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(image, prompts, settings, message):
    with pytest.raises(InputError, match=message):
        segment(image, prompts, **settings)


def test_bad_input_is_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError):
        segment(IMAGE, {1: Point(9, 9)}, "sam_vit_b")


def test_a_missing_checkpoint_names_the_command_that_fetches_it(monkeypatch, tmp_path):
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path))
    with pytest.raises(InputError, match=r"vosnb fetch sam_vit_b` \(375 MB"):
        segment(IMAGE, {1: Point(1, 1)}, "sam_vit_b", device="cpu")


def test_segmenting_with_grabcut_imports_no_torch():
    code = (
        "import sys, numpy as np; from vosnb.segment import segment; from vosnb.prompts import Box;"
        "segment(np.zeros((9, 9, 3), np.uint8), {1: Box(1, 1, 5, 5)}, 'grabcut'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
