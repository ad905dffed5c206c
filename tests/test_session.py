"""A sitting over a clip: what one sees is what the verb gives, corrections repeat nothing, nothing shown is ever lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosnb import Box, Clip, InputError, Point, Prompts, Session, propagate
from vosnb.evaluate import jaccard
from vosnb.strategies import Result, Score, register
from vosnb.strategies.sam2 import SAM2
from vosnb.synth import turbulence

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = "vosnb-mini-sam2"
T, H, W = 10, 96, 160
TOP, BOTTOM = (80, 24), (80, 60)  # on the two dyes


@pytest.fixture(scope="module")
def film() -> tuple[np.ndarray, np.ndarray]:
    """(T, H, W, 3) images and (T, H, W) truth."""
    images, truth = zip(*turbulence(frames=T, height=H, width=W), strict=True)
    return np.stack(images), np.stack(truth)


@pytest.fixture
def sitting(film):
    """Makes sessions, and ends them."""
    made: list[Session] = []

    def make(*given, **settings) -> Session:
        made.append(Session(film[0], *given, **{"model": MODEL, **settings} if "by" not in settings else settings))
        return made[-1]

    yield make
    for session in made:
        session.close()


def afresh(film, session: Session) -> np.ndarray:
    """What the verb makes of the session's prompts and settings."""
    masks = propagate(
        film[0], session.prompts, session.by, direction=session.direction, show_progress=False, **session.settings
    )
    return np.asarray(masks)


@register("slow")
@dataclass(frozen=True)
class Slow:
    """The first prompted object stays where it is; every frame takes a while, and one of them fails."""

    seconds: float = 0.03
    fails: int = -1

    def tracker(self, shape, frames):
        return SlowTracker(self, np.zeros(shape, np.uint8))


class SlowTracker:
    threads: set[str] = set()  # noqa: RUF012
    steps: list[int] = []  # noqa: RUF012

    def __init__(self, settings, labels, t=0):
        self.settings, self.labels, self.t = settings, labels, t

    def step(self, image, prompts):
        self.threads.add(threading.current_thread().name)
        self.steps.append(self.t)
        time.sleep(self.settings.seconds)
        self.t += 1
        if self.t - 1 == self.settings.fails:
            raise ZeroDivisionError("the network fell over")
        for obj, prompt in prompts.items():
            labels = self.labels.copy()
            for p in prompt.points:
                labels[int(p.y) :, int(p.x) :] = obj if p.label else 0
            self.labels = labels
        return [Result(self.labels, {int(o): Score(0.5) for o in np.unique(self.labels) if o})]

    def finish(self):
        return []

    def fork(self):
        return SlowTracker(self.settings, self.labels, self.t)


def test_a_click_shows_what_a_propagation_finds_there(film, sitting):
    session = sitting()
    one = session.add_point(0, 1, *TOP).result()
    two = session.set_box(0, 2, Box(0, 40, W, 78)).result()
    assert jaccard(one == 1, film[1][0] == 1) > 0.8 and set(np.unique(two)) == {0, 1, 2}
    masks = session.propagate().result()
    assert np.array_equal(masks[0], two) and np.array_equal(np.asarray(masks), afresh(film, session))
    assert masks.scores[T - 1][1].iou == session.scores(T - 1)[1].iou and 0 < session.confidence(3) <= 1


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_every_direction_is_the_verbs(film, sitting, direction):
    session = sitting({5: {1: Point(*TOP)}, 7: {2: Point(*BOTTOM)}})
    assert np.array_equal(np.asarray(session.propagate(direction).result()), afresh(film, session))
    assert session.direction == direction


@pytest.mark.parametrize("by", ["flow+refine-mask", "sam2+refine", SAM2(model=MODEL)])
def test_so_is_every_strategy(film, sitting, by):
    given = {} if by == SAM2(model=MODEL) else {"refine_model": MODEL}
    session = sitting({0: {1: Point(*TOP)}}, by=by, **given, **({"model": MODEL} if by == "sam2+refine" else {}))
    session.propagate().result()
    session.add_point(4, 1, *BOTTOM)
    assert np.array_equal(np.asarray(session.wait()), afresh(film, session))


def test_forward_and_then_backward_is_both(film, sitting):
    session = sitting({5: {1: Point(*TOP)}})
    session.propagate("forward").result()
    assert session.frames == list(range(5, T)) and session.masks_at(2) is None
    masks = session.propagate("backward").result()
    assert session.direction == "both" and np.array_equal(np.asarray(masks), afresh(film, session))


