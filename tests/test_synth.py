"""The generators: the physics holds, a seed names a clip, and the truth is what the picture shows."""

from __future__ import annotations

import hashlib
import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial import cKDTree

from vosnb.errors import InputError
from vosnb.prompts import Prompts
from vosnb.synth import KINDS, Scene, scene, turbulence, write_scenes
from vosnb.synth.turbulence import Flow, _Camera, carry

SMALL = {"height": 96, "width": 160}


def digest(clip, frames: int | None = None) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for pair in islice(clip, frames) for a in pair)).hexdigest()


def random_flow(seed: int = 0, **terms) -> tuple[Flow, np.ndarray]:
    flow = Flow((48, 64), (1.0, 1.5), **terms)
    noise = np.random.default_rng(seed).normal(size=(2, 48, 64))
    state = flow.state(*noise)
    kx, ky = flow.waves
    return flow, state * np.exp(-(kx**2 + ky**2) / 25**2)


def energy(flow: Flow, state: np.ndarray) -> float:
    u, v = flow.velocity(state)
    return float((u.astype(float) ** 2 + v.astype(float) ** 2).mean())


# -- the flow ----------------------------------------------------------------------------------------------------------


def test_taylor_green_vortices_decay_at_the_analytic_rate():
    flow = Flow((32, 32), (1.0, 1.0), viscosity=1e-3)
    x, y = flow.grid()
    k = 2 * np.pi
    u, v = np.sin(k * x) * np.cos(k * y), -np.cos(k * x) * np.sin(k * y)
    later = flow.run(flow.state(u, v), 5.0)
    decay = np.exp(-2 * 1e-3 * k**2 * 5.0)
    np.testing.assert_allclose(flow.velocity(later), (u * decay, v * decay), atol=2e-5)


def test_without_viscosity_energy_is_kept_and_with_walls_it_falls():
    flow, state = random_flow()
    before, after = energy(flow, state), energy(flow, flow.run(state, 0.5))
    assert abs(after / before - 1) < 1e-3
    assert np.abs(flow.run(state, 0.5) - state).max() > 0.1 * np.abs(state).max()  # it did move
    walled, state = random_flow(drag=np.full((48, 64), 0.5, np.float32))
    assert energy(walled, walled.run(state, 0.5)) / before == pytest.approx(np.exp(-2 * 0.5 * 0.5), rel=1e-2)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_velocity_is_free_of_divergence_on_the_grid_and_between(seed):
    flow, state = random_flow(seed, viscosity=1e-3)
    state = flow.run(state, 0.1)
    for shape in ((48, 64), (100, 180)):
        u, v = flow.velocity(state, shape)
        fine = Flow(shape, flow.size)
        kx, ky = fine.waves
        u, v = np.fft.rfft2(u), np.fft.rfft2(v)
        assert np.abs(kx * u + ky * v).max() < 1e-5 * np.abs(kx * v - ky * u).max()


def test_finer_velocity_passes_through_the_grid_points():
    flow, state = random_flow()
    np.testing.assert_allclose(flow.velocity(state, (96, 128))[0][::2, ::2], flow.velocity(state)[0], atol=1e-4)


def test_mean_velocity_is_part_of_the_state():
    flow = Flow((16, 16), (1.0, 1.0))
    u, v = flow.velocity(flow.run(flow.state(np.full((16, 16), 0.25), np.zeros((16, 16))), 1.0))
    np.testing.assert_allclose(u, 0.25, atol=1e-6)
    np.testing.assert_allclose(v, 0, atol=1e-6)


def test_dye_is_carried_by_the_velocity_and_round_the_end():
    image = np.random.default_rng(0).random((12, 20, 3), np.float32)
    carried = carry(image, np.full((12, 20), 3.0), np.full((12, 20), -2.0))
    np.testing.assert_allclose(carried, np.roll(image, (-2, 3), (0, 1)), atol=1e-5)


