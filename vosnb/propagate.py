"""The verb `propagate`: prompts on some frames in, masks on all frames out, by any registered strategy.

`stream` is the loop that everything goes through, the notebooks, the page, the command line and the batch runner alike;
`propagate` runs it to the end with a progress bar and returns `Masks`.
"""

from __future__ import annotations

from collections import ChainMap, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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

__all__ = ["DIRECTIONS", "Propagation", "collect", "divided", "joined", "mirrored", "propagate", "stream"]

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
    if direction == "both":
        found = _both(clip, prompts, strategy)
    else:
        found = {"forward": _forward, "backward": _backward}[direction](clip, divided(prompts, direction)[direction], strategy)
    return ((t, _without(result, aux)) for t, result in found)


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
    the price of a memory per frame and object (0.5 MB at full size). Beyond `most` states, every other one is dropped. Everything
    else as in `stream`.
    """

    def __init__(
        self,
        clip: Clip,
        prompts: Prompts | Mapping[int, Any],
        by: str | Strategy = "flow",
        *,
        keep: int = 0,
        most: int | None = None,
        **settings: Any,
    ):
        self.clip = clip if isinstance(clip, Clip) else Clip(clip)
        self.strategy, self.keep, self.most = get(by, **settings), keep, most
        self._begin(self._checked(prompts))

    def _begin(self, prompts: Prompts) -> None:
        self.prompts = prompts
        self.first = self.next = self.reported = min(prompts)  # frames: begun at, to be read, to be reported
        self.tracker = self.strategy.tracker((self.clip.height, self.clip.width), self.clip.length)
        # states before these frames; those after `next` are of the prompts before the last change
        self._kept: dict[int, tuple[Tracker, int]] = {}
        self._ready: deque[Result] = deque()  # final, and not taken yet: a loop may be left between two of them
        self._finished = False

    def _checked(self, prompts: Prompts | Mapping[int, Any]) -> Prompts:
        prompts = Prompts.of(prompts)
        prompts.check(self.clip.length, self.clip.height, self.clip.width)
        return prompts

    def __iter__(self) -> Iterator[tuple[int, Result]]:
        yield from self._reports()
        if self._finished:
            return
        for image in self.clip[self.next :]:
            if self.keep and (self.next - self.first) % self.keep == 0:
                self._keep_state()
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

    def _keep_state(self) -> None:
        self._kept[self.next] = self.tracker.fork(), self.reported
        if self.most and len(self._kept) > self.most:
            self.keep *= 2
            self._kept = {t: state for t, state in self._kept.items() if (t - self.first) % self.keep == 0}

    def correct(self, frame: int, given: Mapping[int, Any]) -> int:
        """Adds prompts {object: prompt} on a frame, in place of what these objects had there; then as `revise`."""
        prompts = {**self.prompts, frame: {**self.prompts.get(frame, {}), **given}}
        return self.revise(Prompts(prompts, self.prompts.objects, self.prompts.video))

    def revise(self, prompts: Prompts | Mapping[int, Any]) -> int:
        """Takes `prompts` in place of all those given so far, and goes back to the first frame where they differ.

        Returns the first frame that the next loop reports; results from there on are void. Where the first prompted frame is another
        one than before, everything begins anew. `InputError` without a kept state at or before the frame to go back to.
        """
        prompts = self._checked(prompts)
        frame = min((t for t in {*self.prompts, *prompts} if self.prompts.get(t) != prompts.get(t)), default=self.next)
        if min(prompts) != self.first:
            self._begin(prompts)
        elif frame < self.next:
            states = [t for t in self._kept if t <= frame]
            if not states:
                raise InputError(
                    f"a state kept at or before frame {frame}", f"keep={self.keep}, begun at {self.first}", "start with keep=1"
                )
            self.next = max(states)
            kept, self.reported = self._kept[self.next]
            self.tracker, self._finished = kept.fork(), False
            self._ready.clear()
        self.prompts = prompts
        return self.reported

    def look(self, frame: int) -> Result | None:
        """The frame with the prompts as they are now, from the state kept before it; None without one near enough. Changes nothing.

        It is what a loop reports there, but for what is open between hypotheses: that is decided for the best one so far.
        """
        near = [t for t in self._kept if frame - max(self.keep, 1) < t <= frame]
        if frame == self.next:
            start, tracker = frame, self.tracker.fork()
        elif near:
            start = max(near)
            tracker = self._kept[start][0].fork()
        else:
            return None
        results: list[Result] = []
        for t in range(start, frame + 1):
            results = list(tracker.step(self.clip[t], self.prompts.get(t, {})))
        return (results + list(tracker.finish()))[-1]


def divided(prompts: Prompts, direction: str) -> dict[str, Prompts]:
    """What of the prompts each pass is given: {"forward": …}, {"backward": …}, or both; a pass without prompts is left out.

    Where `prompts.objects` says that an object `begins` on a frame where it has a prompt, it is followed from there, whatever the
    direction. Else it is from its first prompt, and in a pass that only goes backward from its last.
    """
    first = {obj: t for t in sorted(prompts, reverse=True) for obj in prompts[t]}
    begins = {obj: about["begins"] for obj, about in prompts.objects.items() if obj in prompts.get(about.get("begins", -1), {})}
    last = {**first, **begins} if direction == "both" else begins

    def those(wanted: Callable[[int, int], bool]) -> Prompts:
        given = {t: {obj: p for obj, p in prompts[t].items() if wanted(t, obj)} for t in prompts}
        return Prompts(given, prompts.objects, prompts.video)

    passes = {
        "forward": those(lambda t, obj: direction != "backward" and t >= begins.get(obj, t)),
        "backward": those(lambda t, obj: direction != "forward" and t <= last.get(obj, t)),
    }
    return {name: given for name, given in passes.items() if given}


def mirrored(prompts: Prompts, frames: int) -> Prompts:
    """The same prompts for the reversed clip of that many frames."""
    return Prompts({frames - 1 - t: given for t, given in prompts.items()})


def _forward(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    run = Propagation(clip, prompts, strategy)
    for t in range(run.first):
        yield t, _nothing(clip)
    yield from run


def _backward(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    for t, result in _forward(clip[::-1], mirrored(prompts, len(clip)), strategy):
        yield len(clip) - 1 - t, result


def _both(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    """Forward as ever; where an object has not begun yet, what a backward pass from its first prompt found (as logits of ±1).

    In the label map, objects that have begun win over those that have not.
    """
    passes = divided(prompts, "both")
    latest, shape = max(passes["backward"]), (clip.height, clip.width)
    earlier = {
        t: (Masks.pack(r.labels), {o: np.packbits(m) for o, m in r.masks().items()}, r.scores)
        for t, r in _backward(clip, passes["backward"], strategy)  # the whole clip: a strategy may ask how long it is
        if t <= latest
    }
    begun: set[int] = set()
    for t, result in _forward(clip, passes["forward"], strategy):
        begun |= set(passes["forward"].get(t, {}))
        if t in earlier:
            packed, masks, scores = earlier.pop(t)
            before = Masks.unpack(packed, shape)
            old = {
                o: np.unpackbits(m, count=before.size).reshape(shape) * np.float32(2) - 1
                for o, m in masks.items()
                if o not in begun
            }
            result = Result(
                joined(result.labels, before, begun),
                {**{o: score for o, score in scores.items() if o in old}, **result.scores},
                ChainMap(old, result.logits or {o: np.where(result.labels == o, np.float32(1), np.float32(-1)) for o in begun}),
            )
        yield t, result


def joined(forward: np.ndarray, backward: np.ndarray, begun: Collection[int]) -> np.ndarray:
    """Label maps (H, W) of a frame from both passes: objects that have `begun` are the forward pass's, and win."""
    earlier = np.where(np.isin(backward, list(begun)), np.uint8(0), backward)
    return np.where(forward > 0, forward, earlier)


def _nothing(clip: Clip) -> Result:
    return Result(np.zeros((clip.height, clip.width), np.uint8))


def _without(result: Result, aux: Sequence[int]) -> Result:
    if not aux:
        return result
    labels = np.where(np.isin(result.labels, list(aux)), np.uint8(0), result.labels)
    return replace(result, labels=labels, scores={o: s for o, s in result.scores.items() if o not in aux})