def test_a_correction_changes_its_frame_at_once_and_then_the_frames_after_it_only(film, sitting):
    session = sitting()
    session.add_point(0, 1, *TOP)
    before = np.asarray(session.propagate().result())
    told: list[int | None] = []
    session.listeners.append(told.append)
    wrong = session.set_mask(6, 1, film[1][6] == 2).result()
    assert (wrong != before[6]).any()
    after = np.asarray(session.wait())
    assert np.array_equal(after[:6], before[:6]) and np.array_equal(after[6], wrong) and (after[7] != before[7]).any()
    assert [t for t in told if t is not None] == [6, *range(6, T)]
    assert np.array_equal(after, afresh(film, session))


def test_a_correction_goes_to_the_objects_next_prompted_frame_and_no_further(film, sitting):
    session = sitting({0: {1: Point(*TOP), 2: Point(*BOTTOM)}, 7: {1: Point(*TOP)}, 4: {2: Point(*BOTTOM)}})
    before = np.asarray(session.propagate().result())
    session.set_mask(3, 1, np.zeros((H, W), bool)).result()
    after = np.asarray(session.wait())
    assert all((after[t] != before[t]).any() for t in (3, 4, 5, 6)) and np.array_equal(after[7:], before[7:])
    assert [session.stale(t) for t in range(T)] == [t >= 7 for t in range(T)]
    assert np.array_equal(np.asarray(session.propagate().result()), afresh(film, session)) and not session.stale(9)


def test_a_correction_of_what_was_found_backward_goes_on_backward(film, sitting):
    session = sitting()
    session.add_point(6, 1, *TOP)
    before = np.asarray(session.propagate("both").result())
    wrong = session.set_mask(3, 1, film[1][3] == 2).result()
    after = np.asarray(session.wait())
    assert np.array_equal(after[4:], before[4:]) and np.array_equal(after[3], wrong) and (after[2] != before[2]).any()
    assert session.prompts.objects[1]["begins"] == 6
    assert np.array_equal(after, afresh(film, session))
    session.undo()
    assert np.array_equal(np.asarray(session.wait()), before)


def test_a_click_on_another_object_than_the_one_tracked_sticks(film, sitting):
    """SAM 2 puts the click beside the mask that it tracked, and that one wins: published behaviour, `heed=False`."""
    truth = film[1]
    shares = {}
    for heed in (False, True):
        session = sitting({0: {1: truth[0] == 2}}, heed=heed)
        session.propagate().result()
        session.add_point(4, 1, *TOP)
        at_once = session.add_point(4, 1, *BOTTOM, 0).result()
        later = session.wait()[T - 1]
        shares[heed] = jaccard(at_once == 1, truth[4] == 1), jaccard(later == 1, truth[T - 1] == 1)
        assert np.array_equal(np.asarray(session.masks), afresh(film, session))
    assert max(shares[False]) < 0.3 and min(shares[True]) > 0.8


def test_a_click_beside_what_is_tracked_adds_to_it(film, sitting):
    session = sitting({0: {1: Point(*TOP)}})
    before = session.propagate().result()[5]
    both = session.add_point(5, 1, *BOTTOM).result()
    assert jaccard(both == 1, (before == 1) | (film[1][5] == 2)) > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_done_in_whatever_order_the_masks_are_those_of_the_prompts(film, sitting, seed):
    dice = random.Random(seed)
    by = {"by": "flow"} if seed < 3 else {"by": "sam2long", "model": MODEL}
    session = sitting(states=dice.choice([1, 3, 128]), **by)
    steps = {
        "point": lambda: session.add_point(frame, obj, dice.randrange(W), dice.randrange(H), dice.choice([1, 1, 0])),
        "mask": lambda: session.set_mask(frame, obj, np.arange(H * W).reshape(H, W) > dice.randrange(H * W)),
        "remove": lambda: session.remove(frame, obj),
        "clear": lambda: session.clear(frame),
        "delete": lambda: session.delete(obj),
        "undo": session.undo,
        "redo": session.redo,
        "propagate": lambda: session.propagate(dice.choice(["forward", "backward", "both"])) if session.prompts else None,
        "stop": session.stop,
        "wait": session.wait,
        "sleep": lambda: time.sleep(dice.random() / 5),
    }
    for step in ["point", *dice.choices(list(steps), [6, 1, 1, 1, 1, 2, 1, 3, 1, 1, 1], k=12), "point"]:
        frame, obj = dice.randrange(T), dice.randint(1, 3)
        steps[step]()
    masks = session.propagate().result()
    assert np.array_equal(np.asarray(masks), afresh(film, session)) and not any(session.stale(t) for t in range(T))


