"""Measurements against shapes whose values are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from vosnb.errors import InputError
from vosnb.masks import Masks
from vosnb.measure import box_dimension, crossings, measure, mixing_profile


def disc(side: int, radius: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    yy, xx = np.mgrid[:side, :side] + 0.5 - side / 2
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius**2


def sine(amplitude: float, wavelength: float, height: int = 300, width: int = 600) -> np.ndarray:
    """Two dyes, 1 above and 2 below y = height / 2 + amplitude · sin(2π x / wavelength)."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.where(y > height / 2 + amplitude * np.sin(2 * np.pi * x / wavelength), np.uint8(2), np.uint8(1))


def arc(amplitude: float, wavelength: float, width: int = 600) -> float:
    x = np.linspace(0, width, 60 * width)
    return float(np.hypot(np.diff(x), np.diff(amplitude * np.sin(2 * np.pi * x / wavelength))).sum())


def koch(level: int, side: float) -> np.ndarray:
    """The snowflake on a triangle of that side, (H, W) bool."""
    z = np.array([0, np.exp(1j * np.pi / 3), 1])
    for _ in range(level):
        step = (np.roll(z, -1) - z) / 3
        z = np.stack([z, z + step, z + step + step * np.exp(1j * np.pi / 3), z + 2 * step], 1).ravel()
    size = int(1.25 * side)
    z = (z - (0.5 + 0.2887j)) * side + (1 + 1j) * size / 2
    y, x = np.mgrid[:size, :size] + 0.5
    return Outline(np.c_[z.real, z.imag]).contains_points(np.c_[x.ravel(), y.ravel()]).reshape(size, size)


def one(labels, **more):
    """The row of the only object."""
    return measure(labels[None].astype(np.uint8), **more).objects.iloc[0]


@settings(max_examples=25, deadline=None)
@given(radius=st.floats(25, 60), x=st.floats(-4, 4), y=st.floats(-4, 4))
def test_a_disc_of_any_size_at_any_place(radius, x, y):
    row = one(disc(140, radius, x, y))
    assert row.area == pytest.approx(np.pi * radius**2, rel=0.01)
    assert row.perimeter == pytest.approx(2 * np.pi * radius, rel=0.03)
    assert (row.x, row.y) == (pytest.approx(70 + x, abs=0.1), pytest.approx(70 + y, abs=0.1)) and row.parts == 1


@pytest.mark.parametrize(("outer", "inner"), [(80, 50), (120, 40)])
def test_an_annulus_has_two_outlines(outer, inner):
    row = one(disc(260, outer) & ~disc(260, inner))
    assert row.area == pytest.approx(np.pi * (outer**2 - inner**2), rel=0.01)
    assert row.perimeter == pytest.approx(2 * np.pi * (outer + inner), rel=0.03)
    assert row.dimension == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("amplitude", "wavelength"), [(10, 600), (40, 200), (20, 300), (0.2, 600)])
def test_a_sine_interface(amplitude, wavelength):
    found = measure(sine(amplitude, wavelength)[None])
    (pair,) = found.interfaces.itertuples()
    assert (pair.a, pair.b) == (1, 2)
    assert pair.length == pytest.approx(arc(amplitude, wavelength), rel=0.03)
    assert pair.dimension == pytest.approx(1, abs=0.05)
    assert pair.thickness == pytest.approx(24 * amplitude / np.pi**2, rel=0.02, abs=0.5)  # f = ½ + asin(y/A)/π
    assert found.objects["perimeter"].tolist() == [pair.length] * 2  # the frame's edge is no outline


@pytest.mark.parametrize(("level", "side"), [(1, 300), (2, 400), (3, 600)])
def test_a_koch_curve_that_the_grid_resolves(level, side):
    row = one(koch(level, side))
    assert row.area == pytest.approx(np.sqrt(3) / 4 * side**2 * (8 / 5 - 3 / 5 * (4 / 9) ** level), rel=0.01)
    assert row.perimeter == pytest.approx(3 * side * (4 / 3) ** level, rel=0.03)


@pytest.mark.parametrize(("level", "side"), [(4, 400), (4, 500)])
def test_a_koch_curve_has_its_dimension(level, side):
    assert one(koch(level, side)).dimension == pytest.approx(np.log(4) / np.log(3), abs=0.05)


@pytest.mark.parametrize("radius", [60, 80, 120])
def test_a_smooth_outline_has_dimension_one(radius):
    assert one(disc(260, radius)).dimension == pytest.approx(1, abs=0.05)


def test_a_line_too_short_for_a_dimension_has_none():
    assert np.isnan(one(disc(60, 20)).dimension) and np.isnan(box_dimension(np.zeros((9, 9), bool)))


@pytest.mark.parametrize("degrees", range(0, 180, 12))
def test_a_straight_line_in_any_direction(degrees):
    y, x = np.mgrid[:300, :300] - 149.5
    turn = np.radians(degrees)
    labels = np.where(x * np.sin(turn) > y * np.cos(turn), np.uint8(2), np.uint8(1))
    length = 300 / max(abs(np.cos(turn)), abs(np.sin(turn)))
    assert crossings(labels)[1, 2] == pytest.approx(length, rel=0.02)


