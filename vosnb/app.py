"""The web page of `vosnb app`: upload a video, click on what matters, follow it through the film, take the masks home.

Gradio carries messages and files, page.js is the editor, and the work is `Session`'s, as in the notebook: see `rooms`. Small messages
(a click, a look at a frame, Stop) are answered at once; films are followed one at a time, the others wait in Gradio's queue.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from .errors import InputError
from .files import runs
from .models import weights
from .progress import say
from .rooms import OTHERS, STRATEGIES, SUFFIXES, Limits, Room, Rooms

__all__ = ["page", "serve"]

TITLE = "<div class='vb-title'><b>vosnb</b><span>click, follow, correct, download</span></div>"
NOTE = (
    f"<div class='vb-note'>{weights.SMALL}, the model in use, knows made-up scenes. For real footage the server needs another one: "
    "<code>vosnb fetch sam2.1_hiera_tiny</code>, then <code>vosnb app</code> again.</div>"
)


def page(rooms: Rooms, models: Iterable[str] = ()) -> gr.Blocks:
    """The page as Gradio blocks. `models`: checkpoints to choose among, the first is the default."""
    models = list(models)
    here = Path(__file__).parent
    none = {"open": 0, "frames": 0, "width": 16, "height": 9, "frame": 0, "marks": [], "objects": [], "known": [],
            "prompted": [], "text": "", "number": 0, "fps": 25}  # fmt: skip

    def visitor(request: gr.Request) -> str:
        return request.session_hash or secrets.token_urlsafe(18)  # who has none shares nothing with others who have none

    def answered(request: gr.Request, asked: Mapping[str, Any], act: Callable[[Room], None]) -> dict[str, Any]:
        """Does it, and returns the editor's new properties, whatever goes wrong: the page waits for an answer."""
        number, said, room, shown = asked.get("number", 0), "", None, {}
        frame = asked.get("frame") if isinstance(asked.get("frame"), int) else 0
        try:
            room = rooms.find(visitor(request))
            if asked.get("open") == room.number:  # else it was meant for the film before
                act(room)
            if asked.get("picture"):
                shown["picture"] = room.picture(frame)
        except Exception as error:
            said = _said(error)
        if room is None:
            return {"view": {**none, "text": said, "error": True, "number": number}}
        return {"view": room.view(frame, number, said), **shown}

    def edit(event: gr.EventData, request: gr.Request) -> Any:
        return gr.HTML(**answered(request, event._data, lambda room: room.act(event._data)))

    def look(event: gr.EventData, request: gr.Request) -> Any:
        return gr.HTML(**answered(request, event._data, lambda room: None))

    def stop(event: gr.EventData, request: gr.Request) -> Any:
        return gr.HTML(**answered(request, event._data, lambda room: room.stop(float(event._data["number"]))))

    def follow(event: gr.EventData, request: gr.Request) -> tuple:
        made: dict[str, Path] = {}

        def act(room: Room) -> None:
            if room.follow(str(event._data.get("direction")), float(event._data["number"])):
                made.update(room.files())

        shown = answered(request, event._data, act)
        return gr.HTML(**shown), *results(made), gr.DownloadButton(visible=False)

    def results(made: Mapping[str, Path]) -> tuple:
        if not made:
            return tuple(gr.skip() for _ in range(6))
        video, masks, coco, prompts = (str(made[name]) for name in ("video", "masks", "coco", "prompts"))
        return gr.Column(visible=True), gr.Video(video), *(gr.DownloadButton(value=v) for v in (masks, video, coco, prompts))

    def opened(request: gr.Request, upload: str | None, by: str, *values: Any) -> tuple:
        if upload is None:
            return gr.skip(), gr.skip(), gr.skip()
        return None, *begun(request, lambda: Path(upload), by, values)

    def sample(request: gr.Request, by: str, *values: Any) -> tuple:
        return begun(request, lambda: _sample(rooms.folder), by, values)

    def begun(request: gr.Request, film: Callable[[], Path], by: str, values: tuple) -> tuple:
        try:
            room = rooms.open(visitor(request), film(), by, **chosen(values))
        except Exception as error:
            gr.Warning(said := _said(error), duration=None)
            try:
                return gr.HTML(view=rooms.find(visitor(request)).view(0, said=said)), gr.skip()
            except InputError:
                return gr.HTML(view={**none, "text": said, "error": True}), gr.skip()
        return gr.HTML(view=room.view(0), picture=room.picture(0)), gr.Column(visible=False)

    def chosen(values: tuple) -> dict[str, Any]:
        names = ("model", "num_pathway", "iou_thre", "uncertainty", "score_thresh", "image_size")
        return {
            name: value
            for name, value in zip(names, values, strict=True)
            if value not in (None, "", 0) or name == "score_thresh"
        }

    def apply(request: gr.Request, by: str, *values: Any) -> Any:
        try:
            room = rooms.find(visitor(request))
            room.use(rooms.strategy(by, chosen(values)))
        except Exception as error:
            gr.Warning(_said(error))
            return gr.skip()
        gr.Info("From now on with these settings. Follow again for new masks.")
        return gr.HTML(view=room.view(min(room.session.prompts, default=0)))

    def gone(request: gr.Request) -> None:
        rooms.leave(visitor(request))

    def others(request: gr.Request, formats: list[str]) -> Any:
        try:
            file = rooms.find(visitor(request)).others(formats)
        except Exception as error:
            gr.Warning(_said(error))
            return gr.skip()
        return gr.DownloadButton(value=str(file), visible=True)

    with gr.Blocks(
        title="vosnb", analytics_enabled=False, fill_width=True, delete_cache=(300, int(60 * rooms.limits.minutes))
    ) as blocks:
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=480):
                editor = gr.HTML(
                    html_template='<div class="vb"></div>', js_on_load=(here / "page.js").read_text(encoding="utf-8"),
                    elem_id="editor", apply_default_css=False, view=none, picture=None,
                )  # fmt: skip
            with gr.Column(scale=3, min_width=300):
                gr.HTML(TITLE + (NOTE if models[:1] == [weights.SMALL] else ""), elem_classes="vb-flat")
                upload = gr.File(label="Your video", file_types=["video", *SUFFIXES], height=130, elem_id="upload")
                embedded = gr.Button("Try the made-up clip", elem_id="sample", size="sm")
                with gr.Column(visible=False) as done:
                    video = gr.Video(label="Result", interactive=False, elem_id="result", buttons=[], loop=True)
                    with gr.Row():
                        get_masks = gr.DownloadButton("Masks (PNG)", elem_id="get-masks", variant="primary", size="md")
                        get_video = gr.DownloadButton("Film (MP4)", elem_id="get-video", variant="primary", size="md")
                    with gr.Row():
                        get_coco = gr.DownloadButton("COCO (JSON)", elem_id="get-coco", size="sm")
                        get_prompts = gr.DownloadButton("Clicks (JSON)", elem_id="get-prompts", size="sm")
                    with gr.Accordion("More formats", open=False):
                        formats = gr.CheckboxGroup(
                            list(OTHERS.items()), label="", value=["webm"], elem_id="formats", show_label=False
                        )
                        make = gr.Button("Make", size="sm", elem_id="make")
                        get_others = gr.DownloadButton("Download (zip)", visible=False, elem_id="get-others")
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    by = gr.Dropdown(list(STRATEGIES.items()), value="sam2", label="Strategy")
                    settings = [
                        gr.Dropdown(models, value=models[0] if models else None, label="Model"),
                        gr.Slider(1, 8, 3, step=1, label="Pathways", info="how many hypotheses are kept"),
                        gr.Slider(0.01, 0.95, 0.1, step=0.01, label="Remember above", info="pathways: predicted IoU of a frame"),
                        gr.Slider(0.1, 10, 2, step=0.1, label="Branch below", info="pathways: the object score that is sure"),
                        gr.Slider(-5, 5, 0, step=0.1, label="Mask threshold", info="logits above it are the object"),
                        gr.Dropdown([("as trained", 0), 256, 512, 1024], value=0, label="Image size", info="smaller is quicker"),
                    ]  # fmt: skip
                    use = gr.Button("Use these", size="sm", elem_id="use")
        advanced = [by, *settings]
        quick = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple", "api_visibility": "private"}
        one = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        editor.edit(edit, None, editor, **quick)
        editor.look(look, None, editor, **quick)
        editor.stop(stop, None, editor, **quick)
        editor.follow(
            follow, None, [editor, done, video, get_masks, get_video, get_coco, get_prompts, get_others],
            show_progress="hidden", trigger_mode="multiple", **one,
        )  # fmt: skip
        upload.upload(opened, [upload, *advanced], [upload, editor, done], concurrency_limit=2, api_visibility="private")
        embedded.click(sample, advanced, [editor, done], concurrency_limit=2, api_visibility="private")
        use.click(apply, advanced, editor, api_visibility="private")
        make.click(others, formats, get_others, **one)
        blocks.unload(gone)
    return blocks