def test_undo_redo_delete_and_clear(film, sitting):
    session = sitting()
    one = session.add_point(0, 1, *TOP).result()
    two = session.add_point(0, 2, *BOTTOM).result()
    assert np.array_equal(session.undo().result(), one) and np.array_equal(session.redo().result(), two)
    assert session.redo() is None
    session.propagate().result()
    session.delete(2).result()
    assert session.wait().ids == (1,) and 2 not in session.prompts.objects
    session.undo().result()
    assert session.wait().ids == (1, 2) and np.array_equal(session.masks_at(0), two)
    assert not session.clear().result().any() and session.frames == [] and not session.prompts
    with pytest.raises(InputError, match="click on an object first"):
        session.propagate()


def test_names_and_colours_belong_to_the_prompts_and_change_no_mask(sitting):
    session = sitting()
    session.add_point(0, 1, *TOP).result()
    session.describe(1, name="the top dye", color="#ff8800")
    assert session.prompts.objects[1] == {"name": "the top dye", "color": "#ff8800"} and session.colors[1] == "#ff8800"
    assert session.new_object() == 2 and session.masks.objects[1]["name"] == "the top dye"
    with pytest.raises(InputError, match="colour"):
        session.describe(1, color="octarine")


def test_the_prompts_file_is_the_truth(film, sitting, tmp_path):
    file = tmp_path / "prompts.json"
    session = sitting(file)
    session.add_point(2, 1, 80.5, 24, 1)
    session.add_point(2, 1, 20, 90, 0).result()
    text = file.read_text()
    assert Prompts.load(file) == session.prompts and Prompts.from_json(text).to_json() == text
    again = sitting(file)
    assert np.array_equal(again.wait()[2], session.masks_at(2)) and file.read_text() == text


def test_the_same_click_is_the_same_mask_from_any_thread_and_whatever_torch_is_told_there(film, sitting):
    import torch

    found = []
    found.append(sitting().add_point(0, 1, *TOP).result())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found.append(sitting().add_point(0, 1, *TOP).result())
    session = sitting()
    thread = threading.Thread(target=lambda: found.append(session.add_point(0, 1, *TOP).result()))
    thread.start()
    thread.join()
    found.append(propagate(film[0][:1], session.prompts, "sam2", show_progress=False, **session.settings)[0])
    assert all(np.array_equal(found[0], other) for other in found[1:]) and found[0].any()


def test_a_frame_is_encoded_once_however_often_it_is_clicked(film, sitting, monkeypatch):
    from vosnb.models.sam2 import Sam2

    encoded: list[int] = []
    encode = Sam2.encode
    monkeypatch.setattr(Sam2, "encode", lambda self, image: encoded.append(1) or encode(self, image))
    session = sitting()
    for n in range(4):
        session.add_point(3, 1, 80 + n, 24).result()
    session.add_point(3, 2, *BOTTOM).result()
    assert len(encoded) == 1


def test_stop_keeps_what_is_there_and_the_propagation_goes_on_from_it(film, sitting):
    session = sitting(by="slow")
    session.add_point(0, 1, 10, 10)
    some = threading.Event()
    future = session.propagate(on_frame=lambda t, labels: some.set() if t == 3 else None)
    assert some.wait(5)
    begun = time.monotonic()
    session.stop()
    masks = future.result()
    assert time.monotonic() - begun < 1
    assert 4 <= len(session.frames) < T and masks[3].any() and not masks[T - 1].any()
    SlowTracker.steps.clear()
    assert session.propagate().result()[T - 1].any() and 0 not in SlowTracker.steps


