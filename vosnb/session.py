"""A sitting over one clip: what was said of it, the masks that follow, corrections, and its folder on disk. No widgets in here.

    session = Session(clip, by="sam2")
    labels = session.add_point(0, 1, 240, 60).result()     # frame 0, object 1, x, y → the frame's label map
    session.propagate().result()                           # all frames; session.stop() from elsewhere
    session.add_point(40, 1, 300, 80, label=0)             # a correction: frame 40 at once, then the frames after it
    session.save("runs/sitting"); Session.open("runs/sitting")

**Prompts are the truth**: `session.prompts` is a frozen `Prompts`, every change makes a new one, and what is shown follows from it:
`session.masks` is what `propagate(clip, session.prompts, session.by, direction=session.direction, **session.settings)` gives,
however one came there.

**One worker thread** does all the work of models, one frame after the other; every method here returns at once, from any thread. What
takes a while is a `Future`; its exception is also `status.error`. A change during a propagation is done between two of its
frames, and the propagation goes on with it. Reading (`masks_at`, `confidence`, `status`, `clip[t]`) never waits for the worker.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Clip
from .errors import InputError
from .files import missing, replacing
from .masks import Masks, write_labels, write_scores
from .models import keeping
from .paint import brighter, with_colors
from .prompts import Box, Point, Prompt, Prompts, check_id
from .propagate import DIRECTIONS, Propagation, divided, joined, mirrored
from .strategies import Result, Score, Strategy, get

__all__ = ["Session", "Status"]

FRAMES_KEPT = 8  # whose features are kept, so that a click is only a decoder pass
SCORES_EVERY = 2.0  # seconds between two writings of the table of scores, while frames come
PROMPTS, ABOUT, MASKS = "prompts.json", "session.json", "masks"  # in a session's folder
UNSAID = "an object made in Python"  # a setting that a file cannot hold
PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Status:
    """What the worker is doing. `done` of `total` frames of the work at hand, in `direction`; `error`: what last went wrong, "" if
    nothing has since."""

    working: bool = False
    direction: str = ""
    done: int = 0
    total: int = 0
    error: str = ""


@dataclass(frozen=True)
class Shown:
    """A frame's masks, packed as `Masks.pack` does."""

    packed: bytes
    scores: Mapping[int, Score]

    @classmethod
    def of(cls, result: Result) -> Shown:
        return cls(Masks.pack(result.labels), result.scores)


@dataclass
class Pass:
    """A run over the clip in one direction. Frames in here count along the run: a backward one's from the clip's end.

    `found`: what is shown of it; from frame `reported` on, that is of earlier prompts. `goal`: where to run to, exclusive; None: it
    rests. `begun`: where that began. `reached`: the last frame that an earlier sitting came to.
    """

    prompts: Prompts = field(default_factory=Prompts)
    run: Propagation | None = None
    found: dict[int, Shown] = field(default_factory=dict)
    goal: int | None = None
    begun: int = 0
    reached: int = -1

    @property
    def reported(self) -> int:
        return self.run.reported if self.run else 0


