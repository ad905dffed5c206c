"""The verb `propagate`: prompts on some frames in, masks on all frames out, by any registered strategy.

`stream` is the loop that everything goes through, the notebooks, the page, the command line and the batch runner alike;
`propagate` runs it to the end with a progress bar and returns `Masks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Clip
from .errors import InputError
from .masks import Masks, MaskWriter
from .progress import progress
from .prompts import Prompts
from .strategies import Result, Strategy, get

__all__ = ["propagate", "stream"]

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
    names = None if clip.length is None else clip.names
    if out is not None:
        with MaskWriter(out, per_object=per_object, overwrite=overwrite) as writer:
            for t, result in results:
                masks = result.masks(aux) if per_object else result.labels
                writer.write(names[t] if names else f"{t:05d}", masks, result.scores)
        return Masks(out)
    found = {t: (Masks.pack(result.labels), result.scores) for t, result in results}
    packed, scores = zip(*(found[t] for t in sorted(found)), strict=True)
    return Masks(packed, names, shape=(clip.height, clip.width), scores=scores)


def _forward(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    first = min(prompts)
    for t in range(first):
        yield t, _nothing(clip)
    tracker = strategy.tracker((clip.height, clip.width), clip.length)
    done = first
    given = (prompts.get(t, {}) for t in range(first, 1 << 62))
    steps = (tracker.step(image, asked) for image, asked in zip(clip[first:], given, strict=False))
    for results in chain(steps, (tracker.finish() for _ in range(1))):
        for result in results:
            yield done, result
            done += 1


def _backward(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    last = len(clip) - 1
    mirrored = Prompts({last - t: given for t, given in prompts.items()})
    for t, result in _forward(clip[::-1], mirrored, strategy):
        yield last - t, result


def _both(clip: Clip, prompts: Prompts, strategy: Strategy) -> Iterator[tuple[int, Result]]:
    """Forward as ever; where an object has not begun yet, what a backward pass from its first prompt found."""
    firsts: dict[int, dict] = {}
    for t, given in prompts.items():
        new = {obj: p for obj, p in given.items() if not any(obj in seen for seen in firsts.values())}
        firsts.update({t: new} if new else {})
    latest = max(firsts)
    earlier = {t: (Masks.pack(r.labels), r.scores) for t, r in _backward(clip[: latest + 1], Prompts(firsts), strategy)}
    begun: set[int] = set()
    for t, result in _forward(clip, prompts, strategy):
        begun |= set(prompts.get(t, {}))
        if t in earlier:
            packed, scores = earlier.pop(t)
            before = Masks.unpack(packed, (clip.height, clip.width))
            before[np.isin(before, list(begun))] = 0
            labels = np.where(result.labels > 0, result.labels, before)
            result = replace(
                result, labels=labels, scores={**{o: s for o, s in scores.items() if o not in begun}, **result.scores}
            )
        yield t, result


def _nothing(clip: Clip) -> Result:
    return Result(np.zeros((clip.height, clip.width), np.uint8))


def _without(result: Result, aux: Sequence[int]) -> Result:
    if not aux:
        return result
    labels = np.where(np.isin(result.labels, list(aux)), np.uint8(0), result.labels)
    return replace(result, labels=labels, scores={o: s for o, s in result.scores.items() if o not in aux})