def test_a_click_during_a_propagation_is_answered_between_two_frames(film, sitting):
    session = sitting(by="slow")
    session.add_point(0, 1, 10, 10)
    some = threading.Event()
    future = session.propagate(on_frame=lambda t, labels: some.set() if t == 4 else None)
    assert some.wait(5)
    assert session.masks_at(2).any()  # reading waits for nothing
    labels = session.add_point(2, 1, 50, 50, 0).result()
    assert not future.done() and labels[60, 60] == 0
    masks = np.asarray(future.result())
    assert (masks[1, 60, 60], masks[2, 60, 60], masks[9, 60, 60]) == (1, 0, 0)
    assert all(name.startswith("vosnb-session") for name in SlowTracker.threads)


def test_what_goes_wrong_is_in_the_future_and_in_the_status_and_ends_there(film, sitting):
    session = sitting(by="slow", fails=3)
    session.add_point(0, 1, 10, 10)
    with pytest.raises(ZeroDivisionError, match="fell over"):
        session.propagate().result()
    assert session.status.error == "ZeroDivisionError: the network fell over" and not session.status.working
    assert session.frames == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="fell over"):
        session.wait()
    assert session.add_point(9, 1, 20, 20).result().any() and session.status.error == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.add_point(0, 1, W + 1, 5), "inside a frame"),
        (lambda s: s.add_point(T, 1, 5, 5), "frame from 0 to 9"),
        (lambda s: s.add_point(0, 300, 5, 5), "from 1 to 255"),
        (lambda s: s.propagate("sideways"), "direction"),
        (lambda s: s.masks_at(-1), "frame from 0"),
    ],
)
def test_bad_input_is_refused_at_once_and_loses_nothing(sitting, change, words):
    session = sitting()
    session.add_point(0, 1, *TOP).result()
    before = session.prompts
    with pytest.raises(InputError, match=words):
        change(session)
    assert session.prompts == before and session.wait()[0].any()


def test_prompts_of_a_clip_of_another_size_are_refused(film, tmp_path):
    file = tmp_path / "prompts.json"
    Prompts({0: {1: Point(5, 5)}}, video={"width": 640, "height": 480}).save(file)
    with pytest.raises(InputError, match="640×480"):
        Session(film[0], file, by="slow")
    with pytest.raises(InputError, match="known length"):
        Session(iter(film[0]), by="slow")


# -- on disk -------------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_session_reopened_and_propagated_again_is_the_same_to_the_byte(film, sitting, tmp_path, direction):
    clip = Clip(film[0]).save_frames(tmp_path / "frames", ".png")[1:]
    with Session(clip, model=MODEL, direction=direction) as session:
        session.add_point(3, 1, *TOP)
        session.describe(1, name="Öl")
        session.propagate().result()
        session.add_point(6, 1, *BOTTOM, 0)
        session.wait()
        folder = session.save(tmp_path / "kept")
        masks = np.asarray(session.masks)
        named = session.masks.names
    first = contents(folder)
    assert f"masks/{named[3]}.png" in first and len(first) == 3 + len(session.frames)
    about = json.loads(first["session.json"])
    assert len(about["checkpoint"]["sha256"]) == 64 and about["clip"]["sha256"] and about["versions"]["vosnb"]

    with Session.open(folder) as again:
        assert np.array_equal(np.asarray(again.masks), masks) and again.prompts == session.prompts
        assert again.confidence(5) == session.confidence(5) and again.colors == session.colors
        assert contents(folder) == first
        again.propagate().result()
        assert contents(folder) == first
        corrected = again.add_point(5, 1, *BOTTOM, 0).result()
    with Session.open(folder) as third:
        assert np.array_equal(third.masks_at(5), corrected) and third.prompts == again.prompts


def test_a_correction_in_a_reopened_session_is_seen_at_once_and_then_the_verbs(film, tmp_path):
    with Session(film[0], model=MODEL) as session:
        session.add_point(0, 1, *TOP)
        before = np.asarray(session.propagate().result())
        session.save(tmp_path / "kept")
    with Session.open(tmp_path / "kept", film[0]) as again:
        labels = again.add_point(4, 1, *BOTTOM, 1).result()
        assert (labels == 1).sum() > (before[4] == 1).sum() / 2  # the click beside what was there, not alone
        assert np.array_equal(np.asarray(again.wait()), afresh(film, again))


