"""`by="sam2"` against the `sam2` package's own video predictor: a small network, seeded weights, real frames where they are."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, disc
from PIL import Image
from sam2long_oracle import SMALL, SMALL_GAINS, build_network, centred, fill
from scipy import ndimage

from vosnb import Box, Clip, InputError, Point, Prompt, stream
from vosnb.models.sam2 import Sam2, load
from vosnb.strategies import Result

pytestmark = pytest.mark.usefixtures("one_thread")

H, W = 90, 160
ONE, TWO = Prompt(mask=disc(H, W, 60, 40, 20)), Prompt(mask=disc(H, W, 110, 60, 17))
CLICK, CLICKS = Prompt((Point(60, 40),)), Prompt((Point(60, 40), Point(20.5, 20, 0), Point(70, 45.25)))
BOX, BOX_AND_CLICKS = Prompt(box=Box(40, 20, 80, 60)), Prompt((Point(50, 30), Point(20, 20, 0)), Box(40, 20, 80, 60))
NOTHING = Prompt(mask=np.zeros((H, W), bool))
Asked = Mapping[int, Mapping[int, Prompt]]
Logits = dict[int, dict[int, np.ndarray]]  # frame → object → (H, W)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder of that many JPEGs, 160×90: real frames, there and back, or a moving texture where there are none."""
    real = sorted((SHARED / "data" / "reference" / "bedroom_frames").glob("*.jpg"))
    if real:
        frames = [Image.open(file).resize((W, H)) for file in real]
    else:
        noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((H, W + 60, 3)), (3, 3, 0))
        picture = np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)
        frames = [Image.fromarray(picture[:, 5 * t : 5 * t + W]) for t in range(12)]
    frames += frames[-2:0:-1]

    def shot(length: int) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"film{length}"
        if not folder.is_dir():
            folder.mkdir()
            for t in range(length):
                frames[t].save(folder / f"{t:05d}.jpg", quality=95)
        return folder

    return shot


Make = Callable[..., Any]


@pytest.fixture(scope="module")
def network(film: Callable[[int], Path]) -> Make:
    """Builds networks of 1.4 M parameters whose object scores straddle 0, mostly above, as predictors; each once."""
    built: dict[tuple, Any] = {}

    def make(config: str = "sam2.1/sam2.1_hiera_t", image_size: int = 128, postprocess: bool = False) -> Any:
        key = config, image_size, postprocess
        if key not in built:
            overrides = {**SMALL, "image_size": image_size}
            made = fill(build_network(f"configs/{config}.yaml", overrides, postprocess), gains=SMALL_GAINS)
            made.fill_hole_area = 0  # it has an extension for that, in CUDA
            run = functools.partial(predicted, made, film(9), {0: {1: CLICKS, 2: TWO}})
            head, said = centred(made, run).sam_mask_decoder.pred_obj_score_head, []
            with torch.no_grad():
                head.layers[-1].bias += 20  # always visible, and then not where it is least so
                hook = head.register_forward_hook(lambda *call: said.append(call[-1].item()))
                run()
                hook.remove()
                head.layers[-1].bias -= float(np.quantile(said, 0.2))
            made.fill_hole_area = 8 * postprocess
            built[key] = made
        return built[key]

    return make


def predicted(network: Any, folder: Path, prompts: Asked, reverse: bool = False) -> Logits:
    """What a person gets who prompts, propagates to the next frame in need of a prompt, prompts, and goes on from there."""
    state = network.init_state(str(folder))
    found = {}
    order = sorted(prompts, reverse=reverse)
    for t, following in itertools.zip_longest(order, order[1:]):
        for obj, prompt in prompts[t].items():
            if prompt.mask is not None:
                network.add_new_mask(state, t, obj, prompt.mask.copy())
            else:
                points, labels = [(p.x, p.y) for p in prompt.points] or None, [p.label for p in prompt.points] or None
                network.add_new_points_or_box(state, t, obj, points, labels, box=prompt.box and prompt.box.xyxy)
        until = None if following is None else abs(following - t)
        for frame, objects, logits in network.propagate_in_video(state, t, until, reverse):
            found[frame] = {obj: plane[0].numpy() for obj, plane in zip(objects, logits, strict=True)}
    return found


