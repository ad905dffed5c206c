"""The editor of a `Session` in a notebook: click, propagate, look, correct, export. Its other half, in the browser, is widgets.js.

Every change goes to the session; what the browser shows comes from there, so the notebook, the widget and the prompts file agree.
The browser sends `requests`, numbered; each answer is one message with everything that changed, and `reply_to`, the number of the last
request that it contains. Callbacks may come on any thread and only pass work on; messages are sent from the session's worker, too.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import cv2
import traitlets

from .errors import InputError
from .export import FORMATS, export
from .paint import layer, overlay
from .prompts import Box, Prompt
from .session import Session
from .show import png

__all__ = ["Editor"]

SIDE = 1920  # pixels: frames are shown no larger than this; prompts are in pixels of the original nevertheless
JPEGS = 64  # kept, ready to be sent
PACE = 0.1  # seconds between two messages about a propagation
UNKNOWN = 101  # in the ribbon: masks without a confidence


class Editor(anywidget.AnyWidget):
    """`session`: a `Session`, or whatever it is made of (a clip, and `prompts`, `by`, `model`, … as there). `out`: the folder for
    exports, by default runs/NAME. Everything that the browser can do is a method of the session.

    In the browser: left click on the object, right click (or Alt, or Shift, or the toggle) on the background, drag a box; 1 … 9 choose
    an object, Ctrl+Z undoes, arrows step, Shift with them by ten, wheel zooms, Space plays.
    """

    _esm = Path(__file__).with_name("widgets.js")

    requests = traitlets.List(traitlets.Dict()).tag(sync=True)
    reply_to = traitlets.Int(0).tag(sync=True)
    tick = traitlets.Int(0).tag(sync=True)  # changes with every message, when nothing else does
    image = traitlets.Bytes(b"").tag(sync=True)  # JPEG of the frame, empty where the browser has it
    labels = traitlets.Bytes(b"").tag(sync=True)  # indexed PNG with transparency
    ribbon = traitlets.Bytes(b"").tag(
        sync=True
    )  # per frame: 0 nothing, 1 + confidence in percent, 102 unknown; +128 where stale
    marks = traitlets.List(traitlets.Int()).tag(sync=True)  # prompted frames
    view = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session | Any, prompts: Any = None, *, out: str | Path | None = None, **settings: Any):
        if not isinstance(session, Session):
            session = Session(session, prompts, **settings)
        elif prompts is not None or settings:
            raise InputError("a session as it is", "prompts or settings beside it", "give these to Session(…)")
        self.session = session
        self.out = Path("runs", session.clip.name) if out is None else Path(out)
        self.frame, self._image_of = 0, -1
        self._active = min(session.prompts.objects, default=1)
        self._said, self._error = "", ""
        self._done = 0  # the last request that was carried out
        self._follows = False
        self._next = 0.0  # when the next message about a propagation may be sent
        self._jpegs: OrderedDict[int, bytes] = OrderedDict()
        self._context = contextvars.copy_context()
        self._lock = threading.RLock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="vosnb-export")
        super().__init__()
        self._go(min(session.prompts, default=0))
        self._show()
        self.observe(self._asked, "requests")
        session.listeners.append(self._changed)
        session.prepare()

    def close(self) -> None:
        """Takes the editor off the page; the session goes on."""
        session = getattr(self, "session", None)  # none, where making it was refused
        if session is not None and self._changed in session.listeners:
            session.listeners.remove(self._changed)
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """With a picture for where there is no kernel: on a web page, in an export."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data:
            labels = self.session.masks_at(self.frame)
            picture = self.session.clip[self.frame]
            data["image/png"] = png(picture if labels is None else overlay(picture, labels, self.session.colors))
        return bundle

    # -- from the browser ----------------------------------------------------------------------------------------------

    def _asked(self, change: Mapping[str, Any]) -> None:
        self._context = contextvars.copy_context()
        looks = [request.get("seq", 0) for request in change["new"] if request.get("kind") == "look"]
        for request in change["new"]:
            with self._lock:
                number = int(request.get("seq", 0))
                if number <= self._done or (number in looks and number < looks[-1]):  # scrubbed on already
                    continue
                self._done = number
                self._error = ""
                try:
                    later = self._carry_out(request)
                except Exception as error:
                    self._error, later = _words(error), None
            if later is None:
                self._show(number)
            else:
                later.add_done_callback(lambda future, number=number: self._answer(number, future))

    def _answer(self, number: int, future: Future[Any]) -> None:
        if (error := future.exception()) is not None:
            self._error = _words(error)
        self._push(number)

    def _carry_out(self, request: Mapping[str, Any]) -> Future[Any] | None:
        """A Future where the answer has to wait for the worker."""
        kind = request.get("kind")
        actions: dict[str, Callable[[Mapping[str, Any]], Future[Any] | None]] = {
            "look": self._look, "point": self._point, "box": self._box, "active": self._choose, "describe": self._describe,
            "remove": lambda r: self.session.remove(r["frame"], r["obj"]),
            "clear": lambda r: self.session.clear(r.get("frame")),
            "delete": lambda r: self.session.delete(r["obj"]),
            "undo": lambda r: self.session.undo(),
            "redo": lambda r: self.session.redo(),
            "propagate": self._propagate,
            "stop": lambda r: self.session.stop(),
            "export": self._export,
        }  # fmt: skip
        if kind not in actions:
            raise InputError("a request among " + ", ".join(actions), repr(kind), "reload the page, and restart the kernel")
        if kind not in ("look", "propagate"):
            self._follows = False
        return actions[kind](request)

    def _look(self, request: Mapping[str, Any]) -> None:
        self._follows = False
        self._go(int(request["frame"]), known=bool(request.get("have")))

    def _point(self, request: Mapping[str, Any]) -> Future[Any]:
        self._active = request["obj"]
        return self.session.add_point(request["frame"], request["obj"], request["x"], request["y"], request["label"])

    def _box(self, request: Mapping[str, Any]) -> Future[Any]:
        self._active = request["obj"]
        return self.session.set_box(request["frame"], request["obj"], Box(*request["xyxy"]))

    def _choose(self, request: Mapping[str, Any]) -> None:
        self._active = self.session.new_object() if request.get("obj") is None else int(request["obj"])
        if self._active not in self.session.prompts.objects:
            self.session.describe(self._active)

    def _describe(self, request: Mapping[str, Any]) -> None:
        self.session.describe(request["obj"], request.get("name"), request.get("color"))

    def _propagate(self, request: Mapping[str, Any]) -> None:
        self._follows = True
        self.session.propagate(request["direction"]).add_done_callback(lambda future: self._ended(future))

    def _ended(self, future: Future[Any]) -> None:
        self._follows = False
        self._push()

    def _export(self, request: Mapping[str, Any]) -> None:
        what = request["what"]
        if what not in EXPORTS:
            raise InputError("an export among " + ", ".join(EXPORTS), repr(what), "choose one of these")
        if not self.session.frames:
            raise InputError("masks to export", "none yet", "click on an object, and propagate")
        self._said = f"writing {what} …"
        self._writer.submit(self._write, what)

    def _write(self, what: str) -> None:
        try:
            self._said = f"wrote {EXPORTS[what](self.session, self.out)}"
        except Exception as error:
            self._said, self._error = "", _words(error)
        self._push()

    # -- to the browser ------------------------------------------------------------------------------------------------

    def _changed(self, frame: int | None) -> None:
        """The session's news, on its worker: at most ten messages a second, the last one in any case (when it rests)."""
        working = self.session.status.working
        if frame is None and not working:
            self._push()
        elif working and time.monotonic() >= self._next:
            if self._follows and frame is not None:
                self._go(frame)
            begun = time.monotonic()
            self._push()
            self._next = time.monotonic() + max(PACE, 9 * (time.monotonic() - begun))  # a tenth of the time at most

    def _push(self, number: int | None = None) -> None:
        """`_show` from a thread of our own, as if by the last callback: then Jupyter goes on bringing requests while a cell runs (it sends
        them to the subshell that published last)."""
        self._context.copy().run(self._show, number)

    def _show(self, number: int | None = None) -> None:
        """One message with all that changed. `number`: of the request that is answered."""
        with self._lock:
            session, status = self.session, self.session.status
            with self.hold_sync():
                self.image = b"" if self._image_of < 0 else self._jpeg(self._image_of)
                self.labels = self._labels_png()
                self.ribbon, self.marks = self._ribbon(), list(session.prompts)
                self.view = self._view()
                self.status = {
                    "working": status.working, "direction": status.direction, "done": status.done, "total": status.total,
                    "error": self._error or status.error, "said": self._said, "exports": list(EXPORTS),
                }  # fmt: skip
                self.reply_to = max(self.reply_to, number or 0)
                self.tick += 1

    def _view(self) -> dict[str, Any]:
        session, clip = self.session, self.session.clip
        known = session.prompts.objects  # before the colours: another thread may add an object, or forget one
        colors = session.colors
        objects = [
            {"id": obj, "name": about.get("name", f"object {obj}"), "color": colors[obj]}
            for obj, about in known.items()
            if obj in colors
        ]
        return {
            "frame": self.frame, "image": self._image_of, "frames": len(clip), "width": clip.width, "height": clip.height, "fps": clip.fps,
            "active": self._active, "objects": objects, "undo": session.can_undo, "redo": session.can_redo,
            "prompts": {str(t): [_as_drawn(obj, p) for obj, p in given.items()] for t, given in session.prompts.items()},
        }  # fmt: skip

    def _go(self, frame: int, known: bool = False) -> None:
        """Shows another frame; `known`: the browser has its picture already."""
        with self._lock:
            self.frame = max(0, min(frame, len(self.session.clip) - 1))
            self._image_of = -1 if known else self.frame

    def _jpeg(self, frame: int) -> bytes:
        if frame not in self._jpegs:
            picture = cv2.cvtColor(self.session.clip[frame], cv2.COLOR_RGB2BGR)
            if (size := self._size) != picture.shape[1::-1]:
                picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            self._jpegs[frame] = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()
            if len(self._jpegs) > JPEGS:
                self._jpegs.popitem(last=False)
        return self._jpegs[frame]

    @property
    def _size(self) -> tuple[int, int]:
        """(width, height) as shown."""
        width, height = self.session.clip.width, self.session.clip.height
        less = min(1.0, SIDE / max(width, height))
        return max(1, round(width * less)), max(1, round(height * less))

    def _labels_png(self) -> bytes:
        """The frame's label map as an indexed PNG to lay over it."""
        labels = self.session.masks_at(self.frame)
        if labels is None or not labels.any():
            return b""
        return layer(cv2.resize(labels, self._size, interpolation=cv2.INTER_NEAREST), self.session.colors)

    def _ribbon(self) -> bytes:
        session = self.session
        ribbon = bytearray(len(session.clip))
        for t in session.frames:
            sure = session.confidence(t)
            ribbon[t] = (UNKNOWN if sure is None else round(100 * min(sure, 1))) + 1 + 128 * session.stale(t)
        return bytes(ribbon)


def _as_drawn(obj: int, prompt: Prompt) -> dict[str, Any]:
    points = [[p.x, p.y, p.label] for p in prompt.points]
    return {"obj": obj, "points": points, "box": prompt.box and list(prompt.box.xyxy), "mask": prompt.mask is not None}


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _write(kind: str, session: Session, out: Path) -> Path:
    return export(session.masks, session.clip, out, kind, overwrite=True, show_progress=False)[kind]


EXPORTS: dict[str, Callable[[Session, Path], Path]] = {
    **{kind: partial(_write, kind) for kind in FORMATS},
    "session": lambda session, out: session.save(out / "session", overwrite=True),
}
