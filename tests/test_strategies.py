"""What every strategy keeps, the built-in ones and two that are written here, registered and used by their names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import pytest

from vosnb import Clip, InputError, Masks, Prompt, propagate, stream
from vosnb.strategies import Result, get, names, register
from vosnb.strategies.sam2 import SAM2, Recall
from vosnb.tree import Node, Pathway

pytestmark = pytest.mark.usefixtures("one_thread")


@register("thrifty")
@dataclass(frozen=True)
class Thrifty(SAM2):
    """SAM 2 that remembers only every `every`-th frame."""

    every: int = 2

    def remember(self, pathway: Pathway, node: Node, pointers: int) -> tuple[Node, ...]:
        return pathway.memory if node.frame % self.every else super().remember(pathway, node, pointers)


@register("pointless")
@dataclass(frozen=True)
class Pointless(SAM2):
    """SAM 2 without object pointers."""

    def recall(self, anchors: Sequence[Node], pathway: Pathway, t: int, slots: int, pointers: int) -> Recall:
        return Recall(super().recall(anchors, pathway, t, slots, pointers).spatial, [])


BY = {
    "flow": {},
    "sam": {"model": "grabcut"},
    "sam2": {"model": "vosnb-mini-sam2"},
    "sam2long": {"model": "vosnb-mini-sam2", "uncertainty": 99.0},
    "thrifty": {"model": "vosnb-mini-sam2"},
    "pointless": {"model": "vosnb-mini-sam2"},
}
every_strategy = pytest.mark.parametrize("by", BY)
T, BEGIN = 6, {1: 1, 2: 3}  # frames; object → its first


@pytest.fixture(scope="module")
def clip(moving: Any) -> Clip:
    return Clip(moving[0][:T])


@pytest.fixture(scope="module")
def prompts(moving: Any) -> dict[int, dict[int, Prompt]]:
    """One object begins on frame 1, another on frame 3."""
    return {t: {obj: Prompt(mask=moving[1][t] == obj)} for obj, t in BEGIN.items()}


@pytest.fixture(scope="module")
def results(clip: Clip, prompts: Any) -> Any:
    """A strategy's (frame, result) pairs, found once."""
    return cache(lambda by: list(stream(clip, prompts, by, **BY[by])))


def equal(one: list[Result], other: list[Result]) -> bool:
    return all(np.array_equal(a.labels, b.labels) and list(a.scores) == list(b.scores) for a, b in zip(one, other, strict=True))


def test_those_written_here_are_known_by_name() -> None:
    assert set(BY) <= set(names())
    assert get("thrifty", every="3") == Thrifty(every=3)


@every_strategy
def test_every_frame_gets_one_result_in_order(results: Any, by: str) -> None:
    assert [t for t, _ in results(by)] == list(range(T))
    assert all(r.labels.shape == (96, 128) and r.labels.dtype == np.uint8 for _, r in results(by))


@every_strategy
def test_objects_have_scores_and_pixels_from_their_first_prompt_on_and_nobody_else_has(results: Any, by: str) -> None:
    for t, result in results(by):
        begun = {obj for obj, first in BEGIN.items() if first <= t}
        assert set(result.scores) == begun
        assert set(np.unique(result.labels)) <= {0} | begun
        assert all(s.disagreement >= 0 and not s.iou > 1 for s in result.scores.values())
    assert any((r.labels == 1).any() for _, r in results(by)) and any((r.labels == 2).any() for _, r in results(by))


@every_strategy
def test_the_label_map_shows_no_object_where_its_own_mask_is_not(results: Any, by: str) -> None:
    for _, result in results(by):
        assert set(result.masks()) == set(result.scores)
        assert all(mask[result.labels == obj].all() for obj, mask in result.masks().items())
        assert not result.masks(without=[1, 2])


@every_strategy
def test_backward_is_forward_over_the_reversed_clip(moving: Any, clip: Clip, by: str) -> None:
    short, last = clip[:3], {2: Prompt(mask=moving[1][2] == 2)}
    forward = [r for _, r in stream(short[::-1], {0: last}, by, **BY[by])]
    backward = dict(stream(short, {2: last}, by, direction="backward", **BY[by]))
    assert equal(forward, [backward[2 - t] for t in range(3)])


@every_strategy
def test_an_object_that_is_not_there_at_first_is_allowed(clip: Clip, by: str) -> None:
    given = {0: {7: Prompt(mask=np.zeros((96, 128), bool))}}
    found = [r for _, r in stream(clip[:3], given, by, **BY[by])]
    assert [list(r.scores) for r in found] == [[7]] * 3
    assert not found[0].labels.any()