# -- the turbulence clip -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film() -> list[tuple[np.ndarray, np.ndarray]]:
    return list(turbulence(seed=3, frames=60, **SMALL))


def test_turbulence_has_its_shape_and_its_objects(film):
    clip = turbulence(seed=3, frames=60, **SMALL)
    assert len(clip) == len(film) == 60
    assert set(clip.objects) == {1, 2, 3} and clip.aux == (3,)
    for image, labels in film:
        assert image.shape == (96, 160, 3) and image.dtype == np.uint8
        assert labels.shape == (96, 160) and labels.dtype == np.uint8
        assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_dyes_hardly_mix_and_their_shapes_change(film):
    shares = np.array([np.bincount(labels.ravel(), minlength=4)[1:3] / labels.size for _, labels in film])
    assert (shares > 0.2).all() and (shares < 0.35).all()
    assert np.abs(shares / shares[0] - 1).max() < 0.15
    first, last = film[0][1], film[-1][1]
    for dye in (1, 2):
        both = ((first == dye) & (last == dye)).sum() / ((first == dye) | (last == dye)).sum()
        assert both < 0.85


def test_first_frame_has_the_top_dye_above_the_bottom_dye(film):
    boxes = turbulence(seed=3, frames=60, **SMALL).prompts()[0]
    assert boxes[1].box.y1 <= boxes[2].box.y1 and boxes[1].box.y0 < boxes[2].box.y0 < boxes[3].box.y0
    _, labels = film[0]
    for obj, prompt in boxes.items():
        x0, y0, x1, y1 = (int(v) for v in prompt.box.xyxy)
        assert (labels[y0:y1, x0:x1] == obj).sum() == (labels == obj).sum()
        inside = labels[y0:y1, x0:x1] == obj
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))  # tight


def test_colours_say_which_dye_it_is(film):
    for image, labels in film[::20]:
        blue, red = (image[labels == dye].mean(0) for dye in (1, 2))
        assert blue[2] > blue[0] + 20 and red[0] > red[2] + 20


def test_camera_moves_picture_and_truth_together():
    camera = _Camera(np.random.default_rng(0), 64, 96)
    stripe = np.zeros((80, 96, 1), np.float32)
    stripe[:, 40:56] = 1
    places = []
    for t in range(0, 60, 5):
        image, labels = camera.shoot(t, stripe.repeat(3, 2), stripe.repeat(3, 2) * np.float32([1, 0, 0]))
        bright = image.mean(-1) > 100
        assert (bright == (labels == 1)).mean() > 0.97
        places.append(np.nonzero(labels == 1)[1].mean())
    assert np.ptp(places) > 1


def test_a_longer_clip_begins_like_a_shorter_one_and_iterating_again_gives_the_same(film):
    clip = turbulence(seed=3, frames=2, **SMALL)
    assert digest(clip) == digest(clip) == digest(film, 2)


def test_pace_slows_the_flow_and_not_the_start():
    slow, usual = (list(turbulence(seed=3, frames=7, pace=pace, **SMALL).truth) for pace in (1 / 3, 1))
    assert (slow[0] == usual[0]).all()
    moved = [(clip[t] != clip[0]).mean() for clip, t in ((slow, 6), (usual, 2), (usual, 6))]
    assert moved[0] == pytest.approx(moved[1], rel=0.35) and moved[2] > 1.5 * moved[0]
    with pytest.raises(InputError, match="pace"):
        turbulence(pace=0)


def test_other_seeds_are_other_clips():
    assert len({digest(turbulence(seed=s, frames=1, **SMALL)) for s in range(3)}) == 3


# -- scenes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_names_a_scene(kind):
    clip = scene(1, kind, frames=5, **SMALL)
    assert (
        digest(clip) == digest(clip) == digest(scene(1, kind, frames=5, **SMALL)) != digest(scene(2, kind, frames=5, **SMALL))
    )
    for image, labels in clip:
        assert image.shape == (96, 160, 3) and image.dtype == labels.dtype == np.uint8 and labels.shape == (96, 160)
        assert set(np.unique(labels)) <= {0, *clip.objects}


