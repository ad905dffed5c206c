"""Visitors of the web page, without a browser: what they are answered, what is refused, what is left of them."""

import base64
import io
import json
import socket
import sys
import tempfile
import threading
import time
import zipfile

import av
import numpy as np
import pytest
from films import KINDS, plain
from PIL import Image

from vosnb import cli
from vosnb import frames as video
from vosnb.clip import Clip
from vosnb.errors import InputError
from vosnb.export import read_coco
from vosnb.masks import Masks
from vosnb.prompts import Point, Prompts
from vosnb.propagate import propagate
from vosnb.rooms import Limits, Rooms, Turns
from vosnb.segment import segment
from vosnb.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")

DISC = {"obj": 1, "x": 73, "y": 53}  # the centre of the first disc of `film`, on frame 0
CLICK = {"do": "point", "frame": 0, "label": 1, **DISC}


@pytest.fixture(scope="module")
def frames(moving) -> np.ndarray:
    """(12, 192, 256, 3): the moving discs, twice as large."""
    return np.repeat(np.repeat(moving[0], 2, 1), 2, 2)


@pytest.fixture
def upload(frames, tmp_path):
    """Makes a new upload, as Gradio leaves it: in a folder of its own."""

    def make(name: str = "my film.mp4", kind=plain):
        folder = tmp_path / f"upload{time.monotonic_ns()}"
        folder.mkdir()
        return kind(folder / name, frames)

    return make


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    monkeypatch.setenv("VOSNB_CACHE", str(tmp_path / "cache"))
    made = Rooms(tmp_path / "files", Limits(megabytes=1, frames=40, side=320, visitors=2))
    yield made
    made.close()


def shown(view: dict) -> np.ndarray:
    """(H, W, 4) of the overlay that the page paints."""
    with Image.open(io.BytesIO(base64.b64decode(view["overlay"].partition(",")[2]))) as image:
        assert image.mode == "P"
        return np.array(image.convert("RGBA"))


@pytest.mark.parametrize("kind", KINDS)
def test_films_as_people_have_them_are_shown_upright_and_a_click_lands_where_it_was(rooms, upload, frames, moving, kind):
    room = rooms.open("v", upload(f"{kind}.mp4", KINDS[kind]))
    with Image.open(io.BytesIO(base64.b64decode(room.picture(0)["url"].partition(",")[2]))) as image:
        picture = np.array(image)
    view = room.view(0)
    assert picture.shape[:2] == (view["height"], view["width"]) == (192 - (kind == "odd"), 256 - (kind == "odd"))
    assert np.abs(picture.astype(int) - frames[0, : picture.shape[0], : picture.shape[1]]).mean() < 8
    assert view["frames"] == 12 and view["name"] == kind
    room.act(CLICK)
    disc = np.repeat(np.repeat(moving[1][0] == 1, 2, 0), 2, 1)[: picture.shape[0], : picture.shape[1]]
    found = shown(room.view(0))[..., 3] > 0
    assert np.count_nonzero(found & disc) / np.count_nonzero(found | disc) > 0.9


def test_the_same_click_gives_the_same_mask_on_the_page_as_in_a_cell(rooms, upload):
    room = rooms.open("v", upload())
    room.act(CLICK)
    on_page = room.session.masks_at(0)
    film = Clip(room.clip.source)
    with Session(film) as cell:
        assert np.array_equal(cell.add_point(0, 1, 73, 53).result(), on_page)
        room.follow("forward", 1)
        assert np.array_equal(cell.propagate().result(), room.session.masks)
    by_verb = propagate(film, {0: {1: Point(73, 53)}}, "sam2", show_progress=False)
    assert np.array_equal(by_verb, room.session.masks)
    for number, (x, y, label) in enumerate([(103, 60, 0), (193 - 4 * 5, 143, 1)], 2):  # corrections of the sixth frame
        room.act({"do": "point", "frame": 5, "obj": 1, "x": x, "y": y, "label": label})
        room.follow("forward", number)
    with Session(film, room.session.prompts) as cell:
        assert np.array_equal(cell.propagate().result(), room.session.masks)
    alone = segment(film[0], {1: Point(73, 53)}).labels  # nearly: the image model gives its one mask, not the best of three
    assert np.count_nonzero(alone != on_page) < 0.1 * np.count_nonzero(on_page)


