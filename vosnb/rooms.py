"""The visitors of the web page: each one's film, session and files, apart from all others'. What is drawn and clicked is in `app`.

Models of all visitors take turns, frame by frame, so that a click does not wait for another visitor's film.
"""

from __future__ import annotations

import base64
import contextlib
import re
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Clip
from .errors import InputError
from .export import export
from .files import replacing
from .paint import brighter, layer, with_colors
from .prompts import Box, Prompt
from .session import Session
from .strategies import Result, Strategy, Tracker, get

__all__ = ["OTHERS", "STRATEGIES", "SUFFIXES", "Limits", "Room", "Rooms"]

STRATEGIES = {"SAM 2": "sam2", "SAM 2, several pathways": "sam2long", "SAM, frame to frame": "sam", "optical flow": "flow"}
OTHERS = {  # formats that are made when asked for
    "PNG per object": "png-per-object", "YouTube-VIS (JSON)": "youtube-vis", "WebM with alpha": "webm", "cut-outs (PNG)": "cutout",
    "measurements (CSV)": "csv",
}  # fmt: skip
CELLS = 400  # of the ribbon under the film
SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".3gp", ".ts", ".mts", ".gif")


@dataclass(frozen=True)
class Limits:
    """What is taken in: megabytes of an upload, frames of a film, pixels of its longer side; visitors at a time, and the minutes after
    which one who does nothing has left."""

    megabytes: int = 500
    frames: int = 3000
    side: int = 1920
    visitors: int = 8
    minutes: float = 60

    def __post_init__(self) -> None:
        if wrong := {f.name: getattr(self, f.name) for f in fields(self) if not getattr(self, f.name) > 0}:
            raise InputError("limits above 0", wrong, "correct them")

    def check(self, clip: Clip) -> None:
        """`InputError` where the film is longer or larger."""
        if max(clip.width, clip.height) > self.side:
            got = f"one of {clip.width}×{clip.height}"
            raise InputError(f"a film of at most {self.side} pixels along its longer side", got, "scale it down first")
        if len(clip) > self.frames:
            got = f"one of {len(clip)} ({len(clip) / clip.fps:.0f} s)"
            raise InputError(
                f"a film of at most {self.frames} frames", got, "cut out what matters: vosnb clip FILM --start --end"
            )


# -- models take turns ---------------------------------------------------------------------------------------------------