def tracked(network: Any, folder: Path, prompts: Asked, **settings: Any) -> dict[int, Result]:
    model = Sam2(network, postprocess=settings.pop("postprocess", False))
    return dict(stream(Clip(folder), prompts, "sam2", model=model, **settings))


def agree(ours: Mapping[int, Result], theirs: Logits) -> None:
    """Logits within 1e-3, and the same label map wherever the winner leads by more than 1e-4."""
    assert sorted(ours) == sorted(theirs)
    assert any((plane > 0).any() for planes in list(theirs.values())[1:] for plane in planes.values())  # else it says little
    for t, logits in theirs.items():
        assert sorted(ours[t].scores) == sorted(logits)
        for obj, plane in logits.items():
            np.testing.assert_allclose(ours[t].logits[obj], plane, rtol=0, atol=1e-3, err_msg=f"object {obj}, frame {t}")
        ids = sorted(logits)
        planes = np.stack([np.zeros((H, W), np.float32), *(logits[obj] for obj in ids)])
        labels = np.array([0, *ids])[planes.argmax(0)]
        gap = np.diff(np.sort(planes, axis=0)[-2:], axis=0)[0]
        assert (ours[t].labels == labels)[gap > 1e-4].all()


CASES = {
    "a mask and another, longer than the memory": (20, {0: {1: ONE, 2: TWO}}),
    "one click": (9, {0: {1: CLICK, 2: TWO}}),
    "clicks on object and background": (9, {0: {1: CLICKS}}),
    "a box": (9, {0: {1: BOX}}),
    "a box and clicks": (20, {0: {1: BOX_AND_CLICKS}}),
    "nothing, which is a mask too": (5, {0: {1: NOTHING, 2: TWO}}),
    "an object that begins later": (9, {0: {1: ONE}, 4: {2: BOX}}),
    "a correction by one click": (9, {0: {1: ONE, 2: TWO}, 4: {1: CLICK}}),
    "a correction by clicks": (9, {0: {1: CLICKS}, 5: {1: Prompt((Point(100, 50), Point(60, 40, 0)))}}),
    "a correction by a box": (9, {0: {1: ONE}, 3: {1: BOX_AND_CLICKS}}),
    "a correction by a mask": (9, {0: {1: ONE}, 3: {1: TWO}}),
    "corrections beyond the memory": (20, {0: {1: BOX, 2: TWO}, 2: {2: CLICKS}, 9: {1: TWO, 2: NOTHING}, 11: {2: CLICK}}),
}


@pytest.mark.parametrize(("length", "prompts"), CASES.values(), ids=CASES)
def test_masks_are_the_predictors(network: Make, film: Callable, length: int, prompts: Asked, monkeypatch: Any) -> None:
    net = network()
    monkeypatch.setattr(net, "add_all_frames_to_correct_as_cond", True)
    theirs = predicted(net, film(length), prompts)
    agree(tracked(net, film(length), prompts), theirs)


@pytest.mark.parametrize("prompts", [{19: {1: BOX}}, {8: {1: CLICKS, 2: TWO}, 4: {1: CLICK}}])
def test_a_reversed_run_is_the_predictors(network: Make, film: Callable, prompts: Asked, monkeypatch: Any) -> None:
    net = network()
    monkeypatch.setattr(net, "add_all_frames_to_correct_as_cond", True)
    first = max(prompts)
    theirs = predicted(net, film(20), prompts, reverse=True)
    ours = tracked(net, film(20), prompts, direction="backward")
    assert not any(ours[t].scores for t in range(first + 1, 20))
    agree({t: r for t, r in ours.items() if t <= first}, theirs)
    mirrored = {19 - t: asked for t, asked in prompts.items()}
    for t, result in stream(Clip(film(20))[::-1], mirrored, "sam2", model=Sam2(net)):
        assert np.array_equal(result.labels, ours[19 - t].labels)


