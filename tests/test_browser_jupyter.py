"""The editor as a person uses it, in real browsers' pages: JupyterLab, Notebook 7 and Voila, in a headless Chromium.

Skipped where Chromium or playwright is missing. With VOSNB_PICTURES=FOLDER the pages are kept there as pictures.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright", reason="no playwright: pip install -e '.[dev]'")

from jupyter_driver import CHROMIUM, Driven, chromium, end_kernels, jupyter, opened

from vosnb import Clip, Masks, Prompts, propagate
from vosnb.synth import turbulence

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(
        not shutil.which("jupyter", path=str(Path(sys.executable).parent)), reason="no Jupyter beside this Python"
    ),
]
T, H, W = 64, 270, 480


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
    with jupyter(place, tmp_path_factory.mktemp("jupyter")) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    with chromium(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture
def open_at(server: str, browser, place: Path):
    pages = []

    def open_one(kind: str, name: str) -> Driven:
        pages.append(opened(server, browser, place, kind, name))
        return pages[-1]

    yield open_one
    for driven in pages:
        driven.page.close()
    end_kernels(server)


def prompts_in(file: Path) -> list[tuple]:
    return [
        (t, obj, p.box and p.box.xyxy, [(round(q.x), round(q.y), q.label) for q in p.points])
        for t, given in Prompts.load(file).items()
        for obj, p in given.items()
    ]


@pytest.mark.parametrize("kind", ["lab/tree", "notebooks"])
def test_click_propagate_stop_correct_and_export(open_at, place, kind):
    name = kind.split("/")[0]
    driven = open_at(kind, name)
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

    # -- close up: a click is where it is seen
    page.mouse.move(*driven.at(120, 200))
    page.mouse.wheel(0, -300)
    page.mouse.wheel(0, -300)
    driven.click(100, 190)
    assert np.allclose(prompts_in(file)[1][3][1], (100, 190, 1), atol=1)
    driven.painted(lambda: driven.key("Control+z"))
    driven.button("fit").click()

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

    # -- the rest, from a cell: requests are answered while it runs
    page.locator(".jp-Notebook .jp-Cell .cm-content").nth(1).click()
    page.keyboard.type("editor.session.propagate().result()")
    page.keyboard.press("Shift+Enter")
    driven.until("/propagating/.test(s)")
    driven.painted(lambda: driven.button("on").click())
    assert page.locator(".jp-InputPrompt:has-text('[*]')").count() == 1
    driven.until("!/propagating/.test(s)", 60)

    # -- a correction
    driven.root.focus()
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


def test_voila_renders_it(open_at, place):
    driven = open_at("voila/render", "voila")
    driven.click(240, 60)
    assert driven.overlay() > 5000 and prompts_in(place / "voila.json") == [(0, 1, None, [(240, 60, 1)])]
    driven.keep("voila")
