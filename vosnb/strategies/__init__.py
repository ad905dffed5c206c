"""Strategies by name, and the contract that they keep with the loop in `vosnb.propagate`.

A **strategy** is a frozen dataclass: its fields are its settings. `strategy.tracker(shape, frames)` starts a **tracker**, which
holds the state of one pass over one clip:

    tracker.step(image, prompts) -> results        one frame in, in order; the results that became final, in order
    tracker.finish() -> results                    the rest
    tracker.fork() -> tracker                      an independent one in the same state, cheap

Every frame gets exactly one `Result`, in order of time; a strategy that keeps several hypotheses reports a frame when they
agree on it. An object begins at its first prompt, wherever that is; later prompts correct it. To add a strategy, write a
dataclass with a `tracker` method in one file and put `@register("name")` on it.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import InputError
from ..prompts import Prompt

__all__ = ["Hypothesis", "Result", "Score", "Strategy", "Tracker", "get", "names", "register"]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A pathway that lived on at a frame: the slot of its parent on the frame before, the candidate mask it took, its scores."""

    parent: int
    choice: int
    iou: float
    present: float
    score: float  # cumulative


@dataclass(frozen=True, slots=True)
class Score:
    """How sure the strategy is of one object on one frame; NaN where it has no such notion."""

    iou: float = float("nan")  # predicted IoU, 0 … 1; for `flow` the share of the object's pixels whose flow is believed
    present: float = float("nan")  # object score, a logit: > 0 visible
    # 1 − mean IoU of the other hypotheses on this frame with the then best one, or, if refined, of the mask with what it was; 0 … 1
    disagreement: float = 0.0
    hypotheses: tuple[Hypothesis, ...] = ()  # best first; one for a strategy without branches


@dataclass(frozen=True)
class Result:
    """One finished frame: `labels` (H, W) uint8, pixel value = object id; `scores` per object that has begun.

    `logits` holds {object: (H, W) float32, > 0 = object} as they were before objects competed for pixels, where a strategy has them.
    """

    labels: np.ndarray
    scores: Mapping[int, Score] = field(default_factory=dict)
    logits: Mapping[int, np.ndarray] | None = None

    def masks(self, without: Sequence[int] = ()) -> dict[int, np.ndarray]:
        """{object: (H, W) bool}; with `logits` they may overlap, else they are what the label map shows."""
        objects = [obj for obj in self.scores if obj not in without]
        if self.logits is None:
            return {obj: self.labels == obj for obj in objects}
        return {obj: self.logits[obj] > 0 if obj in self.logits else self.labels == obj for obj in objects}


class Tracker(Protocol):
    def step(self, image: np.ndarray, prompts: Mapping[int, Prompt]) -> Iterable[Result]: ...
    def finish(self) -> Iterable[Result]: ...
    def fork(self) -> Tracker: ...


class Strategy(Protocol):
    def tracker(self, shape: tuple[int, int], frames: int | None) -> Tracker: ...


_BUILT_IN = {
    "flow": "flow",
    "sam": "sam",
    "sam2": "sam2",
    "sam2long": "sam2long",
    "xmem": "xmem",
}  # name → module in this package, imported on first use
_registry: dict[str, type] = {}
_REFINE = {"refine": "mask+box", "refine-box": "box", "refine-mask": "mask"}  # after a "+"; → `refined.Refined.prompt`


def register(name: str) -> Callable[[type], type]:
    """Class decorator: makes a strategy known as `name` to `propagate(by=…)` and to the command line."""

    def add(cls: type) -> type:
        if not (dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):
            raise TypeError(f"{cls.__name__} must be a frozen dataclass: its fields are the strategy's settings")
        _registry[name] = cls
        return cls

    return add


def names() -> list[str]:
    return sorted({*_BUILT_IN, *_registry})


def get(by: str | Strategy, **settings: Any) -> Strategy:
    """The strategy called `by`, with settings; text values are read as the field's type (they come from a command line).

    NAME+refine, NAME+refine-box or NAME+refine-mask refines what NAME finds; the settings of that begin with refine_: refine_model, …
    """
    if not isinstance(by, str):
        if isinstance(by, type) or not hasattr(by, "tracker"):
            raise InputError("a strategy or its name", repr(by), "give for example 'flow', or an instance such as Flow()")
        _check_names(by, settings, type(by).__name__)
        return dataclasses.replace(by, **settings) if settings else by
    name, plus, how = by.partition("+")
    if plus and how in _REFINE:
        from .refined import Refined

        own = {key.removeprefix("refine_"): value for key, value in settings.items() if key.startswith("refine_")}
        first = get(name, **{key: value for key, value in settings.items() if not key.startswith("refine_")})
        return _made(Refined, how, {"first": first, "prompt": _REFINE[how], **own})
    if by not in _registry and by in _BUILT_IN:
        importlib.import_module(f".{_BUILT_IN[by]}", __package__)
    if by not in _registry:
        known = ", ".join(names())
        raise InputError(f"a strategy among {known}, or one of these +{', +'.join(_REFINE)}", repr(by), "choose one of these")
    return _made(_registry[by], by, settings)


def _made(cls: type, what: str, settings: Mapping[str, Any]) -> Strategy:
    _check_names(cls, settings, what)
    known = typing.get_type_hints(cls)
    return cls(**{name: _read(value, known[name], f"{what}'s {name}") for name, value in settings.items()})


def _check_names(strategy: Any, settings: Mapping[str, Any], what: str) -> None:
    known = [f.name for f in dataclasses.fields(strategy) if f.init]
    for name in settings:
        if name not in known:
            raise InputError(f"a setting of {what} among " + ", ".join(known), repr(name), "correct the name")


def _read(value: Any, kind: Any, what: str) -> Any:
    """Text as the type of a dataclass field (bool, int, float, str, or one of these or None)."""
    if not isinstance(value, str):
        return value
    options = typing.get_args(kind) or (kind,)
    if type(None) in options and value.lower() in ("", "none"):
        return None
    if bool in options:
        if value.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return value.lower() in ("true", "yes", "on", "1")
    elif int in options or float in options:
        for number in (int, float):
            if number in options:
                try:
                    return number(value)
                except ValueError:
                    continue
    if str in options or kind is Any:
        return value
    raise InputError(f"{what} as {getattr(kind, '__name__', kind)}", repr(value), "correct the value")