@pytest.mark.parametrize(("config", "image_size"), [("sam2/sam2_hiera_t", 128), ("sam2.1/sam2.1_hiera_t", 192)])
def test_so_are_those_of_sam_2_0_and_of_another_image_size(network: Make, film: Callable, config: str, image_size: int) -> None:
    prompts = {0: {1: CLICKS, 2: TWO}}
    net = network(config, image_size)
    agree(tracked(net, film(18), prompts), predicted(net, film(18), prompts))


def holes_filled(masks: torch.Tensor, area: int) -> torch.Tensor:
    """The package's rule, for its CUDA extension that is not there."""
    out = masks.clone()
    for plane in out.flatten(0, -3):
        labels, _ = ndimage.label(plane.numpy() <= 0, np.ones((3, 3)))
        plane[torch.from_numpy((labels > 0) & (np.bincount(labels.ravel())[labels] <= area))] = 0.1
    return out


@pytest.mark.parametrize("name", ["a correction by one click", "corrections beyond the memory"])
def test_with_post_processing_too(network: Make, film: Callable, name: str, monkeypatch: Any) -> None:
    length, prompts = CASES[name]
    net = network(postprocess=True)
    filled = []
    fill_holes = "sam2.sam2_video_predictor.fill_holes_in_mask_scores"
    monkeypatch.setattr(fill_holes, lambda masks, area: filled.append((masks, holes_filled(masks, area))) or filled[-1][1])
    monkeypatch.setattr(net, "add_all_frames_to_correct_as_cond", True)
    theirs = predicted(net, film(length), prompts)
    assert any(not torch.equal(*pair) for pair in filled)
    agree(tracked(net, film(length), prompts, postprocess=True), theirs)


def test_a_correction_changes_what_follows_and_nothing_before(network: Make, film: Callable) -> None:
    without = tracked(network(), film(9), {0: {1: ONE}})
    corrected = tracked(network(), film(9), {0: {1: ONE}, 5: {1: TWO}})
    same = [np.array_equal(without[t].logits[1], corrected[t].logits[1]) for t in range(9)]
    assert same == [True] * 5 + [False] * 4


def test_scores_are_what_the_decoder_said(network: Make, film: Callable) -> None:
    net, said = network(), []
    hook = net.sam_mask_decoder.register_forward_hook(lambda *call: said.append((call[-1][1].max().item(), call[-1][3].item())))
    predicted(net, film(9), {0: {1: ONE}})
    hook.remove()
    ours = [r.scores[1] for r in tracked(net, film(9), {0: {1: ONE}}).values()]
    assert (ours[0].iou, ours[0].present) == (1.0, 10.0)  # a mask is taken at its word
    np.testing.assert_allclose([(s.iou, s.present) for s in ours[1:]], said[1:], atol=1e-3)
    assert all(s.disagreement == 0 and len(s.hypotheses) == 1 for s in ours)


def test_the_image_is_encoded_once_a_frame_whatever_the_number_of_objects(network: Make, film: Callable) -> None:
    net, count = network(), []
    hook = net.image_encoder.register_forward_hook(lambda *call: count.append(1))
    tracked(net, film(5), {0: {1: ONE, 2: TWO, 3: BOX, 4: NOTHING}, 2: {5: CLICK, 1: CLICKS}})
    hook.remove()
    assert len(count) == 5


# --- models by name and by file ---


