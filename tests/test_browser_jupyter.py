"""The editor as a person uses it, in real browsers' pages: JupyterLab, Notebook 7 and Voila, in a headless Chromium.

Skipped where Chromium or playwright is missing. With VOSNB_PICTURES=FOLDER the pages are kept there as pictures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vosnb import Clip, Masks, Prompts, propagate
from vosnb.synth import turbulence

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
TimeoutError = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[dev]'").TimeoutError
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not shutil.which("jupyter", path=str(Path(sys.executable).parent)), reason="no Jupyter"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TOKEN, T, H, W = "tok", 64, 270, 480
CODE = """from vosnb import Clip, Session
from vosnb.widgets import Editor
editor = Editor(Session(Clip("frames"), "{name}.json", model="vosnb-mini-sam2"), out="{name}")
editor"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The notebooks' folder, with a clip of T frames in it."""
    folder = tmp_path_factory.mktemp("notebooks")
    images = np.stack(list(turbulence(frames=16, height=H, width=W).images))
    there_and_back = np.concatenate([images, images[::-1]])
    Clip(np.concatenate([there_and_back] * (T // 32))).save_frames(folder / "frames")
    return folder


@pytest.fixture(scope="module")
def server(place: Path, tmp_path_factory) -> Iterator[str]:
    """The address of a Jupyter server, which serves Lab, Notebook 7 and Voila alike."""
    own = tmp_path_factory.mktemp("jupyter")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kinds = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    env = {**os.environ, **{name: str(own / kind) for name, kind in kinds.items()}, "PYTHONPATH": str(ROOT)}
    env.pop("VOSNB_HEADLESS", None)
    announcements = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (own / "config" / "labconfig").mkdir(parents=True)
    (own / "config" / "labconfig" / "page_config.json").write_text(json.dumps(announcements))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={place}", "--LabApp.news_url=None",
    ]  # fmt: skip
    log = (own / "log").open("w")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2).close()
            break
        except OSError:
            time.sleep(0.25)
    yield address
    process.terminate()
    process.wait(10)
    log.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=FLAGS, viewport={"width": 1280, "height": 1000}
        )
        context.set_default_timeout(30_000)
        yield context
        context.close()


