import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vosnb.errors import InputError
from vosnb.logits import (
    fill_holes,
    input_shape,
    logits_to_mask,
    lowres_to_image,
    mask_to_box,
    mask_to_logits,
    merge,
    remove_islands,
)
from vosnb.prompts import Box

SIZES = st.sampled_from([(256, 64), (384, 96), (512, 128)])
SHAPES = st.tuples(st.integers(24, 300), st.integers(24, 300))


def disc(shape, y, x, radius):
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


# -- boxes ---------------------------------------------------------------------------------------------------------------


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_a_box_is_tight_and_an_empty_mask_has_none(mask):
    box = mask_to_box(mask)
    if not mask.any():
        assert box is None
        return
    x0, y0, x1, y1 = (int(v) for v in box.xyxy)
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


def test_one_pixel_has_a_box_of_one_pixel():
    mask = np.zeros((4, 6), bool)
    mask[2, 5] = True
    assert mask_to_box(mask) == Box(5, 2, 6, 3)


def test_a_mask_with_channels_is_refused():
    with pytest.raises(InputError, match="one channel"):
        mask_to_box(np.zeros((4, 4, 3)))


# -- masks as prompts ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@example((256, 480), (1024, 256), 0)
@example((720, 1280), (1024, 256), 1)
@given(SHAPES, SIZES, st.integers(0, 2**32 - 1))
def test_a_mask_prompt_is_sams_own_resize_pad_resize(shape, sizes, seed):
    """`apply_image` is the variant to compare with: `apply_image_torch` reads (B, C) of its BCHW input as the image's size."""
    import torch
    import torch.nn.functional as F
    from segment_anything.utils.transforms import ResizeLongestSide

    size, low = sizes
    rng = np.random.default_rng(seed)
    mask = disc(shape, rng.integers(shape[0]), rng.integers(shape[1]), rng.integers(4, 80)) ^ (rng.random(shape) < 0.01)
    resized = ResizeLongestSide(size).apply_image(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8))[..., 0]
    assert resized.shape == input_shape(shape, size)
    padded = F.pad(torch.as_tensor(resized).float(), (0, size - resized.shape[1], 0, size - resized.shape[0]))
    theirs = F.interpolate(padded[None, None], (low, low), mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_array_equal(mask_to_logits(mask, size, low), np.where(theirs > 0, 18, -18))


@settings(deadline=None, max_examples=20)
@given(SHAPES, SIZES)
def test_a_squashed_mask_prompt_is_sam_2s_antialiased_resize(shape, sizes):
    import torch
    import torch.nn.functional as F

    size, low = sizes
    mask = disc(shape, shape[0] * 0.4, shape[1] * 0.6, min(shape) * 0.3)
    square = F.interpolate(
        torch.tensor(mask)[None, None].float(), (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    theirs = F.interpolate((square >= 0.5).float(), (low, low), mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    ours = mask_to_logits(mask, size, low, pad=False) > 0
    assert (
        ours ^ theirs
    ).sum() <= 2 * np.pi * low * 0.3 + 4  # one cell along the outline: PIL rounds to 0 or 1 after each axis


@pytest.mark.parametrize("strength", [18.0, 5.5])
def test_a_mask_prompt_holds_plus_and_minus_strength_and_nothing_else(strength):
    logits = mask_to_logits(disc((90, 160), 40, 70, 20), strength=strength)
    assert logits.shape == (256, 256) and logits.dtype == np.float32
    assert set(np.unique(logits)) == {-strength, strength}
    assert (mask_to_logits(np.zeros((9, 9))) == -18).all()


@pytest.mark.parametrize("pad", [True, False])
@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, sizes=SIZES, where=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_mask_comes_back_through_the_low_resolution_grid(pad, shape, sizes, where):
    size, low = sizes
    mask = disc(shape, where[0] * shape[0], where[1] * shape[1], min(shape) * 0.4)
    back = logits_to_mask(mask_to_logits(mask, size, low, pad=pad), shape, size, pad)
    assert back.shape == shape
    cell = max(shape) / low  # of the grid, in pixels of the image
    outline = np.sqrt(mask.sum() * 4 * np.pi)
    assert (mask ^ back).sum() <= 1.5 * max(cell, 1) * outline
    if cell <= 1:
        assert iou(mask, back) > 0.9


@pytest.mark.parametrize("pad", [True, False])
@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, sizes=SIZES)
def test_the_inverse_geometry_is_exact(pad, shape, sizes):
    """A ramp of input coordinates at the centres of the grid is the same ramp at the centres of the image's pixels."""
    size, low = sizes
    y, x = (np.indices((low, low)) + 0.5) * (size / low)
    height, width = input_shape(shape, size, pad)
    rows, columns = np.indices(shape) + 0.5
    rows, columns = rows * height / shape[0], columns * width / shape[1]
    found = lowres_to_image(np.stack([y, x]), shape, size, pad)
    margin = 2 * size / low  # bilinear is flat in the outermost half cell
    inside = (rows > margin) & (rows < height - margin) & (columns > margin) & (columns < width - margin)
    assert inside.any()
    np.testing.assert_allclose(found[0][inside], rows[inside], atol=0.02)
    np.testing.assert_allclose(found[1][inside], columns[inside], atol=0.02)


@settings(deadline=None, max_examples=20)
@given(SHAPES, SIZES)
def test_low_resolution_logits_reach_the_image_as_sam_brings_them_there(shape, sizes):
    import torch
    import torch.nn.functional as F

    size, low = sizes
    logits = np.random.default_rng(0).normal(size=(2, low, low)).astype(np.float32)
    height, width = input_shape(shape, size)
    theirs = F.interpolate(torch.tensor(logits)[None], (size, size), mode="bilinear", align_corners=False)[..., :height, :width]
    theirs = F.interpolate(theirs, shape, mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(lowres_to_image(logits, shape, size), theirs, atol=2e-3)


# -- holes and islands ---------------------------------------------------------------------------------------------------


def slow_parts(inside):
    """The 8-connected parts of a boolean grid, as sets of pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(inside)}
    parts = []
    while left:
        part, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front.extend(near)
        parts.append(part)
    return parts


GRIDS = arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])
)


@given(GRIDS, st.integers(0, 12))
def test_holes_and_islands_are_what_the_cuda_kernel_finds(grid, area):
    filled, cleaned = grid.copy(), grid.copy()
    for part in slow_parts(grid <= 0):
        if len(part) <= area:
            filled[tuple(zip(*part, strict=True))] = 0.1
    for part in slow_parts(grid > 0):
        if len(part) <= area:
            cleaned[tuple(zip(*part, strict=True))] = -0.1
    np.testing.assert_array_equal(fill_holes(grid, area), filled)
    np.testing.assert_array_equal(remove_islands(grid, area), cleaned)
    np.testing.assert_array_equal(fill_holes(np.stack([grid, grid]), area), [filled, filled])


@given(GRIDS)
def test_holes_of_any_size_are_the_parts_that_do_not_touch_the_border(grid):
    expected = grid.copy()
    edge = {0, grid.shape[0] - 1}, {0, grid.shape[1] - 1}
    for part in slow_parts(grid <= 0):
        if not any(y in edge[0] or x in edge[1] for y, x in part):
            expected[tuple(zip(*part, strict=True))] = 0.1
    np.testing.assert_array_equal(fill_holes(grid), expected)


def test_a_small_part_at_the_border_is_a_hole_by_area_but_not_by_true():
    logits = np.ones((8, 8), np.float32)
    logits[0, 0] = -1
    assert fill_holes(logits, 1)[0, 0] == np.float32(0.1)
    assert fill_holes(logits, True)[0, 0] == -1
    assert fill_holes(logits, False)[0, 0] == -1


def test_areas_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="0 pixels or more"):
        fill_holes(np.zeros((2, 2)), -1)
    with pytest.raises(InputError, match="area of an island"):
        remove_islands(np.zeros((2, 2)), True)


# -- the merge -----------------------------------------------------------------------------------------------------------


@given(
    arrays(np.float32, (3, 4, 5), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0])), st.permutations([2, 7, 200]), st.booleans()
)
def test_the_highest_logit_above_the_threshold_names_the_pixel(logits, ids, keep_aux):
    labels = merge(logits, ids, threshold=0.25, aux=(7,), keep_aux=keep_aux)
    assert labels.dtype == np.uint8
    for y, x in np.ndindex(4, 5):
        best = logits[:, y, x].max()
        name = min(i for i, v in zip(ids, logits[:, y, x], strict=True) if v == best) if best > 0.25 else 0
        assert labels[y, x] == (0 if name == 7 and not keep_aux else name)


def test_nothing_merges_to_background_and_a_missing_plane_is_refused():
    assert not merge(np.zeros((0, 2, 3)), ()).any()
    with pytest.raises(InputError, match="2 objects"):
        merge(np.zeros((1, 2, 3)), (1, 2))
