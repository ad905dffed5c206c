"""The editor without a browser: requests come in as a browser's messages do, by `set_state`, and the answers are its traits."""

from __future__ import annotations

import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from test_session import MODEL, TOP, H, Slow, T, W, film, sitting  # noqa: F401

from vosnb import Box, InputError, Point, Prompts, Session
from vosnb.widgets import Editor


@pytest.fixture
def edit(sitting):  # noqa: F811
    """Makes editors whose `ask` sends requests and waits for the answer to the last one."""
    made: list[Editor] = []

    def make(*given, **settings) -> Editor:
        made.append(Editor(sitting(*given, **settings)))
        return made[-1]

    yield make
    for editor in made:
        editor.close()


def ask(editor: Editor, *requests: dict, wait: bool = True) -> None:
    first = 1 + max([editor.reply_to, *(r["seq"] for r in editor.requests)])
    numbered = [{"seq": first + i, **request} for i, request in enumerate(requests)]
    editor.set_state({"requests": [*(r for r in editor.requests if r["seq"] > editor.reply_to), *numbered]})
    until(lambda: not wait or editor.reply_to >= numbered[-1]["seq"])


def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing came of it in ten seconds")


def point(x: float, y: float, label: int = 1, frame: int = 0, obj: int = 1) -> dict:
    return {"kind": "point", "frame": frame, "obj": obj, "x": x, "y": y, "label": label}


def painted(editor: Editor) -> np.ndarray:
    """The label map that the browser was sent, (H, W)."""
    if not editor.labels:
        return np.zeros((H, W), np.uint8)
    with Image.open(io.BytesIO(editor.labels)) as image:
        assert image.mode == "P" and image.info["transparency"][0] == 0
        values = np.array(image)
    return np.where(values >= 128, values - 128, values)


def test_points_and_a_box_become_prompts_and_the_overlay_is_the_sessions(edit):
    editor = edit()
    ask(editor, point(*TOP), point(20, 92, 0), {"kind": "box", "frame": 0, "obj": 2, "xyxy": [0, 40, W, 78]})
    expected = {0: {1: [Point(*TOP), Point(20, 92, 0)], 2: Box(0, 40, W, 78)}}
    assert editor.session.prompts.prompts == Prompts(expected).prompts
    assert np.array_equal(painted(editor), editor.session.masks_at(0)) and painted(editor).any()
    drawn = editor.view["prompts"]["0"]
    assert drawn[0] == {"obj": 1, "points": [[80, 24, 1], [20, 92, 0]], "box": None, "mask": False}
    assert drawn[1]["box"] == [0, 40, W, 78] and editor.view["active"] == 2


def test_a_request_is_carried_out_once_and_none_is_lost(edit):
    """A browser that is busy sends its list again, with the new ones."""
    editor = edit()
    one, two, three = ({"seq": i, **point(70 + i, 24)} for i in (1, 2, 3))
    editor.set_state({"requests": [one, two]})
    editor.set_state({"requests": [one, two, three]})
    until(lambda: editor.reply_to == 3)
    assert [p.x for p in editor.session.prompts[0][1].points] == [71, 72, 73]


def test_of_frames_that_were_scrubbed_over_only_the_last_is_sent(edit):
    editor = edit()
    ask(editor, *({"kind": "look", "frame": t} for t in range(T)))
    assert editor.frame == editor.view["frame"] == T - 1 and list(editor._jpegs) == [0, T - 1]
    ask(editor, {"kind": "look", "frame": 3, "have": True})
    assert editor.view["frame"] == 3 and editor.image == b"" and editor.view["image"] == -1
    ask(editor, {"kind": "look", "frame": 3, "have": False})
    with Image.open(io.BytesIO(editor.image)) as image:
        assert image.size == (W, H) and editor.view["image"] == 3