def areas(clip: Scene, obj: int) -> np.ndarray:
    return np.array([(labels == obj).sum() for labels in clip.truth])


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_occluder_hides_the_object_for_several_frames_and_it_returns(seed):
    area = areas(scene(seed, "occluder", frames=40, **SMALL), 1)
    assert area[0] > 50 and area[-1] > 50
    hidden = np.flatnonzero(area == 0)
    assert len(hidden) >= 6 and (np.diff(hidden) == 1).all()


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_late_object_begins_after_the_first(seed):
    clip = scene(seed, "late", frames=30, **SMALL)
    area = areas(clip, 2)
    assert area[:9].sum() == 0 and area[-1] > 50
    first = int(np.flatnonzero(area >= 64 * SMALL["height"] * SMALL["width"] / (256 * 480))[0])
    prompts = clip.prompts()
    assert 1 in prompts[0] and set(prompts[first]) == {2}


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
@example(453)  # there one is half hidden, and what is seen of it has another mean
def test_lookalikes_share_a_palette(seed):
    """What is seen of one has its like, colour by colour, in the other; of unlike objects, half the colours are 10 to 200 away."""
    clip = scene(seed, "lookalike", frames=20, **SMALL)
    image, labels = next((i, m) for i, m in clip if all((m == obj).sum() > 30 for obj in (1, 2)))
    less, more = sorted((image[labels == obj].astype(float) for obj in (1, 2)), key=len)
    assert np.median(cKDTree(more).query(less)[0]) < 10


def test_scenes_of_many_seeds_look_different():
    tones = np.array([next(iter(scene(seed, "mixed", frames=1, **SMALL)))[0].mean((0, 1)) for seed in range(8)])
    assert (tones.std(0) > 20).all()


# -- on disk -----------------------------------------------------------------------------------------------------------


def test_write_lays_scenes_out_like_davis(tmp_path):
    scenes = [scene(0, "late", frames=12, **SMALL), scene(1, "occluder", frames=3, **SMALL)]
    root = write_scenes(tmp_path / "bench", scenes)
    for clip in scenes:
        names = [f"{t:05d}" for t in range(clip.frames)]
        assert sorted(p.name for p in (root / "JPEGImages" / clip.name).iterdir()) == [f"{n}.jpg" for n in names]
        assert sorted(p.name for p in (root / "Annotations" / clip.name).iterdir()) == [f"{n}.png" for n in names]
        for name, (image, labels) in zip(names, clip, strict=True):
            with Image.open(root / "Annotations" / clip.name / f"{name}.png") as png:
                assert png.mode == "P" and (np.asarray(png) == labels).all()
                assert png.getpalette()[3:6] == [128, 0, 0]
            with Image.open(root / "JPEGImages" / clip.name / f"{name}.jpg") as jpeg:
                assert np.abs(np.asarray(jpeg).astype(int) - image).mean() < 12  # the noise of an image at quality 95
        assert Prompts.load(root / "prompts" / f"{clip.name}.json") == clip.prompts()
    assert json.loads((root / "prompts" / "late-00.json").read_text())["video"]["frames"] == 12


def test_write_refuses_a_folder_with_files_unless_told_and_two_scenes_of_one_name(tmp_path):
    clip = scene(0, "deform", frames=1, **SMALL)
    clip.write(tmp_path / "a")
    with pytest.raises(InputError, match="overwrite"):
        clip.write(tmp_path / "a")
    clip.write(tmp_path / "a", overwrite=True)
    with pytest.raises(InputError, match="different names"):
        write_scenes(tmp_path / "b", [clip, clip])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"height": 10}, {"width": 1}, {"seed": -1}])
def test_bad_sizes_and_seeds_are_refused(wrong):
    for make in (turbulence, scene):
        with pytest.raises(InputError):
            make(**{"seed": 0, **wrong})
    with pytest.raises(InputError, match="occluder"):
        scene(0, "wormhole")
