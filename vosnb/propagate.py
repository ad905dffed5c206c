"""The verb `propagate`: prompts on some frames in, masks on all frames out, by any registered strategy.

`stream` is the loop that everything goes through, the notebooks, the page, the command line and the batch runner alike;
`propagate` runs it to the end with a progress bar and returns `Masks`.
"""

from __future__ import annotations

from collections import ChainMap, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Clip
from .errors import InputError
from .masks import Masks, MaskWriter
from .progress import progress
from .prompts import Prompts
from .strategies import Result, Strategy, Tracker, get

__all__ = ["Propagation", "collect", "propagate", "stream"]

DIRECTIONS = ("forward", "backward", "both")


def stream(
    clip: Clip,
    prompts: Prompts | Mapping[int, Any],
    by: str | Strategy = "flow",
    *,
    direction: str = "forward",
    aux: Sequence[int] = (),
    **settings: Any,
) -> Iterator[tuple[int, Result]]:
    """Yields (frame, `Result`) for every frame of the clip, each as soon as it is final, in the order of the pass.

    `prompts` maps a frame to a label map (H, W) or to {object: prompt}; an object begins at its first prompted frame, and
    later prompts correct it. `direction` "backward" begins at an object's last prompt and runs to frame 0; "both" runs
    backward from each object's first prompt, then forward, and yields the frames in order. Objects in `aux` compete for
    pixels, then become background. `settings` are the strategy's. Close the generator to cancel between two frames.

    Raises `InputError` on bad input, before the first frame is read.
    """
    clip = clip if isinstance(clip, Clip) else Clip(clip)
    strategy = get(by, **settings)
    prompts = Prompts.of(prompts)
    prompts.check(clip.length, clip.height, clip.width)
    if direction not in DIRECTIONS:
        raise InputError("a direction among " + ", ".join(DIRECTIONS), repr(direction), "choose one of these")
    if unknown := set(aux) - set(prompts.ids):
        raise InputError(f"auxiliary objects among {prompts.ids}", sorted(unknown), "name objects that have a prompt")
    if direction != "forward" and clip.length is None:
        raise InputError(
            "a clip of known length to go backward", "frames from an iterator", "save its frames first: clip.save_frames"
        )
    passes = {"forward": _forward, "backward": _backward, "both": _both}
    return ((t, _without(result, aux)) for t, result in passes[direction](clip, prompts, strategy))


def propagate(
    clip: Clip,
    prompts: Prompts | Mapping[int, Any],
    by: str | Strategy = "flow",
    *,
    out: str | Path | None = None,
    per_object: bool = False,
    overwrite: bool = False,
    direction: str = "forward",
    aux: Sequence[int] = (),
    show_progress: bool = True,
    **settings: Any,
) -> Masks:
    """Label maps (T, H, W) uint8 for the whole clip, with `scores` per frame and object beside them.

    With `out`, indexed PNGs named after the clip's frames are written behind on a thread, memory stays flat, and the folder
    appears when it is complete; the returned `Masks` reads from it. `per_object` writes OBJECT/FRAME.png instead (SA-V).
    Everything else as in `stream`.
    """
    clip = clip if isinstance(clip, Clip) else Clip(clip)
    results = stream(clip, prompts, by, direction=direction, aux=aux, **settings)
    label = by if isinstance(by, str) else type(by).__name__.lower()
    results = progress(results, total=clip.length, label=label, show=show_progress)
    return collect(results, clip, out=out, per_object=per_object, overwrite=overwrite, aux=aux)


def collect(
    results: Iterable[tuple[int, Result]],
    clip: Clip,
    *,
    out: str | Path | None = None,
    per_object: bool = False,
    overwrite: bool = False,
    aux: Sequence[int] = (),
) -> Masks:
    """What `stream` yields as `Masks`; `propagate` says where they are kept."""
    names = None if clip.length is None else clip.names
    if out is not None:
        with MaskWriter(out, per_object=per_object, overwrite=overwrite) as writer:
            written: dict[int, str] = {}
            for t, result in results:
                written[t] = names[t] if names else f"{t:05d}"
                writer.write(written[t], result.masks(aux) if per_object else result.labels, result.scores)
        return Masks(out, [written[t] for t in sorted(written)], shape=(clip.height, clip.width))
    found = {t: (Masks.pack(result.labels), result.scores) for t, result in results}
    packed, scores = zip(*(found[t] for t in sorted(found)), strict=True)
    return Masks(packed, names, shape=(clip.height, clip.width), scores=scores)


