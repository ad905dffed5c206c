"""The small models: training clips, samples, learners, training, benchmark, and what the shipped checkpoints can do."""

import copy
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from vosnb import Box, Masks, models, propagate
from vosnb.embedded import benchmark, clips, samples, scores, train, xmem_learner
from vosnb.embedded import learner as sam2_learner
from vosnb.embedded.learner import Learner
from vosnb.embedded.recipe import Stage
from vosnb.errors import InputError
from vosnb.models import sam2, weights, xmem
from vosnb.prompts import Prompt
from vosnb.strategies.xmem import XMem
from vosnb.synth import scene, turbulence

TINY = Stage("tiny", 4, clips=1, frames=2, objects=1, side=128, rate=(1e-3, 1e-4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two real clips under all names that validation and training ask for."""
    root = tmp_path_factory.mktemp("training") / "clips"
    root.mkdir()
    for index in range(2):
        np.save(root / f"{index:06d}.npy", clips.make_clip(index))
    for index in range(2, 2 * samples.VALIDATION):
        os.link(root / f"{index % 2:06d}.npy", root / f"{index:06d}.npy")
    return root


def sampled(folder, number=0, **more):
    rng = np.random.default_rng(number)
    return samples.sample(folder, number % 2, rng, **{"frames": 3, "objects": 2, "side": 128, **more})


# -- clips and samples ---------------------------------------------------------------------------------------------------


def test_a_training_clip_is_the_same_each_time_and_unlike_the_next():
    one, again, other = clips.make_clip(3), clips.make_clip(3), clips.make_clip(4)
    assert one.shape == (clips.FRAMES, clips.SIDE, clips.SIDE, 4)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert one[..., 3].any()


def test_no_seed_that_is_measured_is_ever_trained_on(monkeypatch):
    used = []
    monkeypatch.setattr(clips, "scene", lambda seed, *a, **k: used.append(seed) or scene(seed, *a, **k))
    monkeypatch.setattr(clips, "turbulence", lambda seed, *a, **k: used.append(seed) or turbulence(seed, *a, **k))
    for index in range(4):
        clips.make_clip(index)
    measured = [seed for seeds in benchmark.SEEDS.values() for seed in seeds] + list(scores.STILL_SEEDS)
    assert used == [clips.FIRST_SEED + index for index in range(4)]
    assert max(measured) < clips.FIRST_SEED


def test_making_clips_goes_on_where_it_stopped(tmp_path, monkeypatch):
    clips.make_clips(tmp_path, 1, 1)
    before = (tmp_path / "000000.npy").stat().st_mtime_ns
    clips.make_clips(tmp_path, 2, 1)
    assert (tmp_path / "000000.npy").stat().st_mtime_ns == before
    assert np.array_equal(clips.read_clip(tmp_path, 1), clips.make_clip(1))


@pytest.mark.parametrize("number", range(8))
def test_prompts_of_a_sample_agree_with_its_masks(folder, number):
    found = sampled(folder, number)
    assert found["images"].shape == (3, 128, 128, 3) and found["masks"].shape == (3, 2, 128, 128)
    for mask, points, labels, guess in zip(found["masks"][0], found["points"], found["labels"], found["guess"], strict=True):
        assert mask.sum() >= samples.SMALLEST * 128**2
        if labels[0] == 1:
            x, y = points[0].astype(int)
            assert mask[y, x] and labels[1] == -1
        elif labels[0] == 2:
            rows, columns = np.nonzero(mask)
            tight = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
            assert labels[1] == 3 and abs(points - tight).max() <= 128 / 24
        else:
            assert (labels == -1).all()
        assert guess.shape == (32, 32) and abs(guess).max() <= 20


def test_a_batch_depends_on_its_number_alone(folder):
    shape = (2, 2, 128)
    straight = list(samples.batches(folder, 128, 5, 0, 3, 2, shape, 0))
    later = list(samples.batches(folder, 128, 5, 2, 3, 2, shape, 0))
    for key, value in straight[2].items():
        assert torch.equal(value, later[0][key])
    assert not torch.equal(straight[0]["images"], straight[1]["images"])


# -- learning ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return sam2_learner.network(256).eval()


def test_the_training_pass_is_the_pass_that_tracks(network, folder):
    """Frame 0 from a box, then two frames from memory: the learner's masks against those of `Sam2`, call by call."""
    batch = samples.stacked([sampled(folder, 1, objects=1, side=256)])
    batch["points"][:] = torch.tensor([[60.0, 60.0], [180.0, 200.0]])
    batch["labels"][:] = torch.tensor([2, 3], dtype=torch.int32)
    learner, tracker = Learner(network), sam2.Sam2(network)
    with torch.no_grad():
        top, high, place, _ = learner.encode(batch)
        picture, finer = top[:, 0], [maps[:, 0] for maps in high]
        seen = picture + network.no_mem_embed.view(1, -1, 1, 1)
        logits, iou, tokens, present = learner.ask(
            seen, finer, batch["points"][:, 0], batch["labels"][:, 0], batch["guess"][:, 0]
        )
        single = torch.zeros(1, dtype=torch.bool)
        chosen, token = learner.choose(logits, iou, tokens, single)
        there = present[:, 0] > 0
        memory, pointer = learner.remember(picture, chosen, there), learner.pointer(token, there)
        seen = learner.attend(top[:, 1], place, [memory], [pointer])
    with torch.inference_mode():
        features = tracker.encode(batch["images"][0, 0].numpy())
        answer = tracker.prompt(features, Prompt(box=Box(60, 60, 180, 200)), (256, 256))
        theirs = tracker.remember(features, answer.logits, answer.present > 0)
        second = tracker.encode(batch["images"][0, 1].numpy())
        looked = tracker.attend(second, theirs[:, None], [[-1]], answer.pointer[:, None], [[1]], 15)
    gone = torch.where(there[:, None, None], chosen, sam2.ABSENT)
    assert torch.allclose(gone, answer.logits[:, 0], atol=1e-4)
    assert torch.allclose(pointer, answer.pointer, atol=1e-4)
    assert torch.allclose(memory, theirs.float(), atol=0.02, rtol=0.01)  # theirs is kept in bfloat16
    assert torch.allclose(seen, looked, atol=0.05)


def test_the_losses_fall_as_masks_get_better(network, folder):
    learner = Learner(network)
    target = torch.zeros(1, 64, 64)
    target[:, 16:40, 20:50] = 1
    close, far = (20 * torch.roll(target, n, -1)[:, None].expand(-1, 4, -1, -1) - 10 for n in (1, 12))
    iou, present = torch.full((1, 4), 0.9), torch.full((1, 1), 5.0)
    good, bad = (learner.judge(logits, iou, present, target) for logits in (close, far))
    assert good["mask"] < bad["mask"] and good["quality"] < bad["quality"] and good["single"] > 0.9
    gone = learner.judge(close, iou, present, torch.zeros(1, 64, 64))
    assert gone["mask"] == 0 and gone["presence"] > good["presence"]


def test_every_weight_of_the_network_learns(folder):
    torch.manual_seed(0)
    learner = Learner(sam2_learner.network(128))
    torch.nn.init.constant_(learner.network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 5)  # all is there
    batch = samples.stacked([sampled(folder, n) for n in range(2)])
    batch["given"][:] = torch.tensor([True, False])
    torch.manual_seed(0)  # draws a step with corrections
    found = learner(batch)
    sum(weight * found[key] for key, weight in sam2_learner.SAM2.losses.items()).backward()
    still = {name for name, p in learner.network.named_parameters() if p.grad is None or not p.grad.any()}
    absent = {"no_obj_ptr", "no_obj_embed_spatial"}  # nothing is taken for absent here
    second = {name for name in still if "output_hypernetworks_mlps" in name}  # only the best of three learns
    assert still - absent - second == {"no_mem_pos_enc"}, still  # the package's own, unused here
    assert {name.split(".")[2] for name in second} < {"1", "2", "3"}


@pytest.mark.parametrize("name", ["sam2", "xmem"])
def test_training_goes_on_after_an_interruption_as_if_there_had_been_none(name, folder, tmp_path, monkeypatch):
    recipe = replace(train.recipe(name), stages=(TINY,))
    monkeypatch.setattr(train, "VALIDATION", 4)  # clips that are looked at: a few are enough here

    def trained(root):
        (root / "clips").symlink_to(folder, target_is_directory=True)
        return train.train(root, 128, recipe, workers=0, every=2, device="cpu")

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    whole = weights.load_state(trained(tmp_path / "one"))
    calls, learn = [], train.learn

    def interrupted(*args, **more):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return learn(*args, **more)

    monkeypatch.setattr(train, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "two")
    monkeypatch.setattr(train, "learn", learn)
    resumed = weights.load_state(train.train(tmp_path / "two", 128, recipe, workers=0, every=2, device="cpu"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    rows = [json.loads(line) for line in (tmp_path / "two" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and (tmp_path / "two" / "curve.png").is_file()
    with pytest.raises(InputError, match=r"of a training of .*128.*; got .*use another folder|seed"):
        train.train(tmp_path / "two", 128, recipe, seed=1, workers=0, device="cpu")


# -- XMem's learner --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(0)
    made = train.recipe("xmem").learner(128)
    for module in made.modules():  # `prepare` silences them
        if isinstance(module, xmem.Residual | xmem.SharedResidual):
            torch.nn.init.kaiming_uniform_(module.conv2.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    return made


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_xmems_training_pass_is_the_pass_that_tracks(kept, learner, folder, monkeypatch):
    """With memory frames only where a person said something, and on all frames."""
    monkeypatch.setattr(xmem_learner, "KEPT", kept)
    batch = samples.stacked([sampled(folder, 1, frames=4, objects=2)])
    learner.eval()
    with torch.no_grad():
        taught = [odds.softmax(1)[0] for odds, _ in learner.follow(batch)]
    given = {obj + 1: batch["masks"][0, 0, obj].numpy() for obj in range(2)}
    model = xmem.XMem(copy.deepcopy(learner.network))
    tracker = XMem(model=model, size=-1, mem_every=1 if kept else 9, device="cpu").tracker((128, 128), 4)
    images = batch["images"][0].numpy()
    tracker.advance(images[0], given)
    for image, probabilities in zip(images[1:-1], taught[:-1], strict=True):  # the last frame is not written while learning
        assert torch.allclose(tracker.advance(image, None)[1], probabilities, atol=1e-4)


def test_an_object_that_a_sample_has_twice_is_learned_once(learner, folder):
    batch = samples.stacked([sampled(folder, 1, objects=1)])
    once = dict(batch)
    twice = {**batch, "masks": batch["masks"].repeat(1, 1, 2, 1, 1)}
    masks, different = xmem_learner.distinct(twice["masks"])
    assert different.flatten().tolist() == [True, False] and not masks[:, :, 1].any()
    learner.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        alone = [odds.softmax(1) for odds, _ in learner.follow(once)]
        torch.manual_seed(0)
        doubled = [odds.softmax(1) for odds, _ in learner.follow(twice)]
    assert all(torch.allclose(a[:, :2], b[:, :2], atol=1e-4) for a, b in zip(alone, doubled, strict=True))


def test_every_weight_of_xmem_learns(learner, folder, monkeypatch):
    learner.train()
    learner.zero_grad()
    for kept in (0.0, 1.0):  # the sensory memory's step on frames that are not kept, and on those that are
        monkeypatch.setattr(xmem_learner, "KEPT", kept)
        found = learner(samples.stacked([sampled(folder, n, frames=4) for n in range(2)]))
        sum(weight * found[key] for key, weight in train.recipe("xmem").losses.items()).backward()
    still = {name for name, p in learner.named_parameters() if p.grad is None or not p.grad.any()}
    assert not still, still


def test_xmems_losses_fall_as_masks_get_better():
    truth = torch.zeros(1, 32, 32, dtype=torch.long)
    truth[:, 8:20, 8:20] = 1
    odds = [torch.stack([-n * (2.0 * truth - 1), n * (2.0 * truth - 1)], 1) for n in (0.5, 5)]
    poor, good = (xmem_learner.judge(o, truth) for o in odds)
    assert good["entropy"] < poor["entropy"] and good["dice"] < poor["dice"] and good["iou"] == 1
    assert xmem_learner.judge(odds[1].roll(12, -1), truth)["iou"] == 0


def test_log_odds_while_learning_are_those_of_inference():
    logits = torch.randn(2, 3, 8, 8).double() * 4
    for mine, masks in zip(xmem_learner.log_odds(logits).softmax(1), logits.sigmoid(), strict=True):
        assert torch.allclose(mine, xmem.aggregate(masks), atol=1e-5)


# -- the benchmark and its figures ----------------------------------------------------------------------------------------


def test_the_benchmark_is_as_large_and_varied_as_it_says():
    made = benchmark.scenes()
    assert len(made) >= 12 and len({clip.name for clip in made}) == len(made)
    assert sum(clip.frames >= 300 for clip in made) >= 4
    assert set(benchmark.LONG_OCCLUDED) <= {clip.name for clip in made}
    assert {clip.name for clip in made} == set(json.loads(benchmark.MANIFEST.read_text()))


def test_a_clip_that_is_not_the_manifests_is_named(tmp_path, monkeypatch):
    made = [scene(seed, "late", 3, height=64, width=96) for seed in (1, 2)]
    monkeypatch.setattr(benchmark, "scenes", lambda: made)
    monkeypatch.setattr(benchmark, "MANIFEST", tmp_path / "manifest.json")
    root = benchmark.make_benchmark(tmp_path / "benchmark")
    benchmark.MANIFEST.write_text(json.dumps(benchmark.hashes(root)))
    assert benchmark.differing(root) == []
    label = root / "Annotations" / made[0].name / "00001.png"
    label.write_bytes(label.read_bytes() + b"x")
    assert benchmark.differing(root) == [made[0].name]


@pytest.mark.skipif(not os.environ.get("VOSNB_SLOW"), reason="minutes: VOSNB_SLOW=1 makes the whole benchmark")
def test_the_whole_benchmark_is_as_in_the_manifest(tmp_path):
    assert benchmark.differing(benchmark.make_benchmark(tmp_path / "benchmark")) == []


def test_auroc_is_the_chance_of_the_right_order():
    score, positive = np.array([0.1, 0.4, 0.35, 0.8, 0.4]), np.array([False, False, True, True, True])
    wins = [(p > n) + 0.5 * (p == n) for p in score[positive] for n in score[~positive]]
    assert scores._auroc(score, positive) == pytest.approx(np.mean(wins))
    assert np.isnan(scores._auroc(score, np.ones(5, bool)))


def test_the_interval_of_a_difference_holds_its_mean():
    one, other = {"a": 0.5, "b": 0.6, "c": 0.9}, {"a": 0.6, "b": 0.65, "c": 0.85}
    mean, low, high = scores.difference(one, other, list(one))
    assert mean == pytest.approx(0.1 / 3) and -0.051 <= low < mean < high <= 0.101


# -- the shipped checkpoint -----------------------------------------------------------------------------------------------


def test_the_small_model_is_the_default_until_a_larger_one_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path))
    weights._tell.cache_clear()
    assert weights.default() == weights.SMALL
    assert "not" not in weights.SMALL and "real footage" in capsys.readouterr().err
    assert weights.path(weights.SMALL).stat().st_size <= 16e6
    (tmp_path / weights.card("sam2.1_hiera_small").file).touch()
    (tmp_path / weights.card("sam2.1_hiera_tiny").file).touch()
    assert weights.default() == "sam2.1_hiera_small"


def test_the_small_model_finds_what_a_box_and_clicks_show(monkeypatch):
    monkeypatch.setattr(scores, "STILL_SEEDS", range(600, 602))
    found = scores.still_images(weights.SMALL)
    assert found["box"] > 0.75 and found["mask"] > 0.85
    assert found["box + 2 points"] > found["box"] - 0.02


def test_the_small_model_tracks_a_clip_of_dyes(tmp_path):
    made = turbulence(seed=300, frames=12, height=128, width=240)
    made.write(tmp_path / "data")
    truth = Masks(tmp_path / "data" / "Annotations" / made.name)
    found = propagate(
        tmp_path / "data" / "JPEGImages" / made.name, {0: truth[0]}, "sam2", model=weights.SMALL, aux=(3,), show_progress=False
    )
    for obj in (1, 2):
        iou = np.mean([scores._iou(found[t] == obj, truth[t] == obj) for t in range(1, 12)])
        assert iou > 0.75


def test_the_small_xmem_follows_dyes_and_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path))
    assert weights.default("xmem") == weights.SMALL_XMEM
    assert weights.path(weights.SMALL_XMEM).stat().st_size <= 16e6
    made = turbulence(seed=300, frames=10, height=128, width=240)
    images, labels = zip(*made, strict=True)
    found = propagate(np.stack(images), {0: labels[0]}, "xmem", aux=(3,), show_progress=False)
    for obj in (1, 2):
        assert np.mean([scores._iou(found[t] == obj, labels[t] == obj) for t in range(1, 10)]) > 0.85
    (tmp_path / weights.card("xmem").file).touch()
    assert weights.default("xmem") == "xmem"


@pytest.mark.parametrize("name", [weights.SMALL, weights.SMALL_XMEM])
def test_the_file_holds_finite_float16_and_is_used_as_float32(name):
    state = weights.load_state(weights.path(name))
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert all(torch.isfinite(value).all() for value in state.values())
    load = sam2.load if name == weights.SMALL else xmem.load
    assert {p.dtype for p in load(name, device="cpu").network.parameters()} == {torch.float32}


def test_the_small_model_is_loaded_by_name_for_images_and_for_video():
    image, video = models.load(weights.SMALL, "cpu"), sam2.load(weights.SMALL, device="cpu")
    assert image.size == video.size == 256
    assert sum(p.numel() for p in video.network.parameters()) < 5e6