@every_strategy
def test_forked_trackers_go_on_alike_and_alone(results: Any, clip: Clip, prompts: Any, by: str) -> None:
    tracker = get(by, **BY[by]).tracker((96, 128), T)
    early = [r for t in (1, 2) for r in tracker.step(clip[t], prompts.get(t, {}))]
    twin = tracker.fork()
    late = [r for t in range(3, T) for r in tracker.step(clip[t], prompts.get(t, {}))] + list(tracker.finish())
    other = [r for t in range(3, T) for r in twin.step(clip[t], prompts.get(t, {}))] + list(twin.finish())
    assert equal(late, other) and equal(early + late, [r for _, r in results(by)][1:])


@every_strategy
def test_a_correction_takes_hold_on_its_frame_and_changes_nothing_before(
    results: Any, clip: Clip, prompts: Any, by: str
) -> None:
    wrong = Prompt(mask=prompts[3][2].mask)
    corrected = [r for _, r in stream(clip, {**prompts, 4: {1: wrong, 2: Prompt(mask=~wrong.mask)}}, by, **BY[by])]
    assert equal([r for _, r in results(by)][:4], corrected[:4])
    found = corrected[4].labels == 1
    assert (found & wrong.mask).sum() > 0.8 * (found | wrong.mask).sum()


@every_strategy
def test_a_pass_may_be_left_between_two_frames(clip: Clip, prompts: Any, by: str) -> None:
    running = stream(clip, prompts, by, **BY[by])
    next(running), next(running)
    running.close()
    assert list(running) == []


@every_strategy
def test_a_second_run_gives_the_same_and_so_does_the_verb(results: Any, clip: Clip, prompts: Any, by: str) -> None:
    masks = propagate(clip, prompts, by, show_progress=False, **BY[by])
    assert isinstance(masks, Masks) and masks.ids == (1, 2)
    assert all(np.array_equal(masks[t], r.labels) for t, r in results(by))


@every_strategy
def test_settings_are_the_fields_of_a_frozen_dataclass(by: str) -> None:
    strategy = get(by, **BY[by])
    with pytest.raises(FrozenInstanceError):
        setattr(strategy, fields(strategy)[0].name, None)
    with pytest.raises(InputError, match=f"a setting of {by} among"):
        get(by, magic=1)


@pytest.mark.parametrize("name", ["sam2", "sam2long"])
def test_strategies_are_short(name: str) -> None:
    assert len(inspect.getsource(importlib.import_module(f"vosnb.strategies.{name}")).splitlines()) < 110


def test_a_class_that_is_no_frozen_dataclass_is_not_registered() -> None:
    with pytest.raises(TypeError, match="frozen dataclass"):
        register("loose")(type("Loose", (), {}))


def test_both_directions_are_the_backward_pass_before_the_prompt_and_masks_may_overlap(tmp_path):
    rng = np.random.default_rng(0)
    film = rng.integers(0, 255, (7, 64, 96, 3), dtype=np.uint8)
    one, two = np.zeros((64, 96), bool), np.zeros((64, 96), bool)
    one[10:40, 10:50], two[30:60, 40:80] = True, True
    prompts = {3: {1: one}, 5: {2: two}}
    both = dict(stream(film, prompts, "sam2", model="vosnb-mini-sam2", device="cpu", direction="both"))
    for t, result in stream(film, {3: {1: one}}, "sam2", model="vosnb-mini-sam2", device="cpu", direction="backward"):
        if t < 3:
            assert both[t].scores[1].present == pytest.approx(result.scores[1].present, abs=1e-5)
            assert (both[t].masks()[1] == result.masks()[1]).mean() > 0.999  # another batch, another rounding
    assert set(both[0].masks()) == {1, 2} and set(both[4].masks()) == {1, 2}


def test_the_video_command_refuses_what_would_cost_its_source_or_its_work(tmp_path):
    from vosnb.video_command import run

    source = tmp_path / "v.mp4"
    source.write_bytes(b"a film")
    for target in (source, tmp_path / "v.xyz"):
        with pytest.raises(InputError, match=r"place of its own|ends in"):
            run(["--video_path", str(source), "--points", "3", "3", "--output_video", str(target), "--overwrite"])
    assert source.read_bytes() == b"a film"