# -- interfaces ----------------------------------------------------------------------------------------------------------


def test_objects_a_little_apart_share_an_interface_half_way():
    labels = np.zeros((100, 200), np.uint8)
    labels[:48], labels[52:] = 1, 2  # 4 pixels between
    assert measure(labels[None], gap=2).interfaces.empty
    (pair,) = measure(labels[None], gap=4).interfaces.itertuples()
    assert pair.length == pytest.approx(200, rel=0.02)


def test_the_frames_edge_and_third_objects_are_no_interface():
    labels = np.zeros((100, 200), np.uint8)
    labels[:50, :100], labels[50:, :100], labels[:, 100:] = 1, 2, 3
    table = measure(labels[None]).interfaces.set_index(["a", "b"])["length"]
    assert table.to_dict() == {
        (1, 2): pytest.approx(100, rel=0.03), (1, 3): pytest.approx(50, rel=0.03), (2, 3): pytest.approx(50, rel=0.03),
    }  # fmt: skip


def test_thickness_is_the_distance_over_which_one_gives_way_to_the_other():
    y, x = np.mgrid[:200, :400] + 0.5
    labels = np.where(x / 400 < (y - 60) / 80, np.uint8(2), np.uint8(1))  # 2's share grows evenly from y = 60 to 140
    assert measure(labels[None]).interfaces.thickness[0] == pytest.approx(80, rel=0.02)
    assert measure(labels.T[None], across="x").interfaces.thickness[0] == pytest.approx(80, rel=0.02)
    profile = mixing_profile(labels, 1, 2)
    assert profile[:60].max() == 0 and profile[141:].min() == 1 and profile[100] == pytest.approx(0.5, abs=0.01)


# -- units, time, several strategies --------------------------------------------------------------------------------------


def test_calibration_scales_lengths_areas_and_velocities():
    labels = np.stack([disc(100, 15, 3 * t) for t in range(4)]).astype(np.uint8)
    plain, fine = measure(labels), measure(labels, pixel=0.5, unit="mm", times=[0, 0.1, 0.2, 0.3])
    assert np.allclose(fine.objects.area, plain.objects.area / 4) and np.allclose(
        fine.objects.perimeter, plain.objects.perimeter / 2
    )
    assert np.allclose(plain.objects.vx, 3, atol=0.05) and np.allclose(fine.objects.vx, 15, atol=0.25)
    assert (fine.unit, fine.clock, plain.clock) == ("mm", "s", "frame") and np.allclose(fine.objects.vy, 0, atol=0.25)


def test_an_absent_object_has_no_place_and_no_velocity():
    labels = np.stack([disc(60, 10), disc(60, 10, 2), np.zeros((60, 60), bool), disc(60, 10, 6)]).astype(np.uint8)
    table = measure(labels).objects
    assert table.area[2] == 0 and table.parts.tolist() == [1, 1, 0, 1] and table.perimeter[2] == 0
    assert table[["x", "y", "vx", "dimension"]].iloc[2].isna().all()


def test_parts_are_counted_with_their_corners():
    labels = np.zeros((60, 60), np.uint8)
    labels[10:20, 10:20] = labels[20:30, 20:30] = labels[40:50, 40:50] = 1
    assert one(labels).parts == 2


def test_the_band_is_the_spread_across_strategies():
    masks = {by: np.stack([disc(100, r)] * 2).astype(np.uint8) for by, r in {"flow": 20, "sam": 22, "xmem": 26}.items()}
    found = measure(masks)
    area = found.band().query("quantity == 'area' and frame == 1").iloc[0]
    assert area.what == "1" and area["count"] == 3
    assert (area["min"], area["median"], area["max"]) == tuple(pytest.approx(np.pi * r * r, rel=0.01) for r in (20, 22, 26))


def test_it_is_saved_with_its_units_and_drawn(tmp_path):
    labels = np.stack([sine(30, 150, 150, 300), sine(32, 150, 150, 300)])
    folder = measure({"a": Masks(labels), "b": labels}, pixel=0.1, unit="mm").save(tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["band.csv", "interfaces.csv", "measures.png", "objects.csv"]
    assert (folder / "objects.csv").read_text().startswith("# lengths in mm, areas in mm²")
    table = pd.read_csv(folder / "interfaces.csv", comment="#")
    assert table.by.tolist() == ["a", "a", "b", "b"] and table["length"][0] == pytest.approx(arc(30, 150, 300) / 10, rel=0.03)
    assert (folder / "measures.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixel": 0},
        {"pixel": float("nan")},
        {"gap": -1},
        {"gap": float("nan")},
        {"across": "z"},
        {"times": [0, 1]},
        {"times": [0, 2, 1]},
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(InputError):
        measure(np.ones((3, 20, 20), np.uint8), **wrong)
    with pytest.raises(InputError, match="masks of one shape"):
        measure({"a": np.ones((3, 20, 20), np.uint8), "b": np.ones((2, 20, 20), np.uint8)})
    with pytest.raises(InputError, match="with an object"):
        measure(np.zeros((3, 20, 20), np.uint8))
    with pytest.raises(InputError, match="a quantity among"):
        measure(np.ones((3, 20, 20), np.uint8)).plot(["colour"])