def test_everything_that_is_said_is_shown_and_taken_back(rooms, upload):
    room = rooms.open("v", upload())
    room.act(CLICK)
    room.act({"do": "point", "frame": 0, "obj": 1, "x": 10, "y": 180, "label": 0})
    room.act({"do": "box", "frame": 0, "obj": 2, "xyxy": [158, 108, 228, 178]})
    room.act({"do": "describe", "obj": 2, "name": "ball", "color": "#112233"})
    view = room.view(0, number=7)
    assert view["number"] == 7 and [m["kind"] for m in view["marks"]] == ["box", "point", "point"]
    assert [m["label"] for m in view["marks"][1:]] == [1, 0] and view["prompted"] == [0] and view["undo"]
    assert view["objects"][1] == {"id": 2, "name": "ball", "color": "#112233"} and view["fresh"] == 3
    overlay = shown(view)
    assert overlay[143, 193].tolist() == [0x11, 0x22, 0x33, 115] and overlay[5, 5, 3] == 0
    room.act({"do": "delete", "frame": 0, "obj": 2})
    assert [o["id"] for o in room.view(0)["objects"]] == [1] and shown(room.view(0))[143, 193, 3] == 0
    room.act({"do": "undo", "frame": 0})
    assert shown(room.view(0))[143, 193, 3] > 0
    room.act({"do": "redo", "frame": 0})
    room.act({"do": "clear", "frame": 0})
    assert room.view(0)["marks"] == [] and room.view(0)["overlay"] == ""


def test_following_fills_the_ribbon_and_a_correction_goes_on_from_its_frame(rooms, upload):
    room = rooms.open("v", upload())
    room.act(CLICK)
    assert [k >= 0 for k in room.view(0)["known"]] == [True] + [False] * 11
    room.follow("forward", 1)
    view = room.view(11)
    assert all(k >= 0 for k in view["known"]) and not view["running"] and "all frames" in view["text"]
    room.files()
    before = room.session.masks
    room.act({"do": "point", "frame": 6, "obj": 2, "x": 193 - 24, "y": 143, "label": 1})
    while room.view(0)["running"]:
        time.sleep(0.01)
    after = room.session.masks
    assert np.array_equal(after[3], before[3]) and all((after[t] == 2).any() for t in range(6, 12))
    assert "changed since the files were made" in room.view(0)["text"]


def test_two_visitors_have_nothing_in_common_and_what_one_leaves_is_removed(rooms, upload, frames, tmp_path):
    (tmp_path / "up").mkdir()
    one = rooms.open(
        "one", plain(tmp_path / "up" / "one.mp4", np.tile(frames, (3, 1, 1, 1)))
    )  # its end is far from a key frame
    two = rooms.open("two", upload("two.mp4"))
    one.clip[35]  # whoever comes first makes it
    assert len(list((tmp_path / "cache").rglob("*.mkv"))) == 1
    assert one.folder != two.folder and one.number != two.number and len(one.folder.name) >= 20
    one.act(CLICK)
    assert rooms.find("two") is two and two.view(0)["marks"] == [] and two.view(0)["overlay"] == ""
    one.files()
    rooms.leave("one")
    assert not one.folder.exists() and two.folder.exists()
    with pytest.raises(InputError, match="an open film"):
        rooms.find("one")
    rooms.leave("two")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []  # nor in the cache of frames


def test_who_leaves_while_the_film_is_being_read_leaves_nothing_either(rooms, frames, tmp_path, monkeypatch):
    making, go_on, transcode = threading.Event(), threading.Event(), video._transcode

    def slowly(*arguments):
        making.set()
        assert go_on.wait(30)
        transcode(*arguments)

    monkeypatch.setattr(video, "_transcode", slowly)
    (tmp_path / "up").mkdir()
    room = rooms.open("v", plain(tmp_path / "up" / "long.mp4", np.tile(frames, (3, 1, 1, 1))))
    assert making.wait(30)
    room.act(CLICK)  # does not wait for it
    assert room.picture(0)["frame"] == 0
    rooms.leave("v")
    go_on.set()
    (prepare,) = (t for t in threading.enumerate() if t.name == "vosnb-prepare")
    prepare.join()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_opening_another_film_takes_the_place_of_the_last_one(rooms, upload):
    first = rooms.open("v", upload("first.mp4"))
    second = rooms.open("v", upload("second.mp4"))
    assert len(rooms) == 1 and not first.folder.exists() and rooms.find("v") is second


