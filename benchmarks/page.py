"""How long from a click on the web page until its mask is painted, and from a key until the next frame is? In Chromium, at 540p.

    .venv/bin/python benchmarks/page.py [--film FILM] [--clicks 12]

Needs playwright and Chromium. The model is the default one; the frame's features are kept after the first click, which is not counted.
The browser measures, from the event to the painting. Exits with 1 if a median misses its goal.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOALS = {"click": 300, "scrub": 100}  # ms
WATCH = """before => {
    window.took = null;
    const root = document.querySelector(".vb");
    let begun = null;
    for (const kind of ["pointerup", "keydown"])
        window.addEventListener(kind, () => { begun ??= performance.now(); }, { capture: true, once: true });
    new MutationObserver((_, observer) => {
        if (!root.dataset.painted || root.dataset.painted === before) return;
        window.took = performance.now() - begun;
        observer.disconnect();
    }).observe(root, { attributes: true });
}"""


def make(path: Path) -> Path:
    """The embedded clip, 540 lines high."""
    import cv2

    from vosnb import turbulence
    from vosnb.video import write_video

    scene = turbulence(frames=30)
    return write_video(path, (cv2.resize(image, (960, 540)) for image in scene.images), scene.fps)


def main() -> int:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path)
    parser.add_argument("--clicks", type=int, default=12)
    args = parser.parse_args()
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        film = args.film or make(Path(folder) / "film.mp4")
        server = subprocess.Popen(
            [sys.executable, "-m", "vosnb.cli", "app", "--port", str(port)], stdout=subprocess.PIPE, text=True
        )
        try:
            while "http" not in server.stdout.readline():
                pass
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector("#editor .vb-stage")
            page.set_input_files("#upload input[type=file]", film)
            page.wait_for_function("() => document.querySelector('.vb').dataset.painted", timeout=120_000)
            box = page.locator(".vb-stage").bounding_box()
            print(f"{film.name}, {page.text_content('.vb-counter')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")

            def took(act) -> float:
                page.evaluate(WATCH, page.evaluate("() => document.querySelector('.vb').dataset.painted"))
                act()
                page.wait_for_function("() => window.took !== null", timeout=60_000)
                time.sleep(0.6)  # the next one finds everything at rest
                return page.evaluate("() => window.took")

            def click(i: int) -> float:
                x, y = box["x"] + box["width"] * (0.3 + 0.4 * i / args.clicks), box["y"] + box["height"] * 0.3
                return took(lambda: page.mouse.click(x, y))

            found = {
                "click": [click(i) for i in range(args.clicks + 1)][1:],
                "scrub": [took(lambda: page.keyboard.press("ArrowRight")) for _ in range(args.clicks)],
            }
            browser.close()
        finally:
            server.terminate()
            server.wait(30)
    missed = 0
    for what, times in found.items():
        median = statistics.median(times)
        missed += median > GOALS[what]
        print(f"{what}: median {median:.0f} ms, from {min(times):.0f} to {max(times):.0f}; goal {GOALS[what]}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