def test_undo_redo_objects_names_and_clear(edit):
    editor = edit()
    ask(editor, point(*TOP), {"kind": "active", "obj": None})
    assert editor.view["active"] == 2 and [o["id"] for o in editor.view["objects"]] == [1, 2]
    ask(editor, {"kind": "active", "obj": 7}, {"kind": "describe", "obj": 7, "name": "seven", "color": "#123456"})
    assert editor.view["objects"][-1] == {"id": 7, "name": "seven", "color": "#123456"}
    ask(editor, point(80, 60, obj=7))
    first = painted(editor)
    assert set(np.unique(first)) == {0, 1, 7}
    ask(editor, {"kind": "undo"})
    assert set(np.unique(painted(editor))) == {0, 1} and editor.view["redo"]
    ask(editor, {"kind": "redo"})
    assert np.array_equal(painted(editor), first)
    ask(editor, {"kind": "remove", "frame": 0, "obj": 1})
    assert set(np.unique(painted(editor))) == {0, 7}
    ask(editor, {"kind": "delete", "obj": 7})
    assert editor.labels == b"" and [o["id"] for o in editor.view["objects"]] == [1, 2]
    ask(editor, {"kind": "undo"}, {"kind": "clear", "frame": 0})
    assert editor.labels == b"" and not editor.session.prompts and editor.marks == []


def test_prompts_are_per_frame_and_the_file_comes_back_to_the_byte(edit, tmp_path):
    file = tmp_path / "prompts.json"
    editor = edit(file)
    ask(editor, point(*TOP), {"kind": "look", "frame": 4})
    assert editor.labels == b"" and editor.marks == [0]
    ask(editor, point(80, 60, frame=4, obj=2))
    assert set(np.unique(painted(editor))) == {0, 2} and editor.marks == [0, 4]
    text = file.read_text()
    assert Prompts.from_json(text).to_json() == text and json.loads(text)["prompts"][1]["frame"] == 4
    again = edit(file)
    until(lambda: again.labels)
    assert file.read_text() == text and np.array_equal(painted(again), again.session.masks_at(0)) and again.marks == [0, 4]


def test_a_second_click_from_another_thread_is_computed_as_the_first_was(edit, monkeypatch):
    """Jupyter's callbacks come on changing threads, and torch's modes are per thread."""
    import torch

    from vosnb.models.sam2 import Sam2

    seen = []
    prompted = Sam2.prompt
    state = lambda: (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), threading.current_thread().name)  # noqa: E731
    monkeypatch.setattr(Sam2, "prompt", lambda *given: seen.append(state()) or prompted(*given))
    editor, other = edit(), edit()
    ask(editor, point(*TOP))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as somebody else's cell leaves it
        thread = threading.Thread(target=ask, args=(other, point(*TOP)))
        thread.start()
        thread.join()
        ask(editor, point(20, 92, 0))
    ask(other, point(20, 92, 0))
    assert len(seen) == 4 and {mode[:2] for mode in seen} == {(True, False)}
    assert all(mode[2].startswith("vosnb-session") for mode in seen)
    assert np.array_equal(painted(editor), painted(other))


def test_propagate_shows_progress_and_stop_keeps_the_masks_so_far(edit):
    editor = edit(by="slow", seconds=0.1)
    messages: list[tuple] = []
    editor.observe(lambda change: messages.append((editor.status["working"], editor.view["frame"])), "tick")
    ask(editor, point(10, 10), {"kind": "propagate", "direction": "forward"})
    until(lambda: editor.status["done"] >= 3)
    assert editor.status["working"] and editor.status["total"] == T and editor.status["direction"] == "forward"
    begun = time.monotonic()
    ask(editor, {"kind": "stop"})
    until(lambda: not editor.status["working"])
    assert time.monotonic() - begun < 1
    known = [t for t in range(T) if editor.ribbon[t]]
    assert known == editor.session.frames == list(range(len(known))) and 3 <= len(known) < T
    assert editor.ribbon[1] == 1 + 50  # a confidence of 0.5
    assert len({frame for working, frame in messages if working}) > 1  # it shows the frames as they come
    ask(editor, {"kind": "propagate", "direction": "forward"})
    until(lambda: all(editor.ribbon) and not editor.status["working"])