@pytest.fixture
def files(network: Make, tmp_path: Path) -> tuple[Path, Path]:
    """(config, checkpoint) of a small network, as people keep them."""
    from omegaconf import OmegaConf

    from vosnb.models.sam import sam2_config

    config = OmegaConf.load(sam2_config("sam2.1_hiera_t"))
    for key, value in SMALL.items():
        OmegaConf.update(config, f"model.{key}", value)
    OmegaConf.save(config, tmp_path / "small.yaml")
    torch.save({"model": network().state_dict()}, tmp_path / "small.pt")
    return tmp_path / "small.yaml", tmp_path / "small.pt"


def test_a_checkpoint_and_its_config_are_a_model(
    files: tuple[Path, Path], network: Make, film: Callable, tmp_path: Path, monkeypatch: Any
) -> None:
    config, checkpoint = files
    expected = tracked(network(), film(5), {0: {1: ONE}})
    monkeypatch.chdir(tmp_path)
    for names in ((checkpoint, config), ("small.pt", "small.yaml")):
        found = dict(stream(Clip(film(5)), {0: {1: ONE}}, "sam2", model=names[0], config=names[1], device="cpu"))
        assert all(np.array_equal(found[t].logits[1], expected[t].logits[1]) for t in range(5))


def test_another_image_size_is_asked_for_by_name(files: tuple[Path, Path], network: Make, film: Callable) -> None:
    config, checkpoint = files
    net = network(image_size=192)
    torch.save(net.state_dict(), checkpoint)
    ours = stream(Clip(film(5)), {0: {1: CLICKS}}, "sam2", model=checkpoint, config=config, image_size=192, device="cpu")
    agree(dict(ours), predicted(net, film(5), {0: {1: CLICKS}}))
    with pytest.raises(InputError, match="multiple of 32"):
        load(checkpoint, config, image_size=100, device="cpu")


def test_post_processing_is_the_packages_when_asked_for_by_name(files: tuple[Path, Path]) -> None:
    config, checkpoint = files
    assert load(checkpoint, config, device="cpu", postprocess=True).network.sam_mask_decoder.dynamic_multimask_via_stability
    assert not load(checkpoint, config, device="cpu").network.sam_mask_decoder.dynamic_multimask_via_stability


def test_a_checkpoint_that_is_not_the_configs_is_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="335, of which"):
        load(files[1], "sam2.1_hiera_t", device="cpu")
    with pytest.raises(InputError, match="unknown"):
        load(files[1], "sam2_hiera_t", device="cpu")


def test_a_missing_checkpoint_says_how_to_get_it(files: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path))
    with pytest.raises(InputError, match=r"vosnb fetch sam2\.1_hiera_tiny"):
        load("sam2.1_hiera_tiny")
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "other.pt", files[0])
    with pytest.raises(InputError, match="its config"):
        load(files[1])
    with pytest.raises(InputError, match="SAM 2 configuration"):
        load(files[1], "small.yaml.not")


# --- torch.compile ---


def test_compilation_is_asked_for_the_parts_of_fixed_shape(network: Make, film: Callable, monkeypatch: Any) -> None:
    used = []
    monkeypatch.setattr(torch, "compile", lambda part: lambda *args: used.append(part.__name__) or part(*args))
    compiled = stream(Clip(film(3)), {0: {1: ONE}}, "sam2", model=Sam2(network(), compile=True))
    for (_, ours), expected in zip(compiled, tracked(network(), film(3), {0: {1: ONE}}).values(), strict=True):
        assert np.array_equal(ours.labels, expected.labels)
    assert used == ["_encoder", "_decoder", "_fuse"] * 3


@pytest.mark.skipif(os.environ.get("VOSNB_SLOW") != "1", reason="compiles for minutes: set VOSNB_SLOW=1")
def test_compiled_parts_give_the_same_label_maps(network: Make, film: Callable) -> None:
    prompts = {0: {1: CLICKS, 2: ONE}, 3: {1: BOX}}
    agree(
        dict(stream(Clip(film(6)), prompts, "sam2", model=Sam2(network(), compile=True))),
        {t: dict(r.logits) for t, r in tracked(network(), film(6), prompts).items()},
    )