class Session:
    """`prompts`: `Prompts`, a mapping as `propagate` takes it, or the path of a prompts file: that is read if it is there, and
    written on every change. `by` and `settings` (`model=…`, `num_pathway=…`) choose the strategy as in `propagate`; the default is SAM 2
    with the model that `segment` takes by default, and here it heeds corrections (`heed`, see `strategies.sam2`). `session.settings`
    has all of them, so that `propagate(clip, session.prompts, session.by, direction=session.direction, **session.settings)` gives the
    same masks. `direction`: what `propagate()` does unless told otherwise. `states`: how many a pass keeps to go back to, evenly over
    the clip; a correction begins at the one before it, and each holds the memories of its objects (up to 8 MB an object at full size).

    `InputError`: a clip without a length, prompts that do not fit the clip, an unknown strategy or setting.
    """

    def __init__(
        self,
        clip: Any,
        prompts: Prompts | Mapping[int, Any] | str | Path | None = None,
        *,
        by: str | Strategy = "sam2",
        direction: str = "forward",
        states: int = 128,
        **settings: Any,
    ):
        self.clip = clip if isinstance(clip, Clip) else Clip(clip)
        if self.clip.length is None:
            raise InputError(
                "a clip of known length", "frames from an iterator", "save its frames first: clip.save_frames(folder)"
            )
        # Torch's threads are to sleep while they wait for each other, not to spin: where something else wants the processor, such as the
        # browser, spinning made a click 20 to 70 times slower. It is read when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self.by, self.strategy = by, get(by, **settings)
        if isinstance(by, str):
            first = getattr(self.strategy, "first", self.strategy)  # what is refined, or else all of it
            if hasattr(first, "heed"):
                settings = {"heed": True, **settings}
            if getattr(first, "model", "none") is None:  # decided once, and written down
                from .models import weights

                settings = {**settings, "model": weights.default()}
            self.strategy = get(by, **settings)
        self.settings = settings
        self._remembering = _Remembering(self.strategy)
        self.file = Path(prompts) if isinstance(prompts, (str, Path)) else None
        if self.file is not None:
            prompts = Prompts.load(self.file) if self.file.exists() else None
        self.prompts = self._checked(Prompts.of(prompts or {}))
        if not self.prompts.video:
            facts = {"name": self.clip.name, "width": self.clip.width, "height": self.clip.height}
            facts |= {"fps": self.clip.fps, "frames": len(self.clip)}
            self.prompts = Prompts(self.prompts.prompts, self.prompts.objects, facts)
        self.direction = _known(direction)
        self.folder: Path | None = None
        self._undo: list[Prompts] = []
        self._redo: list[Prompts] = []
        self._names, self._states = self.clip.names, states
        self._lock, self._disk = threading.RLock(), threading.RLock()  # where both, the disk's first
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vosnb-session")
        self._applied = Prompts()  # what the worker knows of
        self._asked, self._answered = 0, 0  # how often something changed, and how much of that the worker has taken in
        self._edits: deque[tuple[Future, int | None]] = deque()
        self._waiting: list[tuple[Future, Callable[[int, np.ndarray], Any] | None]] = []
        self._run: set[str] = set()  # the passes that were asked for
        self._passes: dict[str, Pass] = {}
        self._first_looks: dict[int, Shown] = {}  # of prompted frames that no pass has come to
        self._loaded: dict[int, Shown] = {}  # of a session that was opened, until a pass comes to them
        self._shown: dict[int, Shown] = {}
        self._scores_due = 0.0
        self._status = Status()
        self._failure: Exception | None = None
        self._closed = False
        self._doubtful: frozenset[int] = frozenset()  # frames that an earlier sitting left with masks of earlier prompts
        self.listeners: list[Callable[[int | None], Any]] = []
        """Called on the worker thread: with a frame whose masks changed, or with None when all that was asked for is done."""
        if self.prompts:
            self._edit(None)

    # -- reading: any thread, at once ---------------------------------------------------------------------------------

    def masks_at(self, frame: int) -> np.ndarray | None:
        """The frame's label map (H, W) uint8 as it is known now; None where nothing is."""
        shown = self._shown.get(self._frame(frame))
        return None if shown is None else Masks.unpack(shown.packed, self._shape)

    def scores(self, frame: int) -> Mapping[int, Score]:
        """{object: `Score`} of the frame; {} where nothing is known."""
        shown = self._shown.get(self._frame(frame))
        return {} if shown is None else shown.scores

    def confidence(self, frame: int) -> float | None:
        """0 … 1, the predicted IoU of the least sure of the objects that are visible; None where nothing is known or visible."""
        known = [s.iou for s in self.scores(frame).values() if s.iou == s.iou and not s.present <= 0]
        return min(known, default=None)

    def stale(self, frame: int) -> bool:
        """Whether the frame shows what came of earlier prompts: a correction before it stopped at the next prompted frame."""
        return (frame in self._doubtful and frame in self._loaded) or any(
            u in p.found and u >= p.reported for name, p in list(self._passes.items()) if (u := self._along(name, frame)) >= 0
        )

    @property
    def frames(self) -> list[int]:
        """The frames that have masks, ascending."""
        return sorted(self._shown)

    @property
    def masks(self) -> Masks:
        """Label maps (T, H, W) of the whole clip, empty where nothing is known; with scores, and the objects' names."""
        shown = dict(self._shown)
        nothing = Shown(Masks.pack(np.zeros(self._shape, np.uint8)), {})
        every = [shown.get(t, nothing) for t in range(len(self.clip))]
        packed, scores = [s.packed for s in every], [s.scores for s in every]
        return Masks(packed, self.clip.names, shape=self._shape, scores=scores, objects=self.prompts.objects)

    @property
    def status(self) -> Status:
        return self._status

    @property
    def colors(self) -> dict[int, str]:
        """{object: "#rrggbb"}: what was chosen, else that of the DAVIS palette, made brighter."""
        objects = self.prompts.objects  # once: another thread may change the prompts
        chosen = {obj: about["color"] for obj, about in objects.items() if "color" in about}
        palette, own = brighter(with_colors(None)), with_colors(chosen)
        return {obj: "#{:02x}{:02x}{:02x}".format(*(own if obj in chosen else palette)[obj]) for obj in objects}

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.clip.height, self.clip.width

    # -- prompts: each change gives a Future of the frame's label map ----------------------------------------------------

    def add_point(self, frame: int, obj: int, x: float, y: float, label: int = 1) -> Future[np.ndarray]:
        """A click: label 1 on the object, 0 on the background; pixels of the original frame. The same click again changes nothing."""
        old = self.prompts.get(frame, {}).get(obj)
        point = Point(x, y, label)
        if old is not None and point in old.points:
            return self._edit(frame)
        return self._say(frame, obj, Prompt((point,)) if old is None else replace(old, points=(*old.points, point)))

    def set_box(self, frame: int, obj: int, box: Box) -> Future[np.ndarray]:
        """A box around the object, in place of an earlier one on this frame."""
        old = self.prompts.get(frame, {}).get(obj)
        return self._say(frame, obj, Prompt(box=box) if old is None else replace(old, box=box))

    def set_mask(self, frame: int, obj: int, mask: np.ndarray) -> Future[np.ndarray]:
        """A mask (H, W) bool, in place of all that was said of the object on this frame."""
        return self._say(frame, obj, Prompt(mask=mask))

    def remove(self, frame: int, obj: int) -> Future[np.ndarray]:
        """Takes back what was said of the object on this frame."""
        return self.change(self.prompts.without(frame, obj), frame)

    def clear(self, frame: int | None = None) -> Future[np.ndarray]:
        """Takes back everything said on the frame, or, without one, everything. The objects keep their names."""
        kept = {t: given for t, given in self.prompts.items() if frame is not None and t != frame}
        return self.change(Prompts(kept, self.prompts.objects, self.prompts.video), frame)

    def delete(self, obj: int) -> Future[np.ndarray]:
        """Forgets an object: its prompts on all frames, its name and colour."""
        kept = {t: {o: p for o, p in given.items() if o != obj} for t, given in self.prompts.items()}
        objects = {o: about for o, about in self.prompts.objects.items() if o != obj}
        return self.change(Prompts(kept, objects, self.prompts.video), min(self._prompted(obj), default=None))

    def describe(self, obj: int, name: str | None = None, color: str | None = None) -> None:
        """Names an object, or gives it a colour ("#rrggbb"); a new id makes a new object. No masks change."""
        given = {k: v for k, v in (("name", name), ("color", color)) if v is not None}
        if color is not None:
            with_colors({obj: color})  # InputError unless it is one
        objects = {**self.prompts.objects, check_id(obj): {**self.prompts.objects.get(obj, {}), **given}}
        self.change(Prompts(self.prompts.prompts, objects, self.prompts.video))

    def new_object(self) -> int:
        """The lowest id that no object has; it becomes an object with its first prompt or `describe`."""
        free = [obj for obj in range(1, 256) if obj not in self.prompts.objects]
        if not free:
            raise InputError("at most 255 objects", "one more", "delete one first")
        return free[0]

    def undo(self) -> Future[np.ndarray] | None:
        """Takes back the last change; None where there is none."""
        return self._go(self._undo, self._redo)

    def redo(self) -> Future[np.ndarray] | None:
        return self._go(self._redo, self._undo)

    def change(self, prompts: Prompts | Mapping[int, Any], frame: int | None = None) -> Future[np.ndarray]:
        """Any change: `prompts` in place of those there are. The Future gives the label map of `frame` (None: of the first frame that
        changed), or of zeros where nothing is left on it."""
        prompts = self._checked(Prompts.of(prompts))
        with self._lock:
            if prompts == self.prompts:
                return self._edit(frame)
            self._undo.append(self.prompts)
            self._redo.clear()
            return self._put(prompts, frame)

    def _say(self, frame: int, obj: int, prompt: Prompt) -> Future[np.ndarray]:
        with self._lock:
            frame, given = self._frame(frame), self.prompts.with_prompt(frame, obj, prompt)
            earlier = self._passes.get("backward")
            begins = min(self._prompted(obj), default=frame)
            if len(self._run) == 2 and earlier and frame < begins and self._along("backward", frame) in earlier.found:
                # a correction of what was found backward: the object is still followed from where it was first shown
                about = {"begins": begins, **given.objects.get(obj, {})}
                given = Prompts(given.prompts, {**given.objects, obj: about}, given.video)
            return self.change(given, frame)

    def _prompted(self, obj: int) -> list[int]:
        return [t for t, given in self.prompts.items() if obj in given]

    def _go(self, source: list[Prompts], target: list[Prompts]) -> Future[np.ndarray] | None:
        with self._lock:
            if not source:
                return None
            target.append(self.prompts)
            return self._put(source.pop(), None)

    def _put(self, prompts: Prompts, frame: int | None) -> Future[np.ndarray]:
        if self._closed:  # before anything is written
            raise _ended()
        if frame is None:
            frame = min((t for t in {*prompts, *self.prompts} if prompts.get(t) != self.prompts.get(t)), default=None)
        for path in (self.file, self.folder and self.folder / PROMPTS):
            if path is not None:
                prompts.save(path)
        self.prompts = prompts
        return self._edit(frame)

    def _edit(self, frame: int | None) -> Future[np.ndarray]:
        future: Future[np.ndarray] = _future()
        with self._lock:
            self._edits.append((future, frame))
            self._asked += 1
        self._worker.submit(self._work)
        return future

    def _checked(self, prompts: Prompts) -> Prompts:
        if prompts:
            prompts.check(len(self.clip), *self._shape)
        size = prompts.video.get("width", self.clip.width), prompts.video.get("height", self.clip.height)
        if size != (self.clip.width, self.clip.height):
            raise InputError(
                f"prompts of a clip of {self.clip.width}×{self.clip.height}", f"of {size[0]}×{size[1]}", "choose the other file"
            )
        return prompts

    def _frame(self, frame: int) -> int:
        if not 0 <= frame < len(self.clip):
            raise InputError(f"a frame from 0 to {len(self.clip) - 1}", frame, "frames count from 0")
        return int(frame)

    # -- propagation -----------------------------------------------------------------------------------------------------

    def propagate(
        self, direction: str | None = None, on_frame: Callable[[int, np.ndarray], Any] | None = None
    ) -> Future[Masks]:
        """Runs to the end of the clip, in `direction` (by default the session's), from where it was left or corrected.

        The Future gives `masks` when it is done or stopped. `on_frame(frame, labels)` is called on the worker thread. Forward after
        backward, or the other way round, makes both. `InputError` without a prompt.
        """
        wanted = _known(direction or self.direction)
        self._checked(self.prompts)
        if not self.prompts:
            raise InputError("at least one prompted object", "no prompt at all", "click on an object first")
        future: Future[Masks] = _future()
        with self._lock:
            if self._closed:
                raise _ended()
            asked = PASSES if wanted == "both" else (wanted,)
            self._run |= {*asked}
            self.direction = "both" if len(self._run) == 2 else wanted
            if self.folder is not None:
                self._write_about()
            for name in asked:
                p = self._passes.setdefault(name, Pass())
                p.goal, p.begun = len(self.clip), p.reported
            self._waiting.append((future, on_frame))
            self._asked += 1
        self._worker.submit(self._work)
        return future

    def prepare(self) -> None:
        """Loads the model on the worker, so that the first click does not wait for that; what is wrong with it shows in `status`."""

        def load() -> None:
            try:
                self._remembering.tracker(self._shape, len(self.clip))
            except Exception as error:
                self._end([], error)

        self._worker.submit(load)

    def stop(self) -> None:
        """Ends the propagation after the frame at hand. Masks so far are kept; `propagate` goes on from there."""
        with self._lock:
            for p in self._passes.values():
                p.goal = None

    def wait(self) -> Masks:
        """The masks, when the worker has nothing to do any more; raises what went wrong. Not from a listener."""
        self._worker.submit(lambda: None).result()
        if self._failure is not None:
            raise self._failure
        return self.masks

    def close(self) -> None:
        """Stops, and ends the worker thread. What was shown can still be read."""
        with self._lock:
            self._closed = True
            self.stop()
        self._worker.shutdown(wait=True, cancel_futures=True)
        left = [*(future for future, _ in self._waiting), *(future for future, _ in self._edits)]
        self._waiting, self._edits = [], deque()
        for future in left:  # asked for so late that the worker never came to it
            future.set_exception(_ended())

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    # -- on the worker thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """All there is to do: changes first, then frames, until no pass has a goal."""
        if self._asked == self._answered:  # an earlier call did it
            return
        try:
            while True:
                self._apply()
                with self._lock:
                    if self._asked != self._answered:
                        continue
                    going = [(name, p) for name, p in self._passes.items() if p.goal is not None]
                    if not going:
                        waiting, self._waiting = self._waiting, []
                        break
                self._advance(*going[0])
            self._end(waiting, None)
        except Exception as error:
            with self._lock:
                for p in self._passes.values():  # they may be half-way through a frame
                    p.goal, p.run = None, None
                failed = [*self._waiting, *((future, None) for future, _ in self._edits)]
                self._waiting = []
                self._edits.clear()
            self._end(failed, error)

    def _end(self, waiting: list[tuple[Future, Any]], error: Exception | None) -> None:
        try:
            with self._disk:
                self._write_scores(0.0)
        except Exception as failed:  # such as a full disk: who waits is told, whatever else happens
            error = error or failed
        said = "" if error is None else str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        self._status, self._failure = Status(error=said), error
        for future, _ in waiting:
            if error is None:
                future.set_result(self.masks)
            else:
                future.set_exception(error)
        self._tell(None)

    def _apply(self) -> None:
        """Takes in the prompts as they are now: every pass goes back to where they changed, and those frames are looked at anew."""
        with self._lock:
            edits, prompts, direction, self._answered = list(self._edits), self.prompts, self.direction, self._asked
        changed = {t for t in {*prompts, *self._applied} if prompts.get(t) != self._applied.get(t)}
        own = divided(prompts, direction) if prompts else {}
        for name, p in list(self._passes.items()):
            changed |= self._revise(name, p, own.get(name, Prompts()))
        if not prompts:
            changed |= set(self._loaded)
            self._loaded = {}
        self._applied = prompts
        for frame in sorted(changed):
            self._look(frame, prompts)
        with self._lock:
            for _ in edits:
                self._edits.popleft()
            going = [(name, p) for name, p in self._passes.items() if p.goal is not None]
            if going:
                name, p = going[0]
                self._status = Status(True, name, 0, p.goal - p.begun)
            elif edits:
                self._status = Status()
        for future, frame in edits:
            labels = None if frame is None else self.masks_at(frame)
            future.set_result(np.zeros(self._shape, np.uint8) if labels is None else labels)

    def _revise(self, name: str, p: Pass, prompts: Prompts) -> set[int]:
        """Gives a pass its prompts, and a goal where it had passed them; returns the clip's frames that it has nothing to say of now."""
        end = len(self.clip)
        if name == "backward":
            prompts = mirrored(prompts, end)
        old, p.prompts = p.prompts, prompts
        changed = sorted(u for u in {*prompts, *old} if prompts.get(u) != old.get(u))
        if not changed:
            return set()
        if p.run and prompts:
            p.run.revise(prompts)
        elif p.run:
            p.run = None
        if prompts and p.goal is None and changed[0] <= max(p.found, default=p.reached):
            objects = {o for u in changed for o in {**prompts.get(u, {}), **old.get(u, {})}}
            p.goal = min((u for u in prompts if u > changed[-1] and objects & set(prompts[u])), default=end)
        if not prompts:
            p.goal = None
        p.begun = p.reported
        gone = [u for u in p.found if u < min(prompts, default=end)]
        for u in gone:
            del p.found[u]
        return {self._along(name, u) for u in gone}

    def _look(self, frame: int, prompts: Prompts) -> None:
        """A frame whose prompts changed, at once: as a pass finds it that can go back to it, else by its own prompts alone."""
        self._first_looks.pop(frame, None)
        looked = False
        for name, p in list(self._passes.items()):
            u = self._along(name, frame)
            if p.run and (u in p.prompts or u in p.found) and (result := p.run.look(u)) is not None:
                p.found[u], looked = Shown.of(result), True
        if not looked and (found := self._first_look(frame, prompts.get(frame, {}))) is not None:
            self._first_looks[frame] = found
        self._show(frame)

    def _first_look(self, frame: int, given: Mapping[int, Prompt]) -> Shown | None:
        """By the frame's own prompts; beside masks that were loaded from disk, these are the earlier guess."""
        known = self._loaded.get(frame)
        if known is not None and given:
            labels = Masks.unpack(known.packed, self._shape)
            masks = {obj: labels == obj for obj in known.scores or self.prompts.ids}
            shown = {obj: Prompt(mask=mask) for obj, mask in masks.items() if mask.any()}
            given = {
                **shown,
                **{o: replace(p, mask=shown[o].mask) if p.mask is None and o in shown else p for o, p in given.items()},
            }
        if not given:
            return None
        tracker = self._remembering.tracker(self._shape, len(self.clip))
        return Shown.of([*tracker.step(self.clip[frame], given), *tracker.finish()][-1])

    def _advance(self, name: str, p: Pass) -> None:
        """Frames of a pass, until its goal, a stop, or a change of prompts."""
        if p.run is None:
            clip = self.clip if name == "forward" else self.clip[::-1]
            p.run = Propagation(clip, p.prompts, self._remembering, keep=1, most=self._states)
            p.begun = p.run.first
        frames = iter(p.run)
        try:
            for u, result in frames:
                frame = self._along(name, u)
                p.found[u] = Shown.of(result)
                self._loaded.pop(frame, None)
                with self._lock:
                    goal, waiting = p.goal, list(self._waiting)
                    if goal is not None and u + 1 >= goal:
                        p.goal = None
                self._status = Status(True, name, u + 1 - p.begun, (goal or u + 1) - p.begun)
                self._show(frame)
                for _, on_frame in waiting:
                    if on_frame is not None:
                        on_frame(frame, self.masks_at(frame))
                if p.goal is None or self._asked != self._answered:
                    return
            p.goal = None
        finally:
            frames.close()

    def _show(self, frame: int) -> None:
        """What is known of the frame, from whichever pass, is shown; and first written, where the session has a folder."""
        found = {name: p.found[u] for name, p in list(self._passes.items()) if (u := self._along(name, frame)) in p.found}
        known = found.get("forward") or found.get("backward")
        if len(found) == 2:
            own = self._passes["forward"].prompts
            begun = {obj for t in own if t <= frame for obj in own[t]}
            parts = [Masks.unpack(found[name].packed, self._shape) for name in PASSES]
            earlier = {o: s for o, s in found["backward"].scores.items() if o not in begun}
            known = Shown(Masks.pack(joined(*parts, begun)), {**earlier, **found["forward"].scores})
        known = known or self._first_looks.get(frame) or self._loaded.get(frame)
        with self._disk:
            if self.folder is not None:
                self._write(frame, known)
            if known is None:
                self._shown.pop(frame, None)
            else:
                self._shown[frame] = known
            self._write_scores(self._scores_due)
        self._tell(frame)

    def _along(self, name: str, frame: int) -> int:
        """The clip's frame as a pass counts it, and the other way round."""
        return frame if name == "forward" else len(self.clip) - 1 - frame

    def _tell(self, frame: int | None) -> None:
        for listener in list(self.listeners):
            listener(frame)

    # -- on disk -------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Keeps the session in a folder, from now on: prompts.json, masks/NAME.png (indexed) with scores.csv beside them, and
        session.json: settings, versions, hashes of the checkpoint and the clip. Every later change and every later frame is written
        before it is shown, so a kernel that dies loses nothing.

        `InputError` where the folder holds something else, or, without `overwrite`, another session.
        """
        folder = Path(folder)
        held = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
        strange = held - {PROMPTS, ABOUT, MASKS}
        own = self.folder is not None and folder.resolve() == self.folder.resolve()
        if strange or (held and not own and not overwrite):
            got = ", ".join(sorted(strange or held))
            raise InputError(f"{folder} to be new, or a session's own", got, "choose another folder, or say overwrite=True")
        about = self._about()
        with self._disk:
            if not own:  # before the prompts: no others' masks may ever lie beside them
                for path in (folder / MASKS).glob("*"):
                    path.unlink()
            with self._lock:
                self.folder = folder
                self._write_about(about)
                self.prompts.save(folder / PROMPTS)
            names = self.clip.names
            for frame, shown in list(self._shown.items()):
                self._write(frame, shown)
            for path in (folder / MASKS).glob("*.png"):
                if path.stem not in {names[frame] for frame in self._shown}:
                    path.unlink()
            self._write_scores(0.0)
        return folder

    @classmethod
    def open(cls, folder: str | Path, clip: Any = None, **settings: Any) -> Session:
        """The session that `save` keeps in `folder`, as it was: prompts, masks, names; further changes go into the same folder.

        `clip`: where it has moved, or was an array. `settings` replace those that were saved, such as `model`, `device`.
        `InputError`: no session there, the clip is not there or is another one (by its sha256).
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            kept, by, passes, masks_of = about["clip"], about["by"], {*about["passes"]}, about["masks of"]
            if not (passes <= {*PASSES} and about["direction"] in DIRECTIONS and {*masks_of} == {"prompts", "reported"}):
                raise ValueError(f"{sorted(passes)}, {about['direction']}")
            if missed := {"source", "frames", "sha256", "length", "source_fps"} - {*kept} or {"settings"} - {*about}:
                raise KeyError(*missed)
        except FileNotFoundError:
            raise InputError("a session's folder", f"{folder}, which has no {ABOUT}", missing(folder)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"a session in {folder / ABOUT}", f"something else ({error!r})", "choose another folder") from None
        if clip is None:
            if not Path(kept["source"]).exists():
                raise InputError("the session's clip", f"no {kept['source']}", "give it: Session.open(folder, clip)")
            start, stop, step = kept["frames"]
            clip = Clip(kept["source"], fps=kept["source_fps"])[slice(start, None if stop < 0 else stop, step)]
        clip = clip if isinstance(clip, Clip) else Clip(clip)
        if (clip.sha256, len(clip)) != (kept["sha256"], kept["length"]):
            raise InputError(
                f"the session's clip, {kept['length']} frames, sha256 {kept['sha256'][:12]}…",
                f"{len(clip)} frames, {(clip.sha256 or 'none')[:12]}…", "give the clip that it was made on",
            )  # fmt: skip
        unsaid = [k for k, v in about["settings"].items() if v == UNSAID and k not in settings]
        if by == UNSAID or unsaid:
            raise InputError(
                "a strategy and a model that can be named", "one that was made in Python",
                "make a new session: Session(clip, folder/'prompts.json', by=…)",
            )  # fmt: skip
        session = cls(clip, by=by, direction=about["direction"], **{**about["settings"], **settings})
        session._restore(folder, passes, masks_of)
        if settings:  # what is said of the masks from now on
            session._write_about(session._about())
        return session

    def _restore(self, folder: Path, passes: set[str], masks_of: Mapping[str, Any]) -> None:
        prompts = self._checked(Prompts.load(folder / PROMPTS))
        old, ends = Prompts.from_json(masks_of["prompts"]), dict(masks_of["reported"])
        changed = [t for t in {*prompts, *old} if prompts.get(t) != old.get(t)]
        for name in passes:  # what follows a prompt that changed, and what the pass had not come to since
            since = min((self._along(name, t) for t in changed), default=len(self.clip))
            since = min(since, int(ends.get(name, 0)))
            self._doubtful |= {self._along(name, u) for u in range(since, len(self.clip))}
        names = self.clip.names
        there = [t for t, name in enumerate(names) if (folder / MASKS / f"{name}.png").is_file()]
        if there:
            masks = Masks(folder / MASKS, [names[t] for t in there], shape=self._shape)
            scores = masks.scores or [{}] * len(there)
            self._loaded = {t: Shown(Masks.pack(labels), s) for t, labels, s in zip(there, masks, scores, strict=True)}
        self.folder, self.prompts, self._applied, self._run = folder, prompts, prompts, passes
        self._shown = dict(self._loaded)
        own = divided(prompts, self.direction) if prompts else {}
        for name in sorted(passes, reverse=True):
            given = own.get(name, Prompts())
            reached = max((self._along(name, t) for t in there), default=-1)
            self._passes[name] = Pass(given if name == "forward" else mirrored(given, len(self.clip)), reached=reached)

    def _about(self) -> dict[str, Any]:
        from .batch import _versions
        from .provenance import checkpoint

        clip, model = self.clip, getattr(self.strategy, "model", None)
        settings = {k: v if isinstance(v, (str, int, float, bool, type(None))) else UNSAID for k, v in self.settings.items()}
        return {
            "version": 1,
            "by": self.by if isinstance(self.by, str) else UNSAID,
            "settings": settings,
            "clip": {
                "source": str(Path(clip.source).resolve()) if isinstance(clip.source, Path) else clip.source,
                "frames": [clip.taken.start, clip.taken.stop, clip.taken.step],
                "length": len(clip), "width": clip.width, "height": clip.height, "source_fps": clip.fps * abs(clip.taken.step),
                "sha256": clip.sha256,
            },
            "checkpoint": checkpoint(model) or getattr(model, "name", None),
            "versions": _versions(),
        }  # fmt: skip

    def _write_about(self, about: Mapping[str, Any] | None = None) -> None:
        if about is None:
            about = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        masks_of = {
            "prompts": self._applied.to_json(),
            "reported": {name: p.reported for name, p in list(self._passes.items())},
        }
        about = {**about, "direction": self.direction, "passes": sorted(self._run), "masks of": masks_of}
        with replacing(self.folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _write(self, frame: int, shown: Shown | None) -> None:
        path = self.folder / MASKS / f"{self._names[frame]}.png"
        if shown is None:
            path.unlink(missing_ok=True)
        else:
            write_labels(path, Masks.unpack(shown.packed, self._shape))

    def _write_scores(self, due: float) -> None:
        if self.folder is None or time.monotonic() < due:
            return
        frames = sorted(self._shown)
        if any(self._shown[t].scores for t in frames):
            write_scores(self.folder / MASKS, [self._names[t] for t in frames], [self._shown[t].scores for t in frames])
        self._write_about()
        self._scores_due = time.monotonic() + SCORES_EVERY


@dataclass(eq=False)
class _Remembering:
    """The strategy; all its trackers share one model, which keeps the features of the last frames."""

    strategy: Strategy
    model: Any = None

    def tracker(self, shape: tuple[int, int], frames: int | None) -> Any:
        tracker = self.strategy.tracker(shape, frames)
        if hasattr(getattr(tracker, "model", None), "encode"):
            if self.model is None:
                self.model = keeping(tracker.model, FRAMES_KEPT)
            tracker.model = self.model
        return tracker


def _ended() -> InputError:
    return InputError("an open session", "one that was closed", "make or open it again")


def _future() -> Future[Any]:
    """One that cannot be cancelled: what it waits for is shared, and ended by `Session.stop`."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _known(direction: str) -> str:
    if direction not in DIRECTIONS:
        raise InputError("a direction among " + ", ".join(DIRECTIONS), repr(direction), "choose one of these")
    return direction