def test_saving_and_opening_refuse_what_is_not_theirs(film, sitting, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    session = sitting(by="slow")
    session.add_point(0, 1, 10, 10).result()
    with pytest.raises(InputError, match=r"thesis\.txt"):
        session.save(tmp_path / "thesis", overwrite=True)
    session.save(tmp_path / "kept")
    with pytest.raises(InputError, match="overwrite=True"):
        sitting(by="slow").save(tmp_path / "kept")
    with pytest.raises(InputError, match="give it"):
        Session.open(tmp_path / "kept")
    with pytest.raises(InputError, match="made on"):
        Session.open(tmp_path / "kept", film[0][::-1])
    with pytest.raises(InputError, match="session"):
        Session.open(tmp_path)
    other = sitting(by="slow")
    other.save(tmp_path / "kept", overwrite=True)
    assert not list((tmp_path / "kept" / "masks").glob("*.png"))


KILLED = """
import sys, numpy as np
from vosnb import Clip, Session
sys.path.insert(0, {tests!r})
import test_session
session = Session(Clip({frames!r}), by="slow", seconds=0.02)
session.add_point(0, 1, 10, 10).result()
session.save({folder!r})
session.propagate(on_frame=lambda t, labels: print(t, flush=True)).result()
"""


def test_a_kernel_killed_in_the_middle_of_a_propagation_loses_nothing_that_was_shown(film, tmp_path):
    frames, folder = tmp_path / "frames", tmp_path / "kept"
    Clip(np.concatenate([film[0]] * 6)).save_frames(frames)
    code = KILLED.format(tests=str(Path(__file__).parent), frames=str(frames), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        shown = [int(process.stdout.readline()) for _ in range(8)]
        os.kill(process.pid, signal.SIGKILL)
        shown += [int(line) for line in process.stdout]
    assert process.returncode == -signal.SIGKILL and len(shown) < 60
    for path in folder.rglob("*.png"):
        if not path.name.startswith("."):  # a half-written one has a hidden name
            with Image.open(path) as image:
                assert np.array(image).any()
    with Session.open(folder) as session:
        assert set(shown) <= set(session.frames)
        assert session.propagate().result()[59].any()


def test_a_reopened_session_knows_which_masks_are_of_earlier_prompts(film, tmp_path):
    """What a correction left behind at the object's next prompted frame, and what a kernel did not come to."""
    images = tmp_path / "images"
    Clip(film[0]).save_frames(images)
    with Session(images, {0: {1: Point(*TOP)}, 6: {1: Point(*TOP)}}, model=MODEL) as session:
        session.save(tmp_path / "kept")
        session.propagate().result()
        session.add_point(3, 1, *BOTTOM, label=0).result()
        session.wait()
        stale = [session.stale(t) for t in range(T)]
    assert stale == [t >= 6 for t in range(T)]
    with Session.open(tmp_path / "kept") as again:
        assert [again.stale(t) for t in range(T)] == stale
        again.propagate().result()
        assert not any(again.stale(t) for t in range(T))
        verb = propagate(images, again.prompts, again.by, show_progress=False, **again.settings)
        assert np.array_equal(again.masks, verb)
    with Session.open(tmp_path / "kept") as whole:
        assert not any(whole.stale(t) for t in range(T))
    prompts = Prompts.load(tmp_path / "kept" / "prompts.json")  # as if the kernel had died right after a click
    prompts.with_prompt(4, 1, Point(*BOTTOM)).save(tmp_path / "kept" / "prompts.json")
    with Session.open(tmp_path / "kept") as dead:
        assert [dead.stale(t) for t in range(T)] == [t >= 4 for t in range(T)]


def test_opening_with_other_settings_is_written_down(film, tmp_path):
    images = tmp_path / "images"
    Clip(film[0]).save_frames(images)
    with Session(images, {0: {1: Point(*TOP)}}, model=MODEL) as session:
        session.save(tmp_path / "kept")
    with Session.open(tmp_path / "kept", score_thresh=0.5):
        about = json.loads((tmp_path / "kept" / "session.json").read_text())
    assert about["settings"]["score_thresh"] == 0.5 and about["checkpoint"]["sha256"]


@pytest.mark.parametrize("break_it", ["settings", "direction", "passes", "clip", "masks of"])
def test_a_damaged_session_file_is_named(film, tmp_path, break_it):
    images = tmp_path / "images"
    Clip(film[0]).save_frames(images)
    with Session(images, {0: {1: Point(*TOP)}}, model=MODEL) as session:
        session.save(tmp_path / "kept")
    file = tmp_path / "kept" / "session.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != break_it}))
    with pytest.raises(InputError, match="a session in"):
        Session.open(tmp_path / "kept")
