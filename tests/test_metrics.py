"""J and F to the last bit, against the definitions written out slowly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vosnb.metrics import ABSENT, episodes, f_measure, ids_in, jaccard, radius, scores, statistics, variation

# -- the definitions, pixel by pixel (spec: Perazzi et al. 2016; the boundary rule of the Berkeley benchmark) --------------


def slow_boundary(mask):
    """Differs from the right, lower or lower right neighbour; in the last row only the right one counts, in the last column the lower."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            found[y, x] = any(mask[v, u] != mask[y, x] for v, u in near if v < height and u < width)
    return found


def slow_near(boundary, inside):
    """Pixels that see a boundary pixel at one of the offsets (dy, dx)."""
    found = np.zeros_like(boundary)
    (height, width), at = boundary.shape, np.argwhere(boundary)
    for offset in inside:
        y, x = (at - offset).T
        within = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        found[y[within], x[within]] = True
    return found


def slow_f(mask, truth, r):
    steps = np.arange(-r, r + 1)
    inside = [
        (i - len(steps) // 2, k - len(steps) // 2)
        for i, a in enumerate(steps)
        for k, b in enumerate(steps)
        if a * a + b * b <= r * r
    ]
    inside = inside or [(0, 0)]
    a, b = slow_boundary(mask), slow_boundary(truth)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision, recall = (a & slow_near(b, inside)).sum() / a.sum(), (b & slow_near(a, inside)).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@st.composite
def pairs(draw):
    """Two label maps: blocks of ids, one of them perhaps the other a little shifted; so wide that rows take several words."""
    height, width, block = draw(st.integers(1, 30)), draw(st.integers(1, 150)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def labels():
        coarse = rng.integers(0, 4, (height // block + 1, width // block + 1), np.uint8)
        return coarse.repeat(block, 0).repeat(block, 1)[:height, :width]

    truth = labels()
    if draw(st.booleans()):
        return labels(), truth
    return np.roll(truth, rng.integers(-3, 4, 2), (0, 1)), truth


@settings(max_examples=60, deadline=None)
@given(pairs(), st.booleans())
def test_scores_are_those_of_the_definitions(pair, mose):
    labels, truth = pair
    found = scores(labels, truth, mose=mose)
    assert set(found) == {*np.unique(labels), *np.unique(truth)} - {0}
    diagonal = 0.008 * np.linalg.norm(truth.shape)
    for obj, score in found.items():
        a, b = labels == obj, truth == obj
        shared, union = (a & b).sum(), (a | b).sum()
        assert (score.area, score.truth_area) == (a.sum(), b.sum())
        if not mose:
            assert score.j == shared / union == jaccard(a, b)
            assert score.f == slow_f(a, b, math.ceil(diagonal)) == f_measure(a, b)
        else:
            own = min(math.ceil(0.1 * math.sqrt(b.sum())), diagonal) if b.any() else diagonal
            assert score.j == (shared + 1) / (union + 1)
            assert score.f_dot == slow_f(a, b, own)
            assert score.f == slow_f(a, b, math.ceil(diagonal) if own < diagonal else diagonal)


@settings(max_examples=25, deadline=None)
@given(pairs(), st.sampled_from([1, 2, 3.6, 4.4, 8, 70]))
def test_f_within_any_tolerance(pair, tolerance):
    a, b = (labels == 1 for labels in pair)
    assert f_measure(a, b, tolerance) == slow_f(a, b, tolerance)


def test_f_dot_of_a_disk_without_its_centre_is_below_1_even_for_equal_masks():
    """So small a frame has a radius just above 1, from which MOSE's disk begins a whole pixel off."""
    labels = np.zeros((2, 125), np.uint8)
    labels[0, :40] = labels[1, :80] = 1
    expected = slow_f(labels == 1, labels == 1, 0.008 * np.linalg.norm((2, 125)))
    assert scores(labels, labels, mose=True)[1].f_dot == expected < 1


@given(pairs())
@settings(max_examples=30, deadline=None)
def test_exchanging_mask_and_truth_changes_nothing_but_the_areas(pair):
    there, back = scores(*pair), scores(*pair[::-1])
    assert {k: (s.j, s.f) for k, s in there.items()} == {k: (s.j, pytest.approx(s.f)) for k, s in back.items()}


def test_a_frame_of_full_size_agrees_with_opencv():
    """480p has a tolerance of 8 and rows of 14 words."""
    import cv2

    yy, xx = np.mgrid[:480, :854]
    truth = ((yy - 200) / 90) ** 2 + ((xx - 800) / 120) ** 2 < 1  # beyond the right edge
    mask = ((yy - 208) / 95) ** 2 + ((xx - 790) / 115) ** 2 + 0.1 * np.sin(xx / 7) < 1
    disk = (np.add.outer(np.arange(-8, 9) ** 2, np.arange(-8, 9) ** 2) <= 64).astype(np.uint8)

    def edge(m):
        m = np.pad(m, ((0, 1), (0, 1)), mode="edge")
        return ((m[:-1, :-1] != m[:-1, 1:]) | (m[:-1, :-1] != m[1:, :-1]) | (m[:-1, :-1] != m[1:, 1:])).astype(np.uint8)

    a, b = edge(mask), edge(truth)
    precision, recall = (a * cv2.dilate(b, disk)).sum() / a.sum(), (b * cv2.dilate(a, disk)).sum() / b.sum()
    assert f_measure(mask, truth) == 2 * precision * recall / (precision + recall) < 1


# -- the table of edge cases ---------------------------------------------------------------------------------------------

FULL, EMPTY = np.ones((60, 80), bool), np.zeros((60, 80), bool)
LEFT = np.zeros((60, 80), bool)
LEFT[:, :40] = True


@pytest.mark.parametrize(
    "mask, truth, j, f",
    [
        (EMPTY, EMPTY, 1, 1),
        (LEFT, EMPTY, 0, 0),
        (EMPTY, LEFT, 0, 0),
        (FULL, FULL, 1, 1),
        (EMPTY, FULL, 0, 1),
        (LEFT, FULL, 0.5, 0),
    ],
    ids=["both empty", "false positive", "missed", "whole frame", "whole frame missed: it has no boundary", "half of it"],
)
def test_empty_masks_and_empty_boundaries(mask, truth, j, f):
    assert (jaccard(mask, truth), f_measure(mask, truth)) == (j, f)
    assert scores(mask.view(np.uint8), truth.view(np.uint8), [1])[1][:2] == (j, f)


def test_the_tolerance_is_rounded_up_and_exact_integers_stay():
    sizes = {(480, 854): 8, (720, 1280): 12, (1080, 1920): 18, (480, 910): 9, (480, 1152): 10, (300, 400): 4, (150, 200): 2}
    assert {size: radius(size) for size in sizes} == sizes


def test_objects_that_are_nowhere_are_absent_and_read_only_maps_are_fine():
    labels = np.zeros((5, 7), np.uint8)
    labels.flags.writeable = False
    assert scores(labels, labels) == {} and scores(labels, labels, [3]) == {3: ABSENT}
    assert ids_in(labels) == set() and ids_in(np.array([[0, 7], [7, 255]], np.uint8)) == {7, 255}


# -- over time -----------------------------------------------------------------------------------------------------------


def test_statistics_count_strictly_and_share_border_frames():
    assert statistics([0.5, 0.5, 1, 1]) == (0.75, 0.5, 0.5 - 1)
    values = np.linspace(1, 0, 9)
    assert statistics(values).decay == pytest.approx(values[:3].mean() - values[-3:].mean())
    assert statistics([0.3]) == (0.3, 0, 0)
    assert all(math.isnan(v) for v in statistics([]))


def test_decay_beyond_256_frames_is_right_unless_asked_to_wrap_as_davis_does():
    values = np.linspace(1, 0, 300)
    assert statistics(values).decay == pytest.approx(values[:76].mean() - values[-76:].mean(), abs=0.01)
    assert math.isnan(statistics(values, wrap=True).decay)
    assert statistics(values[:256]) == statistics(values[:256], wrap=True)


def test_variation_rounds_its_variance():
    assert variation([0.5, 0.51], [0.5, 0.51]) == 0
    assert variation([0, 1], [0, 1]) == 0.5
    assert math.isnan(variation([], []))


def test_episodes_of_absence_and_return():
    gone, back = episodes(np.array([1, 1, 0, 1, 0, 0], bool))
    assert gone == [slice(3, 4)] and back == [slice(2, 3), slice(4, 6)]
    assert episodes(np.zeros(4, bool)) == ([], [])
    assert episodes(np.array([0, 1, 1], bool)) == ([slice(1, 3)], [])