class Propagation:
    """A forward pass that can be left, corrected and taken up again without repeating what came before.

        run = Propagation(clip, {0: first}, by="sam2long")
        for t, result in run: …                      # leave the loop whenever you like; a new loop goes on
        run.correct(40, {1: Point(300, 200)})        # back to frame 40, with this prompt added
        for t, result in run: …                      # from the first frame that this changes

    The state before every `keep`-th frame is kept: 0, the default, keeps none and memory flat; 1 goes back to any frame at once, at
    the price of a memory per frame and object (0.5 MB at full size). Everything else as in `stream`.
    """

    def __init__(
        self, clip: Clip, prompts: Prompts | Mapping[int, Any], by: str | Strategy = "flow", *, keep: int = 0, **settings: Any
    ):
        self.clip = clip if isinstance(clip, Clip) else Clip(clip)
        self.prompts = Prompts.of(prompts)
        self.prompts.check(self.clip.length, self.clip.height, self.clip.width)
        self.strategy, self.keep = get(by, **settings), keep
        self.first = self.next = self.reported = min(self.prompts)  # frames: begun at, to be read, to be reported
        self.tracker = self.strategy.tracker((self.clip.height, self.clip.width), self.clip.length)
        self._kept: dict[int, tuple[Tracker, int]] = {}
        self._ready: deque[Result] = deque()  # final, and not taken yet: a loop may be left between two of them
        self._finished = False

    def __iter__(self) -> Iterator[tuple[int, Result]]:
        yield from self._reports()
        if self._finished:
            return
        for image in self.clip[self.next :]:
            if self.keep and (self.next - self.first) % self.keep == 0:
                self._kept[self.next] = self.tracker.fork(), self.reported
            self._ready.extend(self.tracker.step(image, self.prompts.get(self.next, {})))
            self.next += 1
            yield from self._reports()
        if self.next <= max(self.prompts):
            raise InputError(
                f"a prompted frame below {self.next} (the clip's length)", max(self.prompts), "frames count from 0"
            )
        self._ready.extend(self.tracker.finish())
        self._finished = True
        yield from self._reports()

    def _reports(self) -> Iterator[tuple[int, Result]]:
        while self._ready:
            self.reported += 1
            yield self.reported - 1, self._ready.popleft()

    def correct(self, frame: int, given: Mapping[int, Any]) -> int:
        """Adds prompts {object: prompt} on a frame, in place of what these objects had there, and goes back to it.

        Returns the first frame that the next loop reports; results from there on are void. `InputError` without a kept state at or
        before the frame.
        """
        prompts = Prompts(
            {**self.prompts, frame: {**self.prompts.get(frame, {}), **given}}, self.prompts.objects, self.prompts.video
        )
        prompts.check(self.clip.length, self.clip.height, self.clip.width)
        if frame < self.next:
            states = [t for t in self._kept if t <= frame]
            if not states:
                raise InputError(
                    f"a state kept at or before frame {frame}", f"keep={self.keep}, begun at {self.first}", "start with keep=1"
                )
            self.next = max(states)
            kept, self.reported = self._kept[self.next]
            self.tracker, self._finished = kept.fork(), False
            self._ready.clear()
            self._kept = {t: state for t, state in self._kept.items() if t < self.next}
        self.prompts = prompts
        return self.reported


def _forward(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    run = Propagation(clip, prompts, strategy)
    for t in range(run.first):
        yield t, _nothing(clip)
    yield from run


def _backward(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    last = len(clip) - 1
    mirrored = Prompts({last - t: given for t, given in prompts.items()})
    for t, result in _forward(clip[::-1], mirrored, strategy):
        yield last - t, result


def _both(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    """Forward as ever; where an object has not begun yet, what a backward pass from its first prompt found (as logits of ±1).

    In the label map, objects that have begun win over those that have not.
    """
    firsts: dict[int, dict] = {}
    for t, given in prompts.items():
        new = {obj: p for obj, p in given.items() if not any(obj in seen for seen in firsts.values())}
        firsts.update({t: new} if new else {})
    latest, shape = max(firsts), (clip.height, clip.width)
    earlier = {
        t: (Masks.pack(r.labels), {o: np.packbits(m) for o, m in r.masks().items()}, r.scores)
        for t, r in _backward(clip, Prompts(firsts), strategy)  # the whole clip: a strategy may ask how long it is
        if t <= latest
    }
    begun: set[int] = set()
    for t, result in _forward(clip, prompts, strategy):
        begun |= set(prompts.get(t, {}))
        if t in earlier:
            packed, masks, scores = earlier.pop(t)
            before = Masks.unpack(packed, shape)
            before[np.isin(before, list(begun))] = 0
            old = {
                o: np.unpackbits(m, count=before.size).reshape(shape) * np.float32(2) - 1
                for o, m in masks.items()
                if o not in begun
            }
            result = Result(
                np.where(result.labels > 0, result.labels, before),
                {**{o: score for o, score in scores.items() if o in old}, **result.scores},
                ChainMap(old, result.logits or {o: np.where(result.labels == o, np.float32(1), np.float32(-1)) for o in begun}),
            )
        yield t, result


def _nothing(clip: Clip) -> Result:
    return Result(np.zeros((clip.height, clip.width), np.uint8))


def _without(result: Result, aux: Sequence[int]) -> Result:
    if not aux:
        return result
    labels = np.where(np.isin(result.labels, list(aux)), np.uint8(0), result.labels)
    return replace(result, labels=labels, scores={o: s for o, s in result.scores.items() if o not in aux})