def test_uploads_beyond_the_limits_are_refused_and_the_open_film_stays(rooms, upload, frames, tmp_path):
    room = rooms.open("v", upload())
    large = upload("large.mp4")
    with large.open("ab") as file:
        file.truncate(1_100_000)
    wide, long = tmp_path / "w", tmp_path / "l"
    wide.mkdir()
    long.mkdir()
    refused = {
        "at most 1 MB; got 1 MB": large,
        "at most 320 pixels along its longer side; got one of 512×192": plain(wide / "w.mp4", np.tile(frames, (1, 1, 2, 1))),
        r"at most 40 frames; got one of 48 \(2 s\)": plain(long / "l.mp4", np.tile(frames, (4, 1, 1, 1))),
    }
    for says, film in refused.items():
        with pytest.raises(InputError, match=says):
            rooms.open("v", film)
        assert not film.exists()
    assert rooms.find("v") is room and sorted(p.name for p in rooms.folder.iterdir()) == [room.folder.name]


@pytest.mark.parametrize(
    "name, content", [("x.mp4", b"no film"), ("x.mp4", b""), ("x.txt", b"text"), ("x.png", b"\x89PNG\r\n\x1a\n")]
)
def test_what_is_no_film_is_refused_without_telling_where_files_lie(rooms, tmp_path, name, content):
    folder = tmp_path / "up"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        rooms.open("v", folder / name)
    assert str(tmp_path) not in str(refused.value)
    assert list(rooms.folder.iterdir()) == [] and len(rooms) == 0


def test_an_upload_that_is_gone_and_one_visitor_too_many_are_told_so(rooms, upload, tmp_path):
    with pytest.raises(InputError, match="upload it again"):
        rooms.open("v", tmp_path / "gone.mp4")
    for visitor in "ab":
        rooms.open(visitor, upload())
    with pytest.raises(InputError, match="a free place"):
        rooms.open("c", upload())
    rooms.open("b", upload())  # who is in already may open another film


def test_a_film_called_like_a_way_out_of_its_folder_stays_in_it(rooms, upload):
    room = rooms.open("v", upload(".. ‘rm -rf’ $HOME; évil\\..mp4"))
    (film,) = (p for p in room.folder.iterdir() if p.is_file())
    assert film.parent == room.folder and film.name == "rm_-rf_HOME_évil.mp4"


def test_who_does_nothing_for_long_has_left(rooms, upload, monkeypatch):
    room = rooms.open("v", upload())
    rooms.sweep()
    assert len(rooms) == 1
    monkeypatch.setattr(room, "touched", time.monotonic() - 60 * rooms.limits.minutes - 1)
    rooms.sweep()
    assert len(rooms) == 0 and not room.folder.exists()


BAD = [
    {"do": "point", "frame": 0, "obj": 1, "x": 300, "y": 5, "label": 1},
    {"do": "point", "frame": 99, "obj": 1, "x": 3, "y": 5, "label": 1},
    {"do": "point", "frame": 0, "obj": 0, "x": 3, "y": 5, "label": 1},
    {"do": "point", "frame": 0, "obj": 1, "x": "far", "y": 5, "label": 1},
    {"do": "point", "frame": 0, "obj": 1, "x": 3},
    {"do": "box", "frame": 0, "obj": 1, "xyxy": [9, 9, 3, 3]},
    {"do": "box", "frame": None, "obj": 1, "xyxy": [1, 1, 3, 3]},
    {"do": "describe", "obj": 1, "color": "url(evil)"},
    {"do": "__init__"},
    {},
]


@pytest.mark.parametrize("message", BAD)
def test_messages_that_do_not_fit_change_nothing(rooms, upload, message):
    room = rooms.open("v", upload())
    with pytest.raises(InputError):
        room.act(message)
    assert not room.session.prompts and not room.session.status.error


def test_stop_ends_within_a_second_keeps_what_was_found_and_takes_back_what_waits(rooms, upload, monkeypatch):
    room = rooms.open("v", upload())
    room.act(CLICK)
    half = threading.Event()
    room.session.listeners.append(lambda frame: half.set() if frame is not None and frame >= 3 else None)
    run = threading.Thread(target=room.follow, args=("forward", 5))
    run.start()
    assert half.wait(30)
    begin = time.monotonic()
    room.stop(5)
    run.join()
    assert time.monotonic() - begin < 1
    found = len(room.session.frames)
    assert 4 <= found < 12 and not room.view(0)["running"]
    assert not room.follow("forward", 4)  # asked for before the stop, come late
    assert len(room.session.frames) == found
    assert room.follow("forward", 6)
    assert len(room.session.frames) == 12


