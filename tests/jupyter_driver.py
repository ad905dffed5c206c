"""A Jupyter server and its pages in a headless Chromium, as the browser tests and `benchmarks/clicks.py` drive them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TOKEN = "tok"
CODE = """from vosnb import Clip, Session
from vosnb.widgets import Editor
editor = Editor(Session(Clip("frames"), "{name}.json", model="vosnb-mini-sam2"), out="{name}")
editor"""


@contextmanager
def jupyter(place: Path, own: Path) -> Iterator[str]:
    """The address of a Jupyter server over the folder `place`, which serves Lab, Notebook 7 and Voila alike; `own` is for its files."""
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
    with (own / "log").open("w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.25)
            yield address
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=FLAGS, viewport={"width": 1280, "height": 1000}
        )
        context.set_default_timeout(30_000)
        yield context
        context.close()


def opened(server: str, browser: Any, place: Path, kind: str, name: str) -> Driven:
    """A new notebook with the editor in it, run, at an address such as lab/tree. The clip is in `place`/frames."""
    empty = {"metadata": {}, "outputs": [], "execution_count": None, "cell_type": "code"}
    cells = [{**empty, "source": CODE.format(name=name), "id": "one"}, {**empty, "source": "", "id": "two"}]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    (place / f"{name}.ipynb").write_text(json.dumps(notebook))
    page = browser.new_page()
    page.goto(f"{server}/{kind}/{name}.ipynb?token={TOKEN}" + ("&reset" if kind.startswith("lab") else ""))
    for _ in range(0 if kind.startswith("voila") else 4):  # a page that is still loading swallows keys
        page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        try:
            page.wait_for_selector(".jp-InputPrompt:has-text('[*]'), .jp-InputPrompt:has-text('[1]')", timeout=8000)
            break
        except TimeoutError:
            continue
    return Driven(page)


def end_kernels(server: str) -> None:
    """And the sessions, or the next page would be given an old kernel."""
    for kind in ("sessions", "kernels"):
        request = urllib.request.Request(f"{server}/api/{kind}", headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            for entry in json.load(answer):
                request = urllib.request.Request(f"{server}/api/{kind}/{entry['id']}", method="DELETE", headers=request.headers)
                urllib.request.urlopen(request).close()


class Driven:
    """A page with an editor in it, once the first frame is painted and the kernel has answered."""

    def __init__(self, page):
        self.page, self.root = page, page.locator(".vosnb")
        try:
            page.wait_for_selector(".vosnb[data-frame]:not([data-reply='0'])", timeout=60_000)
        except TimeoutError:
            self.keep("nothing-painted")
            raise
        self.root.scroll_into_view_if_needed()
        of = page.evaluate("() => { const c = document.querySelector('.vosnb .picture'); return [c.width, c.height] }")
        self.width, self.height = of

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the frame is on the page."""
        box = self.page.locator(".vosnb .inner").bounding_box()
        return box["x"] + x / self.width * box["width"], box["y"] + y / self.height * box["height"]

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
