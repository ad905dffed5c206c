"""Comparisons: of strategies whose masks are known, so that every number in the table can be said beforehand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count

import numpy as np
import pandas as pd
import pytest

from vosnb import strategies
from vosnb.clip import Clip
from vosnb.compare import compare
from vosnb.errors import InputError
from vosnb.masks import Masks
from vosnb.models import weights
from vosnb.strategies import Result

calls = count()


@dataclass(frozen=True)
class Wander:
    """Follows the two discs of the `moving` clip, and from frame `after` on `off` pixels beside them."""

    off: int = 0
    after: int = 0
    broken: bool = False

    def tracker(self, shape, frames):
        return _Wandering(self)


@dataclass(frozen=True)
class Modelled(Wander):
    """One that has a model, named or not."""

    model: str | None = None

    def tracker(self, shape, frames):
        return _Wandering(self)


class _Wandering:
    def __init__(self, settings):
        self.settings, self.t, self.labels = settings, -1, None

    def step(self, image, prompts):
        next(calls)
        self.t += 1
        if self.settings.broken and self.t == 3:
            raise RuntimeError("out of paper")
        if prompts:
            self.labels = np.zeros(image.shape[:2], np.uint8)
            for obj, prompt in prompts.items():
                self.labels[prompt.mask] = obj
        one, two = (np.roll(self.labels * (self.labels == obj), 2 * self.t * sign, axis=1) for obj, sign in ((1, 1), (2, -1)))
        yield Result(np.roll(one + two, self.settings.off if self.t >= self.settings.after else 0, axis=0))

    def finish(self):
        return ()


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(strategies._registry, "wander", Wander)


def three(moving, **more):
    images, labels = moving
    by = {"right": Wander(), "late": Wander(4, 6), "off": Wander(8)}
    return compare(images, {0: labels[0]}, by, show_progress=False, **more)


def test_with_truth_each_strategy_is_judged_without_the_prompted_frame(moving):
    found = three(moving, truth=moving[1])
    table = found.table()
    assert table.index.tolist() == ["right", "late", "off"] and table.loc["right", "J"] == 1
    assert table.loc["off", "J"] < table.loc["late", "J"] < 1 and found.runs["late"].report.frames[1][1] == 1
    assert table.loc["late", ["J 1", "J 2"]].mean() == pytest.approx(table.loc["late", "J"])
    assert (table["s/frame"] > 0).all() and (table["MB"] >= 0).all()
    assert found.as_dict()["about"]["judged by"] == "ground truth"


def test_without_truth_it_says_agreement_and_where_they_disagree(moving):
    found = three(moving)
    assert not [column for column in found.table() if column.startswith("J")]
    assert "not accuracy" in found.as_dict()["about"]["judged by"] and "agreement, not accuracy" in found._page()
    total = found.disagreement.mean(axis=1)
    assert total[1:6].max() < total[6:].min()  # "late" goes astray at frame 6 and makes a third opinion
    assert len(found.frames(3)) == 3 and all(t >= 6 for t in found.frames(1))
    agreement = found.table()["agreement"]
    assert agreement["off"] == agreement.min()


def test_agreement_is_the_mean_iou_with_the_others(moving):
    found = three(moving)
    expected = np.mean([found.pairs["right", "late"][1:].mean(), found.pairs["right", "off"][1:].mean()])
    assert found.table()["agreement"]["right"] == pytest.approx(expected)
    assert (found.pairs["right", "late"][:6] == 1).all() and (found.pairs["right", "late"][6:] < 1).all()


def test_one_strategy_agrees_with_nobody(moving):
    found = compare(moving[0], {0: moving[1][0]}, ["wander"], show_progress=False)
    assert np.isnan(found.table()["agreement"]["wander"]) and not found.disagreement.any()


def test_auxiliary_objects_are_not_compared(moving):
    found = three(moving, truth=moving[1], aux=(2,))
    assert found.ids == (1,) and found._shown()["ground truth"].ids == (1,)


def test_pictures_have_a_cell_per_strategy(moving, tmp_path):
    found = three(moving, truth=moving[1])
    sheet = found.contact_sheet([2, 8], width=640)
    assert sheet.shape[1] == 640 and sheet.shape[0] > 4 * 96
    film = Clip(found.video(tmp_path / "side.mp4", width=640))
    assert len(film) == 12 and film.width == 640


def test_it_is_saved_as_a_page_with_tables_pictures_film_and_masks(moving, tmp_path):
    out = three(moving, truth=moving[1]).save(tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == [
        "comparison.csv", "contact_sheet.png", "index.html", "masks", "over_time.png", "report.json", "side_by_side.mp4",
    ]  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["strategies"]["right"]["J"] == 1 and len(report["disagreement"]["1"]) == 12
    assert pd.read_csv(out / "comparison.csv", index_col=0).loc["right", "J"] == 1
    page = (out / "index.html").read_text()
    assert "<th>late</th>" in page and 'src="side_by_side.mp4"' in page
    assert np.array_equal(np.asarray(Masks(out / "masks" / "right")), moving[1])


def test_a_comparison_is_taken_up_where_it_was_left(moving, tmp_path):
    images, labels = moving
    asked = dict(show_progress=False, out=tmp_path / "out")
    by = {"right": Wander(), "late": Wander(4, 6)}
    with pytest.raises(RuntimeError, match="out of paper"):
        compare(images, {0: labels[0]}, {**by, "off": Wander(broken=True)}, **asked)
    assert not (tmp_path / "out" / "masks" / "off").exists()
    before = next(calls)
    found = compare(images, {0: labels[0]}, {**by, "off": Wander(8)}, **asked)
    assert next(calls) - before - 1 == len(images)  # the third one's frames
    assert found.table()["s/frame"].notna().all() and np.array_equal(np.asarray(found.runs["right"].masks), labels)
    before = next(calls)
    compare(images, {0: labels[0]}, {**by, "off": Wander(7)}, **asked)  # another setting
    compare(images, {0: np.where(labels[0] == 1, np.uint8(1), np.uint8(0))}, by, **asked)  # other prompts
    assert next(calls) - before - 1 == 3 * len(images)


def test_settings_of_a_strategy_hold_for_its_refinement_too(moving):
    asked = dict(settings={"flow": {"tolerance": "3"}, "flow+refine": {"refine_prompt": "box"}}, show_progress=False)
    with pytest.raises(InputError, match="a setting of refine among"):
        compare(
            moving[0], {0: moving[1][0]}, ["flow", "flow+refine"], **{**asked, "settings": {"flow+refine": {"refine_x": 1}}}
        )
    about = compare(moving[0][:2], {0: moving[1][0]}, ["flow", "flow+refine"], **asked).about["strategies"]
    assert about["flow"]["tolerance"] == 3.0 and about["flow+refine"]["first"]["tolerance"] == 3.0
    assert about["flow+refine"]["prompt"] == "box"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"by": []}, "a list of strategies"),
        ({"by": "flow"}, "a list of strategies"),
        ({"by": ["flaw"]}, "a strategy among"),
        ({"by": ["wander", "xmem"], "settings": {"xmem": {"model": "xmem"}}}, "vosnb fetch xmem"),
        ({"settings": {"sam": {}}}, "name a strategy that is compared"),
        ({"truth": np.ones((11, 96, 128), np.uint8)}, "truth of 12 frames"),
        ({"aux": (1, 2)}, "an object to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_first_frame(moving, monkeypatch, tmp_path, wrong, says):
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path))
    before = next(calls)
    with pytest.raises(InputError, match=says):
        compare(moving[0], {0: moving[1][0]}, **{"by": ["wander"], **wrong})
    assert next(calls) == before + 1


def test_frames_from_an_iterator_are_refused(moving):
    with pytest.raises(InputError, match="a clip of known length"):
        compare(Clip(iter(moving[0])), {0: moving[1][0]}, ["wander"])


def test_masks_of_another_checkpoint_are_not_taken_for_this_ones(moving, tmp_path, monkeypatch):
    """Also where no model is named, and the default becomes another one."""
    names = iter(["one", "two"])
    monkeypatch.setattr(weights, "default", lambda family="sam2": next(names))
    hashes = {"one": "1" * 64, "two": "2" * 64}
    monkeypatch.setattr("vosnb.provenance.checkpoint", lambda model: {"sha256": hashes[model]} if model in hashes else None)
    before = next(calls)
    first, second = (
        compare(moving[0], {0: moving[1][0]}, {"wander": Modelled()}, out=tmp_path, show_progress=False) for _ in range(2)
    )
    assert first.about["strategies"]["wander"]["model"] == "one" and second.about["strategies"]["wander"]["model"] == "two"
    assert second.about["strategies"]["wander"]["checkpoint"] == {"sha256": "2" * 64}
    assert next(calls) - before - 1 == 2 * len(moving[0])  # frames


def test_damaged_results_are_made_anew_and_others_masks_are_left_alone(moving, tmp_path):
    def run(out):
        return compare(moving[0], {0: moving[1][0]}, ["flow"], out=out, show_progress=False)

    whole = np.asarray(run(tmp_path / "a").runs["flow"].masks)
    folder = tmp_path / "a" / "masks" / "flow"
    sorted(folder.glob("*.png"))[3].unlink()
    assert np.array_equal(np.asarray(run(tmp_path / "a").runs["flow"].masks), whole)
    (tmp_path / "a" / "masks" / "flow.json").write_text("{")
    assert np.array_equal(np.asarray(run(tmp_path / "a").runs["flow"].masks), whole)
    mine = tmp_path / "b" / "masks" / "flow" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match="of an earlier comparison"):
        run(tmp_path / "b")
    assert mine.read_bytes() == b"mine"


def test_memory_is_a_strategys_own_whatever_ran_before(moving):
    wide = np.concatenate([np.asarray(moving[0])] * 3, axis=2)
    labels = np.concatenate([moving[1][0]] * 3, axis=1)
    alone = compare(wide, {0: labels}, ["flow"], show_progress=False).runs["flow"].memory
    beside = compare(wide, {0: labels}, ["sam2", "flow"], settings={"sam2": {"model": weights.SMALL}}, show_progress=False).runs
    assert abs(beside["flow"].memory - alone) < 40 and beside["sam2"].memory < 300