class Turns:
    """A lock that serves in the order of asking: `with turns: …`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = self._served = 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._asked = self._asked, self._asked + 1
            self._changed.wait_for(lambda: self._served == mine)

    def __exit__(self, *error: Any) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()


@dataclass(frozen=True)
class _InTurn:
    """A strategy whose trackers wait for their turn before each frame."""

    strategy: Strategy
    turns: Turns

    def tracker(self, shape: tuple[int, int], frames: int | None) -> _TrackerInTurn:
        with self.turns:
            return _TrackerInTurn(self.strategy.tracker(shape, frames), self.turns)


class _TrackerInTurn:
    def __init__(self, tracker: Tracker, turns: Turns):
        self._tracker, self._turns = tracker, turns

    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> Iterable[Result]:
        with self._turns:
            return list(self._tracker.step(image, prompts))

    def finish(self) -> Iterable[Result]:
        with self._turns:
            return list(self._tracker.finish())

    def fork(self) -> _TrackerInTurn:
        return _TrackerInTurn(self._tracker.fork(), self._turns)

    @property
    def model(self) -> Any:
        """Where a session puts one that remembers what it has seen."""
        return getattr(self._tracker, "model", None)

    @model.setter
    def model(self, model: Any) -> None:
        self._tracker.model = model


# -- visitors --------------------------------------------------------------------------------------------------------------


class Room:
    """A visitor's film and session; `folder` is the visitor's alone and goes with the room."""

    def __init__(self, clip: Clip, folder: Path, strategy: Strategy):
        self.clip, self.folder = clip, folder
        self.number = secrets.randbits(48) + 1  # tells the page that this is another film
        self.session = Session(clip, by=strategy)
        self.touched = time.monotonic()
        self.closed = False
        self.following = self.cancelled = 0.0  # the numbers of the page's requests to follow: at work, taken back
        self.making = False  # files
        self.made = 0  # how many sets of files
        self.changed = False  # since the last ones
        self.newest: int | None = None  # the frame whose masks came last
        self.session.listeners.append(self._heard)

    def prepare(self, strategy: Strategy) -> None:
        """Makes the first click and the first look at a late frame quick: the model is loaded, and a film with few key frames is copied
        into one with many. On a thread of its own: what is wrong is said when it matters."""
        with contextlib.suppress(Exception):
            strategy.tracker((self.clip.height, self.clip.width), len(self.clip))
        with contextlib.suppress(Exception):
            if not self.closed:
                self.clip[len(self.clip) - 1]
        if self.closed:
            self.clip.forget()

    def use(self, strategy: Strategy) -> None:
        """The same prompts with another strategy; masks that were found are dropped."""
        old, self.session = self.session, Session(self.clip, self.session.prompts, by=strategy)
        self.session.listeners.append(self._heard)
        old.close()
        self.session.change(self.session.prompts).result()

    def _heard(self, frame: int | None) -> None:
        if frame is not None:
            self.newest, self.changed = frame, True

    def act(self, asked: Mapping[str, Any]) -> None:
        """What the page says was done, and waits until the frame shows it. `InputError` where it does not fit."""
        session, frame = self.session, asked.get("frame")
        try:
            match asked.get("do"):
                case "point":
                    future = session.add_point(frame, asked["obj"], asked["x"], asked["y"], asked["label"])
                case "box":
                    future = session.set_box(frame, asked["obj"], Box(*asked["xyxy"]))
                case "clear":
                    future = session.clear(frame)
                case "delete":
                    future = session.delete(asked["obj"])
                case "undo":
                    future = session.undo()
                case "redo":
                    future = session.redo()
                case "describe":
                    name = asked.get("name")
                    future = session.describe(asked["obj"], None if name is None else str(name)[:60], asked.get("color"))
                case other:
                    raise InputError("something that can be done", repr(other), "reload the page")
        except (KeyError, TypeError) as error:
            raise InputError("a whole message from the page", f"one where {error!r} went wrong", "reload the page") from None
        if future is not None:
            future.result()

    def follow(self, direction: str, number: float) -> bool:
        """Propagates to the end, or until `stop`; whether there is somebody to have it: not where it was taken back while it waited,
        nor where the visitor has left meanwhile."""
        if number <= self.cancelled:
            return False
        self.following = number
        try:
            future = self.session.propagate(direction)
            if number <= self.cancelled:
                self.session.stop()
            future.result()
        finally:
            self.following = 0.0
        return not self.closed

    def stop(self, number: float) -> None:
        self.cancelled = max(number, self.cancelled)
        self.session.stop()

    def files(self) -> dict[str, Path]:
        """The masks as a zip of palette PNGs, the film with them, COCO JSON, and the prompts; named after the film."""
        folder, name = self._new_folder(), _safe(self.clip.name)
        self.making, self.changed = True, False
        try:
            found = self._export(("png", "video", "coco"), folder / "all")
            return {
                "masks": _zipped(folder / f"{name}_masks.zip", found["png"], "masks"),
                "video": found["video"].rename(folder / f"{name}_overlay.mp4"),
                "coco": found["coco"].rename(folder / f"{name}_coco.json"),
                "prompts": self.session.prompts.save(folder / f"{name}_prompts.json"),
            }
        finally:
            self.making = False

    def others(self, formats: Iterable[str]) -> Path:
        """A zip of more formats."""
        folder = self._new_folder()
        self._export(list(formats), folder / "all")
        return _zipped(folder / f"{_safe(self.clip.name)}_export.zip", folder / "all", "")

    def _export(self, formats: Iterable[str], folder: Path) -> dict[str, Path]:
        about = {obj: {"color": color} for obj, color in self.session.colors.items()}
        return export(self.session.masks, self.clip, folder, list(formats), objects=about, show_progress=False)

    def _new_folder(self) -> Path:
        """For the newest files; those before the last ones go."""
        self.made += 1
        shutil.rmtree(self.folder / f"files{self.made - 2}", ignore_errors=True)
        folder = self.folder / f"files{self.made}"
        folder.mkdir()
        return folder

    # -- what the page shows -----------------------------------------------------------------------------------------------

    def view(self, frame: int, number: int = 0, said: str = "") -> dict[str, Any]:
        """The state of things, for page.js; `said`: what went wrong."""
        session, status = self.session, self.session.status
        frame = min(max(frame, 0), len(self.clip) - 1)
        labels = session.masks_at(frame)
        given = session.prompts.get(frame, {})
        known = session.frames
        running = status.working or self.following > 0 or self.making
        error = (said or status.error).replace(str(self.clip.source), "the film")  # where files lie is nobody's business
        fresh = min(set(range(1, 256)) - set(session.prompts.objects), default=None)
        colors = {**session.colors, **_hex({fresh} - {None})}
        about = session.prompts.objects  # another thread may add an object meanwhile, or forget one
        objects = [{"id": o, "name": a.get("name", ""), "color": colors[o]} for o, a in about.items() if o in colors]
        marks = [{"obj": o, "kind": "box", "xyxy": p.box.xyxy} for o, p in given.items() if p.box is not None]
        marks += [{"obj": o, "kind": "point", "x": q.x, "y": q.y, "label": q.label} for o, p in given.items() for q in p.points]
        return {
            "open": self.number, "number": number, "name": self.clip.name,
            "frames": len(self.clip), "width": self.clip.width, "height": self.clip.height, "fps": self.clip.fps,
            "frame": frame, "overlay": "" if labels is None else _address("png", layer(labels, colors)), "marks": marks,
            "objects": objects,
            "fresh": fresh, "next": colors.get(fresh), "prompted": list(session.prompts), "known": self._ribbon(known),
            "running": running, "at": self.newest, "done": status.done, "total": status.total,
            "undo": session.can_undo, "redo": session.can_redo,
            "text": error or self._text(frame, labels, known, running), "error": bool(error),
        }  # fmt: skip

    def _text(self, frame: int, labels: np.ndarray | None, known: list[int], running: bool) -> str:
        session, status = self.session, self.session.status
        if running:
            if not status.working:
                return "making the film and the files …" if self.making else "beginning …"
            return f"following {status.direction}: {status.done} of {status.total} frames"
        if not session.prompts:
            return "Click on what you want to follow, or drag a box around it."
        missing = [o for o in session.prompts.get(frame, {}) if labels is None or not (labels == o).any()]
        if missing:
            names = ", ".join(session.prompts.objects[o].get("name") or f"object {o}" for o in missing)
            return f"Nothing was found for {names} here: click again, or drag a box."
        if len(known) <= len(session.prompts):
            return "Click again to correct it, begin another object, or follow it through the film."
        part = "all" if len(known) == len(self.clip) else f"{len(known)} of {len(self.clip)}"
        if self.made and self.changed:
            return f"Masks on {part} frames, changed since the files were made: follow again for new ones."
        return f"Masks on {part} frames. Where one is wrong, click: the frames after it are done again."

    def _ribbon(self, known: list[int]) -> list[int]:
        """For each part of the film how sure its least sure frame is, in percent, + 128 where that is of earlier clicks; −1 where no
        frame has masks."""
        count = min(CELLS, len(self.clip))
        cells = [-1] * count
        for t in known:
            sure = self.session.confidence(t)
            value = 100 if sure is None else round(100 * min(max(sure, 0), 1))
            cell, value = t * count // len(self.clip), value + 128 * self.session.stale(t)
            cells[cell] = value if cells[cell] < 0 else min(cells[cell], value)
        return cells

    def picture(self, frame: int) -> dict[str, Any]:
        """A frame as a JPEG in a data address."""
        import cv2

        frame = min(max(frame, 0), len(self.clip) - 1)
        _, data = cv2.imencode(".jpg", self.clip[frame][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        return {"open": self.number, "frame": frame, "url": _address("jpeg", data.tobytes())}

    def close(self) -> None:
        self.closed = True
        self.session.close()
        self.clip.forget()
        shutil.rmtree(self.folder, ignore_errors=True)


class Rooms:
    """Visitors by Gradio's session hash. `folder`: where their files lie, each visitor's in one of an unguessable name."""

    def __init__(self, folder: str | Path, limits: Limits | None = None):
        self.folder, self.limits, self.turns = Path(folder), limits or Limits(), Turns()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rooms: dict[str, Room] = {}
        self._opening: set[str] = set()  # visitors whose film is being read
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rooms)

    def find(self, visitor: str) -> Room:
        """`InputError` where the visitor has no film open, or was away for too long."""
        room = self._rooms.get(visitor)
        if room is None:
            raise InputError("an open film", "none, or a visit that has ended", "open the video again")
        room.touched = time.monotonic()
        return room

    def open(self, visitor: str, upload: str | Path, by: str = "sam2", **settings: Any) -> Room:
        """Takes the uploaded file over and makes a room for it, in place of the visitor's last one.

        `InputError`, with the last room left as it was: no film, one beyond the limits, no room left.
        """
        upload = Path(upload)
        try:
            return self._open(visitor, upload, self.strategy(by, settings))
        finally:
            with self._lock:
                self._opening.discard(visitor)
            with contextlib.suppress(OSError):  # whatever was refused; and the folder that Gradio made for it
                upload.unlink(missing_ok=True)
                upload.parent.rmdir()

    def _open(self, visitor: str, upload: Path, strategy: Strategy) -> Room:
        if not upload.is_file():
            raise InputError("a video", "an upload that is not there any more", "upload it again")
        if upload.stat().st_size > self.limits.megabytes * 1e6:
            got = f"{upload.stat().st_size / 1e6:.0f} MB"
            raise InputError(f"an upload of at most {self.limits.megabytes} MB", got, "cut it or compress it")
        with self._lock:
            self._sweep()
            if len({*self._rooms, *self._opening} - {visitor}) >= self.limits.visitors:
                raise InputError("a free place", f"{len(self._rooms)} visitors", "try again in a few minutes")
            self._opening.add(visitor)
        folder = self.folder / secrets.token_urlsafe(18)
        folder.mkdir()
        try:
            film = folder / f"{_safe(upload.stem)}{upload.suffix.lower()}"
            shutil.move(upload, film)
            clip = _film(film)
            self.limits.check(clip)
            room = Room(clip, folder, strategy)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        threading.Thread(target=room.prepare, args=(strategy,), name="vosnb-prepare", daemon=True).start()
        with self._lock:
            here = visitor in self._opening  # else the visitor has left meanwhile
            last = self._rooms.get(visitor) if here else room
            if here:
                self._rooms[visitor] = room
        if last is not None:
            last.close()
        return room

    def strategy(self, by: str, settings: Mapping[str, Any]) -> Strategy:
        """With those of the settings that it has."""
        if by not in STRATEGIES.values():
            raise InputError("a strategy among " + ", ".join(STRATEGIES.values()), repr(by), "choose one of these")
        known = {field.name for field in fields(get(by))}
        asked = {"heed": True, **settings}  # corrections are heeded, as in every session that is told a strategy's name
        return _InTurn(get(by, **{name: value for name, value in asked.items() if name in known}), self.turns)

    def leave(self, visitor: str) -> None:
        with self._lock:
            room = self._rooms.pop(visitor, None)
            self._opening.discard(visitor)
        if room is not None:
            room.close()

    def sweep(self) -> None:
        """Ends the visits of those who have done nothing for long."""
        with self._lock:
            self._sweep()

    def _sweep(self) -> None:
        now = time.monotonic()
        for visitor, room in list(self._rooms.items()):
            if now - room.touched > 60 * self.limits.minutes and not room.session.status.working:
                del self._rooms[visitor]
                room.close()

    def close(self) -> None:
        for visitor in list(self._rooms):
            self.leave(visitor)


def _film(path: Path) -> Clip:
    """The clip, without the server's paths in what went wrong."""
    if path.suffix not in SUFFIXES:
        raise InputError("a video: " + ", ".join(SUFFIXES), path.suffix or "a file without a suffix", "export it as .mp4")
    try:
        return Clip(path)
    except InputError as error:
        told = (part.replace(str(path), "this file") for part in (error.expected, str(error.got), error.do))
        raise InputError(*told) from None


def _safe(name: str) -> str:
    """A file's name as every system takes it."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "film"


def _address(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _hex(ids: Iterable[int]) -> dict[int, str]:
    palette = brighter(with_colors(None))
    return {obj: "#{:02x}{:02x}{:02x}".format(*palette[obj]) for obj in ids}


def _zipped(path: Path, folder: Path, inside: str) -> Path:
    """The files of `folder` as a zip, below the name `inside`. Pictures and films do not get smaller: they are only stored."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, Path(inside) / file.relative_to(folder))
    return path
