"""The web page in a real browser: Debian's Chromium, driven by Playwright, on `vosnb app` in a process of its own."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from films import KINDS, encoded, plain
from PIL import Image

from vosnb.clip import Clip
from vosnb.masks import Masks
from vosnb.prompts import Prompts
from vosnb.session import Session

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
PAINTED = "() => document.querySelector('.vb').dataset.painted"


@pytest.fixture(scope="module")
def frames(moving) -> np.ndarray:
    """(12, 192, 256, 3): the moving discs, twice as large; the first one's centre is at (73 + 4 t, 53)."""
    return np.repeat(np.repeat(moving[0], 2, 1), 2, 2)


@pytest.fixture(scope="module")
def films(frames, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    made = {name: make(folder / f"{name}.mp4", frames) for name, make in KINDS.items()}
    made["many"] = plain(folder / "many.mp4", np.concatenate([frames, frames[::-1]] * 4))
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `vosnb app`, with small limits, and the folder that its temporary files are made in."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = [
        sys.executable,
        "-m",
        "vosnb.cli",
        "app",
        "--port",
        str(port),
        "--megabytes",
        "2",
        "--frames",
        "200",
        "--side",
        "600",
    ]
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(1200):
            if "http://" in (folder / "log").read_text() or process.poll() is not None:
                break
            time.sleep(0.1)
        assert "http://" in (folder / "log").read_text(), (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}", folder
        assert str(root / "vosnb") not in (folder / "log").read_text(), (folder / "log").read_text()  # no traceback of ours
    finally:
        process.terminate()
        process.wait(20)
    assert [p for p in folder.iterdir() if p.name.startswith("vosnb-app-")] == []  # nothing of the visitors is left


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Visitor:
    """A browser of one's own on the page."""

    def __init__(self, browser, address: str):
        self.context = browser.new_context(viewport={"width": 1400, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("request", self._asked)
        self.address = address
        self.page.goto(address)
        self.page.wait_for_selector("#editor .vb-stage")

    def _asked(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"asked {request.url}")

    def open(self, film: Path) -> None:
        self.painted(lambda: self.page.set_input_files("#upload input[type=file]", film))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where pixel (x, y) of the film is on the screen."""
        box = self.page.locator(".vb-stage").bounding_box()
        width, height = self.page.evaluate(
            "() => { const c = document.querySelector('.vb-picture'); return [c.width, c.height]; }"
        )
        return box["x"] + x * box["width"] / width, box["y"] + y * box["height"] / height

    def painted(self, act) -> float:
        """Does it, and waits until the masks are painted anew; the seconds that took."""
        before, begin = self.page.evaluate(PAINTED), time.monotonic()
        act()
        self.page.wait_for_function(
            "b => { const p = document.querySelector('.vb').dataset.painted; return p && p !== b; }", arg=before
        )
        return time.monotonic() - begin

    def shows(self, frame: int) -> None:
        """Waits until this frame is painted: clicks before that are on another one, and mean nothing."""
        painted = "t => (document.querySelector('.vb').dataset.painted || '').split(':')[1] === String(t)"
        self.page.wait_for_function(painted, arg=frame)

    def click(self, x: float, y: float, **how) -> float:
        return self.painted(lambda: self.page.mouse.click(*self.at(x, y), **how))

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        def act() -> None:
            self.page.mouse.move(*self.at(x0, y0))
            self.page.mouse.down()
            self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
            self.page.mouse.move(*self.at(x1, y1))
            self.page.mouse.up()

        self.painted(act)

    def pixels(self, layer: str) -> np.ndarray:
        """(H, W, 4) of a canvas: picture, masks."""
        url = self.page.evaluate(f"() => document.querySelector('.vb-{layer}').toDataURL()")
        with urllib.request.urlopen(url) as data, Image.open(io.BytesIO(data.read())) as image:
            return np.array(image.convert("RGBA"))

    @property
    def status(self) -> str:
        return self.page.text_content(".vb-status")

    def follow(self) -> None:
        self.page.click(".vb-follow")
        self.page.wait_for_selector("#result video")
        self.page.wait_for_selector(".vb-follow:not(:disabled)")

    def download(self, button: str) -> bytes:
        with self.page.expect_download() as found:
            self.page.click(button)
        return Path(found.value.path()).read_bytes()

    def leave(self) -> None:
        self.context.close()
        assert self.wrong == []


@pytest.fixture
def visitor(browser, server):
    one = Visitor(browser, server[0])
    yield one
    one.leave()


def test_a_film_from_upload_to_download(visitor, films, tmp_path):
    page = visitor.page
    visitor.open(films["plain"])
    assert "Click on what you want" in visitor.status
    visitor.click(73, 53)  # on the first disc
    masks = visitor.pixels("masks")
    assert masks[53, 73, 3] > 0 and masks[150, 30, 3] == 0
    visitor.click(120, 20, button="right")
    assert page.locator("menu, [role=menu]").count() == 0
    page.keyboard.down("Alt")
    visitor.click(20, 120)
    page.keyboard.up("Alt")
    page.click(".vb-bg")  # the toggle, for touch pads
    visitor.click(30, 30)
    page.click(".vb-fg")
    page.click(".vb-new")
    visitor.drag(160, 108, 226, 176)  # a box, for the second object
    assert visitor.pixels("masks")[143, 193, 3] > 0
    name = page.locator(".vb-chip[data-obj='2'] .vb-name")
    name.fill("blue ball")
    name.press("Enter")
    visitor.painted(lambda: page.keyboard.press("1") or page.keyboard.press("ArrowRight"))
    visitor.shows(1)
    visitor.click(77, 53)  # another frame is prompted as well
    visitor.painted(lambda: page.keyboard.press("Control+z"))
    visitor.painted(lambda: page.keyboard.press("ArrowLeft"))
    visitor.shows(0)
    assert page.text_content(".vb-counter") == "frame 0 of 12"

    visitor.follow()
    assert "Masks on all frames" in visitor.status
    page.wait_for_function("() => document.querySelector('#result video').readyState >= 2")
    seen = page.evaluate("() => { const v = document.querySelector('#result video'); return [v.videoWidth, v.videoHeight]; }")
    assert seen == [256, 192]
    said = tmp_path / "said.json"
    said.write_bytes(visitor.download("#get-prompts"))
    prompts = Prompts.load(said)
    assert list(prompts) == [0] and prompts.objects[2]["name"] == "blue ball"
    clicked = [(73, 53, 1), (120, 20, 0), (20, 120, 0), (30, 30, 0)]
    assert np.allclose([(p.x, p.y, p.label) for p in prompts[0][1].points], clicked, atol=0.4)  # a pixel of the screen is 0.3
    assert np.allclose(prompts[0][2].box.xyxy, (160, 108, 226, 176), atol=0.4)
    with zipfile.ZipFile(io.BytesIO(visitor.download("#get-masks"))) as archive:
        archive.extractall(tmp_path)
    with Session(Clip(films["plain"]), prompts) as cell:
        assert np.array_equal(cell.propagate().result(), Masks(tmp_path / "masks"))  # as the same clicks give in a cell
    assert {c["name"] for c in json.loads(visitor.download("#get-coco"))["categories"]} == {"object 1", "blue ball"}
    assert visitor.download("#get-video")[4:8] == b"ftyp"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_films_as_people_have_them_are_shown_upright_and_clicks_land_right(visitor, films, frames, kind):
    visitor.open(films[kind])
    visitor.click(73, 53)
    picture, masks = visitor.pixels("picture"), visitor.pixels("masks")
    height, width = picture.shape[:2]
    assert (width, height) == (256 - (kind == "odd"), 192 - (kind == "odd"))
    assert np.abs(picture[..., :3].astype(int) - frames[0, :height, :width]).mean() < 8
    red = (frames[0, :height, :width].astype(int) @ [2, -1, -1]) > 150
    found = masks[..., 3] > 0
    assert np.count_nonzero(found & red) / np.count_nonzero(found | red) > 0.85
    if kind == "hevc":  # which no browser plays: the result is another film
        visitor.follow()
        visitor.page.wait_for_function("() => document.querySelector('#result video').readyState >= 2")


def test_progress_is_seen_stop_ends_within_a_second_and_a_correction_goes_on(visitor, films):
    page = visitor.page
    visitor.open(films["many"])
    visitor.click(73, 53)
    page.click(".vb-follow")
    page.wait_for_function(
        "() => /following forward: \\d+ of 96 frames/.test(document.querySelector('.vb-status').textContent)"
    )
    page.wait_for_function("() => parseFloat(document.querySelector('.vb-filled').style.width) > 1")
    begin = time.monotonic()
    page.click(".vb-stop")
    page.wait_for_function("() => !/following/.test(document.querySelector('.vb-status').textContent)")
    assert time.monotonic() - begin < 1
    page.wait_for_function("() => /Masks on/.test(document.querySelector('.vb-status').textContent)")
    found = int(re.search(r"Masks on (\d+) of 96", visitor.status)[1])
    assert 1 < found < 96
    page.wait_for_selector("#result video")  # of what there is
    page.wait_for_function("() => document.querySelector('.vb-counter').textContent.startsWith('frame 0')")
    visitor.painted(lambda: page.keyboard.press("ArrowRight"))
    visitor.click(90, 60)  # a correction: what came after it is done again, without being asked for
    page.wait_for_function("() => /changed since the files/.test(document.querySelector('.vb-status').textContent)")
    assert "frame 1 of" in page.text_content(".vb-counter")
    assert f"Masks on {found} of 96" not in visitor.status  # it goes on to the end


def test_two_visitors_never_see_each_others_data(browser, server, films):
    address, folder = server
    one, two = Visitor(browser, address), Visitor(browser, address)
    one.open(films["plain"])
    one.click(73, 53)
    assert two.page.locator(".vb.vb-closed").count() == 1  # nothing is open here
    two.open(films["hevc"])
    two.drag(160, 108, 226, 176)
    assert one.pixels("masks")[53, 73, 3] > 0 and one.pixels("masks")[143, 193, 3] == 0
    assert two.pixels("masks")[53, 73, 3] == 0 and two.pixels("masks")[143, 193, 3] > 0
    one.follow()
    with zipfile.ZipFile(io.BytesIO(one.download("#get-masks"))) as archive, archive.open("masks/00000.png") as file:
        assert np.array(Image.open(io.BytesIO(file.read())))[143, 193] == 0
    assert two.page.locator("#result").count() == 0
    link = one.page.get_attribute("#result video", "src")
    room = re.search(r"/files/([^/]+)/", link)[1]
    assert len(room) >= 20  # cannot be guessed
    kept = next(folder.glob("vosnb-app-*/files"))
    assert (kept / room).is_dir()
    one.leave()
    for _ in range(100):
        if not (kept / room).exists():
            break
        time.sleep(0.1)
    assert not (kept / room).exists()  # it goes with the visitor
    asked = []
    two.page.once("dialog", lambda dialog: asked.append(dialog.type) or dialog.accept())
    two.page.reload()
    assert asked == ["beforeunload"]  # whether to lose the clicks
    two.page.wait_for_selector(".vb.vb-closed")  # a new visit
    two.leave()


def test_films_are_followed_one_at_a_time_and_who_waits_may_leave_the_line(browser, server, films):
    one, two = Visitor(browser, server[0]), Visitor(browser, server[0])
    one.open(films["many"])
    two.open(films["plain"])
    one.click(73, 53)
    two.click(73, 53)
    one.page.click(".vb-follow")
    one.page.wait_for_function("() => /following/.test(document.querySelector('.vb-status').textContent)")
    two.page.click(".vb-follow")
    two.page.wait_for_function("() => document.querySelector('.vb-status').textContent === 'waiting for its turn …'")
    two.click(80, 50)  # is answered meanwhile
    two.page.click(".vb-stop")
    two.page.wait_for_selector(".vb-follow:not(:disabled)")
    one.page.click(".vb-stop")
    one.page.wait_for_selector("#result video")
    assert two.page.locator("#result video").count() == 0
    two.follow()
    assert "Masks on all frames" in two.status
    one.leave()
    two.leave()


def test_clicks_quicker_than_the_model_are_all_heeded_in_order(visitor, films, tmp_path):
    page = visitor.page
    visitor.open(films["plain"])
    for i in range(8):
        page.mouse.click(*visitor.at(60 + 3 * i, 53), delay=0)
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.wait_for_function("() => !document.querySelector('.vb-redo').disabled")
    visitor.follow()
    (tmp_path / "said.json").write_bytes(visitor.download("#get-prompts"))
    said = Prompts.load(tmp_path / "said.json")
    assert np.allclose([p.x for p in said[0][1].points], [60 + 3 * i for i in range(6)], atol=0.4)


def test_settings_are_taken_over_with_the_clicks(visitor, films):
    page = visitor.page
    visitor.open(films["plain"])
    visitor.click(73, 53)
    before = visitor.pixels("masks")
    page.click("#advanced button")
    page.click("#advanced input >> nth=0")
    page.get_by_role("option", name="optical flow").click()
    page.click("#use")
    page.wait_for_selector("text=From now on with these settings")
    visitor.click(78, 56)
    after = visitor.pixels("masks")[..., 3] > 0
    assert np.count_nonzero(after & (before[..., 3] > 0)) > 0.8 * np.count_nonzero(after | (before[..., 3] > 0))
    visitor.follow()
    assert "Masks on all frames" in visitor.status


def test_films_that_are_too_large_too_long_or_none_are_refused_with_a_reason(visitor, frames, tmp_path):
    page = visitor.page
    wide = plain(tmp_path / "wide.mp4", np.tile(frames[:2], (1, 1, 3, 1)))
    long = encoded(tmp_path / "long.mp4", np.repeat(frames[:1], 201, 0), "-c:v", "libx264", "-pix_fmt", "yuv420p")
    (tmp_path / "text.mp4").write_text("no film")
    for film, says in ((wide, "at most 600 pixels"), (long, "at most 200 frames"), (tmp_path / "text.mp4", "a video file")):
        page.set_input_files("#upload input[type=file]", film)
        page.wait_for_function("s => document.querySelector('.vb-error')?.textContent.includes(s)", arg=says)
        assert "vosnb-app-" not in visitor.status
    page.set_input_files("#upload input[type=file]", {"name": "big.mp4", "mimeType": "video/mp4", "buffer": b"0" * 2_100_000})
    page.wait_for_selector("text=/exceed|too large|maximum/i")
    assert page.locator(".vb.vb-closed").count() == 1
    visitor.wrong = [said for said in visitor.wrong if "413" not in said and "exceed" not in said.lower()]


def answer(request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(address: str, name: str, content: bytes) -> tuple[int, bytes]:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: video/mp4\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return answer(urllib.request.Request(f"{address}/gradio_api/upload", head + content + b"\r\n--b--\r\n", headers))


@pytest.mark.parametrize(
    "way",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        "..%2f..%2f..%2f..%2fetc/passwd",
        "{root}/../log",
        "{root}/turbulence.mp4",
        "/proc/self/environ",
    ],
)
def test_no_file_of_the_machine_can_be_asked_for(server, way):
    address, folder = server
    root = next(folder.glob("vosnb-app-*"))
    for route in ("file=", "file/", "stream/"):
        code, body = answer(f"{address}/gradio_api/{route}{way.format(root=root)}")
        assert code >= 400 and b"root:" not in body and b"TMPDIR" not in body and b"http://" not in body


def test_an_upload_called_like_a_way_out_stays_inside_and_an_oversized_one_is_refused(server):
    address, folder = server
    code, body = upload(address, "../../../../evil.mp4", b"x")
    (stored,) = json.loads(body)
    kept = next(folder.glob("vosnb-app-*/files"))
    assert code == 200 and Path(stored).resolve().is_relative_to(kept.resolve())
    assert not list(folder.glob("evil.mp4")) and not list(folder.parent.glob("evil.mp4"))
    code, body = upload(address, "big.mp4", b"0" * 2_100_000)
    assert code == 413


def asked(address: str, event: str, element: str, data: list) -> bytes:
    """Sends an event's message as the browser would, and returns what the server says to it."""
    with urllib.request.urlopen(f"{address}/config") as found:
        config = json.load(found)
    ids = {c["id"] for c in config["components"] if c["props"].get("elem_id") == element}
    (target,) = (d for d in config["dependencies"] if any(t[0] in ids and t[1] == event for t in d["targets"]))
    visit = f"evil{time.monotonic_ns()}"
    body = json.dumps({"data": data, "fn_index": target["id"], "session_hash": visit}).encode()
    code, said = answer(urllib.request.Request(f"{address}/gradio_api/queue/join", body, {"Content-Type": "application/json"}))
    if code < 400:
        with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={visit}", timeout=20) as stream:
            while b"process_completed" not in said and b"close_stream" not in said:
                said += stream.readline()
    return said.replace(b" ", b"")


SETTINGS = ["sam2", None, 3, 0.1, 2, 0, 0]


def test_the_page_takes_no_file_of_the_machine_for_an_upload(server):
    file = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}, "orig_name": "hostname.mp4"}
    assert b'"success":false' in asked(server[0], "upload", "upload", [file, *SETTINGS])
    assert Path("/etc/hostname").exists()


@pytest.mark.parametrize("place, value", [(0, "xmem"), (1, "/etc/passwd"), (2, 10**6), (6, 10**5)])
def test_settings_that_the_page_does_not_offer_are_refused(server, place, value):
    settings = [value if i == place else given for i, given in enumerate(SETTINGS)]
    assert b'"success":false' in asked(server[0], "click", "sample", settings)