def test_who_leaves_while_the_film_is_followed_ends_it(rooms, upload, tmp_path):
    room = rooms.open("v", upload())
    room.act(CLICK)
    half, found = threading.Event(), []
    room.session.listeners.append(lambda frame: half.set() if frame is not None and frame >= 3 else None)
    run = threading.Thread(target=lambda: found.append(room.follow("forward", 1)))
    run.start()
    assert half.wait(30)
    rooms.leave("v")
    run.join()
    assert found == [False] and len(room.session.frames) < 12
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_files_are_whole_and_named_after_the_film(rooms, upload):
    room = rooms.open("v", upload())
    room.act(CLICK)
    room.act({"do": "describe", "obj": 1, "name": "ball"})
    room.follow("forward", 1)
    files = room.files()
    assert [p.name for p in files.values()] == [
        f"my_film_{n}" for n in ("masks.zip", "overlay.mp4", "coco.json", "prompts.json")
    ]
    with zipfile.ZipFile(files["masks"]) as archive:
        assert archive.namelist() == [f"masks/{t:05d}.png" for t in range(12)] + ["masks/scores.csv"]
        archive.extractall(room.folder / "there")
    assert np.array_equal(Masks(room.folder / "there" / "masks"), room.session.masks)
    assert np.array_equal(read_coco(files["coco"]), room.session.masks)
    assert json.loads(files["coco"].read_text())["categories"][0]["name"] == "ball"
    assert Prompts.load(files["prompts"]) == room.session.prompts
    with av.open(str(files["video"])) as film:
        assert sum(1 for _ in film.decode(video=0)) == 12
    with zipfile.ZipFile(room.others(["webm", "png-per-object"])) as archive:
        assert {"alpha.webm", "objects/001/00000.png"} <= set(archive.namelist())
    room.others(["csv"])
    assert sorted(p.name for p in room.folder.glob("files*")) == ["files2", "files3"]  # the first ones are gone


def test_settings_choose_a_strategy_and_keep_the_clicks(rooms, upload):
    room = rooms.open("v", upload(), "flow", num_pathway=3, model=None)
    room.act(CLICK)
    room.use(rooms.strategy("sam2long", {"num_pathway": 2, "iou_thre": 0.2, "model": "vosnb-mini-sam2"}))
    assert room.session.strategy.strategy.num_pathway == 2 and list(room.session.prompts) == [0]
    room.session.wait()
    assert (room.session.masks_at(0) == 1).any()
    with pytest.raises(InputError, match="a strategy among"):
        rooms.strategy("../etc", {})


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--frames", "0"], "limits above 0"),
        (["--model", "no-such"], "a checkpoint among"),
        (["--port", "{taken}"], "to be free"),
        (["--port", "70000"], "choose another --port"),
        (["--host", "192.0.2.1"], "choose another --port or --host"),
    ],
)
def test_the_command_says_what_is_wrong_and_leaves_nothing(arguments, says, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("GRADIO_TEMP_DIR", "VOSNB_CACHE", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # the command sets them: they are put back afterwards
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(sys, "argv", ["vosnb", "app", *(a.format(taken=taken.getsockname()[1]) for a in arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 2 and says in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_models_take_turns_in_the_order_of_asking():
    turns, order, begun = Turns(), [], []

    def work(who: str) -> None:
        with turns:
            order.append(who)

    with turns:
        for who in "abcdef":
            begun.append(threading.Thread(target=work, args=(who,)))
            begun[-1].start()
            while turns._asked < len(begun) + 1:
                time.sleep(0.001)
        assert order == []
    for thread in begun:
        thread.join()
    assert order == list("abcdef")


def test_a_click_does_not_wait_for_another_visitors_film(rooms, upload):
    one, two = rooms.open("one", upload()), rooms.open("two", upload())
    one.act(CLICK)
    two.act(CLICK)
    begun = threading.Event()
    one.session.listeners.append(lambda frame: begun.set() if frame == 1 else None)
    run = threading.Thread(target=one.follow, args=("forward", 1))
    run.start()
    assert begun.wait(30)
    two.act({"do": "point", "frame": 0, "obj": 1, "x": 80, "y": 50, "label": 1})
    assert one.session.status.working and len(one.session.frames) < 12
    run.join()


def test_the_page_names_every_object_when_nothing_was_found(rooms, upload, monkeypatch):
    room = rooms.open("v", upload())
    room.act(CLICK)
    monkeypatch.setattr(room.session, "masks_at", lambda frame: np.zeros((192, 256), np.uint8))
    assert "Nothing was found for object 1" in room.view(0)["text"]