def test_who_looks_at_a_frame_during_a_propagation_is_left_there(edit):
    editor = edit(by="slow", seconds=0.1)
    ask(editor, point(10, 10), {"kind": "propagate", "direction": "forward"})
    until(lambda: editor.status["done"] >= 2)
    ask(editor, {"kind": "look", "frame": 1})
    until(lambda: not editor.status["working"] and editor.ribbon[T - 1])
    assert editor.view["frame"] == 1


def test_what_stays_of_earlier_prompts_is_marked_in_the_ribbon(edit):
    editor = edit({0: {1: Point(10, 10)}, 6: {1: Point(20, 20)}}, by="slow")
    ask(editor, {"kind": "propagate", "direction": "forward"})
    until(lambda: all(editor.ribbon))
    ask(editor, point(50, 50, 0, frame=3))
    editor.session.wait()
    until(lambda: [byte > 128 for byte in editor.ribbon] == [t >= 6 for t in range(T)])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (point(W + 50, 5), "inside a frame"),
        (point(5, 5, frame=T), "frame from 0"),
        ({"kind": "box", "frame": 0, "obj": 1, "xyxy": [5, 5, 5, 9]}, "x0 < x1"),
        ({"kind": "dance"}, "a request among"),
        ({"kind": "export", "what": "tapestry"}, "an export among"),
        ({"kind": "export", "what": "session"}, "masks to export"),
        ({"kind": "propagate", "direction": "forward"}, "click on an object first"),
        ({"kind": "describe", "obj": 1, "color": "octarine"}, "colour"),
    ],
)
def test_what_is_wrong_is_said_in_the_status_line_and_loses_nothing(edit, request_, words):
    editor = edit()
    ask(editor, request_)
    assert words in editor.status["error"]
    ask(editor, point(*TOP))
    assert editor.status["error"] == "" and painted(editor).any()


def test_a_model_that_is_not_there_is_told_before_the_first_click(edit):
    editor = edit(model="nowhere.pt", config="sam2.1_hiera_t")
    until(lambda: "nowhere.pt" in editor.status["error"])


def test_an_exception_in_the_model_shows_in_the_status_line(edit):
    editor = edit(by="slow", fails=2)
    ask(editor, point(10, 10), {"kind": "propagate", "direction": "forward"})
    until(lambda: editor.status["error"])
    assert editor.status["error"] == "ZeroDivisionError: the network fell over" and not editor.status["working"]
    assert [bool(byte) for byte in editor.ribbon[:4]] == [True, True, False, False]


def test_exports_land_beside_the_notebook(sitting, tmp_path):  # noqa: F811
    editor = Editor(sitting(by="slow", seconds=0), out=tmp_path / "out")
    ask(editor, point(10, 10), {"kind": "propagate", "direction": "forward"})
    until(lambda: all(editor.ribbon) and not editor.status["working"])
    for what in editor.status["exports"]:
        ask(editor, {"kind": "export", "what": what})
        until(lambda: editor.status["said"].startswith("wrote") or editor.status["error"])
        assert editor.status["error"] == ""
    again = Session.open(tmp_path / "out" / "session", editor.session.clip)
    assert np.array_equal(np.asarray(again.masks), np.asarray(editor.session.masks))
    again.close()
    editor.close()


def test_it_can_be_made_of_a_clip_and_a_picture_stands_for_it_where_there_is_no_kernel(film, tmp_path):  # noqa: F811
    editor = Editor(film[0], tmp_path / "prompts.json", by="slow")
    ask(editor, point(10, 10))
    bundle = editor._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"][:4] == b"\x89PNG" and "application/vnd.jupyter.widget-view+json" in data
    assert (tmp_path / "prompts.json").is_file()
    with pytest.raises(InputError, match=r"give these to Session"):
        Editor(editor.session, tmp_path / "prompts.json")
    editor.session.close()
    editor.close()


def test_large_frames_are_shown_smaller_and_clicked_in_their_own_pixels():
    images = np.zeros((2, 1200, 4000, 3), np.uint8)
    editor = Editor(images, by="slow")
    ask(editor, point(3990, 1190))
    with Image.open(io.BytesIO(editor.image)) as image:
        assert image.size == (1920, 576)
    assert editor.view["width"] == 4000 and editor.session.masks_at(0)[1195, 3995] == 1
    editor.session.close()
    editor.close()