def _said(error: Exception) -> str:
    """What the visitor is told; what nobody expected goes to the log, with its traceback."""
    if isinstance(error, InputError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return f"something went wrong here ({type(error).__name__}): the server's log says more"


def _sample(folder: Path) -> Path:
    """The embedded clip as an upload; made once, in a second or two."""
    from .synth import turbulence
    from .video import write_video

    made = folder.parent / "turbulence.mp4"
    if not made.exists():
        scene = turbulence(frames=60)
        write_video(made, scene.images, scene.fps, crf=12)
    upload = folder / secrets.token_urlsafe(8) / made.name
    upload.parent.mkdir()
    return Path(shutil.copy(made, upload))


def serve(
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    model: str | None = None,
    ready: Callable[[str], None] = print,
) -> None:
    """Serves the page until Ctrl-C; `ready` is told the address. Files of visitors lie in a temporary folder that goes with it.

    `host` 127.0.0.1 is this machine alone; 0.0.0.0 lets everybody in who can reach it. `InputError` where the port is taken.
    """
    limits = limits or Limits()
    _check_free(host, port)
    model = model or weights.default()
    weights.path(model)
    others = sorted(name for name, card in weights.cards().items() if card.family == "sam2" and name != model and _has(name))
    for ending in (signal.SIGTERM, signal.SIGHUP):  # a service manager, a terminal that is closed: the files go then, too
        signal.signal(ending, signal.default_int_handler)
    _sweep_dead()
    with tempfile.TemporaryDirectory(prefix=f"vosnb-app-{os.getpid()}-") as name:
        os.environ |= {"GRADIO_TEMP_DIR": f"{name}/files", "VOSNB_CACHE": f"{name}/cache", "GRADIO_ANALYTICS_ENABLED": "False"}
        rooms = Rooms(Path(name) / "files", limits)
        blocks = page(rooms, [model, *others])
        font = ["system-ui", "sans-serif"]  # none from the net
        blocks.queue(default_concurrency_limit=4, max_size=64)
        _, address, _ = blocks.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, quiet=True, prevent_thread_lock=True,
            max_file_size=int(limits.megabytes * 1e6), css=(Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
            theme=gr.themes.Default(primary_hue="indigo", font=font, font_mono=["ui-monospace", "monospace"]),
            footer_links=[], show_error=False,
        )  # fmt: skip
        if not host.startswith("127.") and host not in ("localhost", "::1"):
            say(f"whoever reaches {host}:{port} can upload films and use this machine's models")
        ready(address)
        try:
            while True:
                time.sleep(30)
                rooms.sweep()
        finally:
            rooms.close()
            blocks.close()


def _sweep_dead() -> None:
    """Removes what a server of this machine that was killed left of its visitors' films."""
    for left in Path(tempfile.gettempdir()).glob("vosnb-app-*-*"):
        pid = left.name.split("-")[2]
        if pid.isdecimal() and not runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _check_free(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} to be free, and ours", error, "choose another --port or --host") from None


def _has(name: str) -> bool:
    try:
        weights.path(name)
    except InputError:
        return False
    return True