@pytest.fixture
def opened(server: str, browser, place: Path):
    """Opens a new notebook with the editor in it at an address like lab/tree, and runs it; ends its kernel at the end."""
    pages = []

    def open_at(kind: str, name: str):
        cells = [
            {
                "cell_type": "code",
                "source": CODE.format(name=name),
                "metadata": {},
                "outputs": [],
                "execution_count": None,
                "id": "one",
            },
            {"cell_type": "code", "source": "", "metadata": {}, "outputs": [], "execution_count": None, "id": "two"},
        ]
        about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        notebook = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
        (place / f"{name}.ipynb").write_text(json.dumps(notebook))
        page = browser.new_page()
        pages.append(page)
        page.goto(f"{server}/{kind}/{name}.ipynb?token={TOKEN}" + ("&reset" if kind.startswith("lab") else ""))
        if not kind.startswith("voila"):
            for _ in range(4):  # a page that is still loading swallows keys
                page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
                page.keyboard.press("Shift+Enter")
                try:
                    page.wait_for_selector(".jp-InputPrompt:has-text('[*]'), .jp-InputPrompt:has-text('[1]')", timeout=8000)
                    break
                except TimeoutError:
                    continue
        return Driven(page)

    yield open_at
    for page in pages:
        page.close()
    for kind in ("sessions", "kernels"):
        request = urllib.request.Request(f"{server}/api/{kind}", headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            for entry in json.load(answer):
                gone = urllib.request.Request(
                    f"{server}/api/{kind}/{entry['id']}", method="DELETE", headers={"Authorization": f"token {TOKEN}"}
                )
                urllib.request.urlopen(gone).close()


class Driven:
    """A page with an editor in it, once the first frame is painted."""

    def __init__(self, page):
        self.page, self.root = page, page.locator(".vosnb")
        try:
            page.wait_for_selector(".vosnb[data-frame]", timeout=60_000)
        except TimeoutError:
            self.keep("nothing-painted")
            raise
        self.root.scroll_into_view_if_needed()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the frame is on the page."""
        box = self.page.locator(".vosnb .inner").bounding_box()
        return box["x"] + x / W * box["width"], box["y"] + y / H * box["height"]

    def painted(self, act, reply: bool = True) -> float:
        """Does something, waits until the answer is on the screen, and returns the milliseconds from request to paint."""
        before = int(self.root.get_attribute("data-reply"))
        act()
        if reply:
            self.page.wait_for_function(
                "n => Number(document.querySelector('.vosnb').dataset.reply) > n", arg=before, timeout=20_000
            )
        return float(self.root.get_attribute("data-ms"))

    def click(self, x: float, y: float, **how) -> float:
        return self.painted(lambda: self.page.mouse.click(*self.at(x, y), **how))

    def key(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def button(self, name: str):
        return self.page.locator(f".vosnb [data-name='{name}']")

    def until(self, condition: str, seconds: float = 20) -> None:
        """Waits for a condition in JavaScript, in which `d` is the editor's data and `s` its status line."""
        self.page.wait_for_function(
            "c => { const r = document.querySelector('.vosnb'); return new Function('r','d','s','return ' + c)"
            "(r, r.dataset, r.querySelector('.said').textContent) }",
            arg=condition,
            timeout=1000 * seconds,
        )

    def overlay(self) -> int:
        """How many pixels are painted over."""
        return self.page.evaluate(
            "() => { const c = document.querySelector('.vosnb .labels');"
            " const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            " let n = 0; for (let i = 3; i < p.length; i += 4) n += p[i] > 0; return n }"
        )

    def keep(self, name: str) -> None:
        if folder := os.environ.get("VOSNB_PICTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


def prompts_in(file: Path) -> list[tuple]:
    return [
        (t, obj, p.box and p.box.xyxy, [(round(q.x), round(q.y), q.label) for q in p.points])
        for t, given in Prompts.load(file).items()
        for obj, p in given.items()
    ]


@pytest.mark.parametrize("kind", ["lab/tree", "notebooks"])
def test_click_propagate_stop_correct_and_export(opened, place, kind):
    name = kind.split("/")[0]
    driven = opened(kind, name)
    page, file = driven.page, place / f"{name}.json"
    cells = page.locator(".jp-Notebook .jp-Cell").count()

    # -- clicks of all kinds
    driven.click(240, 60)
    assert driven.overlay() > 5000
    driven.click(240, 262, button="right")
    assert page.locator(".lm-Menu").count() == 0 and page.locator(".vosnb").count() == 1
    page.keyboard.down("Alt")
    driven.click(60, 262)
    page.keyboard.up("Alt")
    assert prompts_in(file) == [(0, 1, None, [(240, 60, 1), (240, 262, 0), (60, 262, 0)])]
    driven.painted(lambda: driven.key("2"))
    x0, y0, x1, y1 = *driven.at(2, 116), *driven.at(478, 214)

    def box() -> None:
        page.mouse.move(x0, y0)
        page.mouse.down()
        page.mouse.move((x0 + x1) / 2, y1, steps=3)
        page.mouse.move(x1, y1)
        page.mouse.up()

    before = driven.overlay()
    driven.painted(box)
    assert driven.overlay() > before + 5000
    drawn = prompts_in(file)[1][2]
    assert prompts_in(file)[1][:2] == (0, 2) and np.allclose(drawn, (2, 116, 478, 214), atol=2)
    driven.painted(lambda: driven.key("Control+z"))
    assert len(prompts_in(file)) == 1
    driven.painted(lambda: driven.key("Control+Shift+z"))
    assert len(prompts_in(file)) == 2
    driven.key("x", "d", "d", "b", "a", "y")
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells and len(prompts_in(file)) == 2
    driven.button("side").click()
    driven.click(300, 262)
    assert prompts_in(file)[1][3] == [(300, 262, 0)]
    driven.button("side").click()
    driven.keep(f"{name}-clicks")

    # -- frames
    driven.painted(lambda: driven.key("ArrowRight"))
    driven.until("d.frame === '1'")
    driven.painted(lambda: driven.key("Shift+ArrowRight"))
    driven.until("d.frame === '11'")
    assert driven.overlay() == 0  # nothing is said of this frame, and nothing propagated
    strip = page.locator(".vosnb .ribbon").bounding_box()
    driven.painted(lambda: page.mouse.click(strip["x"] + strip["width"] * 0.5, strip["y"] + 10))
    driven.until(f"d.frame === '{T // 2}'")

    # -- propagate, look meanwhile, stop
    driven.painted(lambda: driven.button("forward").click())
    driven.until("/propagating forward: [1-9]/.test(s)")
    driven.painted(lambda: page.mouse.click(strip["x"] + 2, strip["y"] + 10))
    driven.until("d.frame === '0'")
    assert driven.overlay() > 10_000 and re.search("propagating", page.locator(".vosnb .said").text_content())
    begun = time.monotonic()
    driven.button("stop").click()
    driven.until("!/propagating/.test(s)", 5)
    seconds = time.monotonic() - begun
    print(f"\n{kind}: Stop took {1000 * seconds:.0f} ms")
    assert seconds < 1

    # -- the rest, a correction, a way back
    driven.painted(lambda: driven.button("forward").click())
    driven.until("/propagating/.test(s)")
    driven.until("!/propagating/.test(s)", 60)
    driven.painted(lambda: driven.key("End", "Shift+ArrowLeft"))
    driven.until(f"d.frame === '{T - 11}'")
    before = driven.overlay()
    driven.painted(lambda: driven.key("1"))
    driven.click(240, 262)  # what is at the bottom is to be object 1, too
    assert driven.overlay() > before + 1000 and len(prompts_in(file)) == 3
    driven.until("!/propagating/.test(s)", 60)
    driven.keep(f"{name}-propagated")

    # -- out: what is written is what the verb makes of the prompts file, without a browser
    page.locator(".vosnb select").select_option("png")
    driven.painted(lambda: driven.button("export").click())
    driven.until("/wrote/.test(s)")
    written = Masks(next((place / name).glob("masks*")))
    assert len(written) == T
    given = Prompts.load(file)
    found = propagate(Clip(place / "frames"), given, "sam2", model="vosnb-mini-sam2", heed=True, show_progress=False)
    assert np.array_equal(np.asarray(found), np.asarray(written))


def test_voila_renders_it(opened, place):
    driven = opened("voila/render", "voila")
    driven.click(240, 60)
    assert driven.overlay() > 5000 and prompts_in(place / "voila.json") == [(0, 1, None, [(240, 60, 1)])]
    driven.keep("voila")
