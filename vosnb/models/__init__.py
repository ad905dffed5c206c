"""Image models: weights and pure functions, no per-video state. The rest of the package reaches torch only through here.

An image model is anything with `encode` and `decode` (see `ImageModel`). `load` knows the classical `grabcut`, the
checkpoints in cards.toml (our own small one is among them), and files of the same architectures. This module itself imports no torch.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import InputError
from ..prompts import Prompt

__all__ = ["Decoded", "Encoded", "ImageModel", "check", "keeping", "load", "names"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image as its model sees it: `shape` (H, W) of the original, and `features`, which only that model can read."""

    shape: tuple[int, int]
    features: Any


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a model says to N prompts, C candidate masks each (1, or 3 with `multimask`). All float32; > 0 is the object.

    logits (N, C, H, W) at the size of the image; iou (N, C) predicted quality, 0 … 1, NaN where the model has no such notion;
    low (N, C, h, w) the same masks on the model's own grid, fit to be passed as `mask_logits`.
    """

    logits: np.ndarray
    iou: np.ndarray
    low: np.ndarray


class ImageModel(Protocol):
    """`name` is what a report writes down. Calls are pure: what was encoded is a value that the caller keeps."""

    name: str

    def encode(self, image: np.ndarray) -> Encoded:
        """An (H, W, 3) uint8 RGB image, encoded once for any number of prompts."""
        ...

    def decode(
        self,
        encoded: Encoded,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        strength: float = 18.0,
        mask_logits: Sequence[np.ndarray | None] | None = None,
    ) -> Decoded:
        """One answer per prompt, whose mask is sent as ±`strength` logits, or replaced by raw (h, w) ones in `mask_logits`."""
        ...


def names() -> list[str]:
    """What `load` knows by name."""
    from . import weights

    return ["grabcut", *(card.name for card in weights.cards().values() if card.family != "xmem")]


def check(model: str | Path | ImageModel | None) -> None:
    """`InputError` where `load` would not know the name, or there is no such checkpoint; loads nothing."""
    if model is None:
        return
    if not isinstance(model, (str, Path)):
        if not (hasattr(model, "encode") and hasattr(model, "decode")):
            raise InputError("a model's name or an ImageModel", repr(model), "name one of " + ", ".join(names()))
        return
    if str(model) not in names() and Path(model).suffix not in (".pt", ".pth", ".safetensors"):
        raise InputError(
            "a model among " + ", ".join(names()) + ", or a .pt, .pth or .safetensors file",
            repr(str(model)),
            "choose one of these",
        )
    if Path(model).suffix and not Path(model).is_file() and str(model) not in names():
        raise InputError(
            "a checkpoint file", f"{model}, which does not exist", "check the path, or name one that `vosnb fetch` lists"
        )


def load(model: str | Path | ImageModel | None = None, device: str = "auto", architecture: str | None = None) -> ImageModel:
    """The image model called `model`, or in the checkpoint file `model`; a model itself passes through.

    None is the largest SAM 2.1 that was fetched, or else `vosnb-mini-sam2`, which is for vosnb's own scenes, not for real footage.
    `architecture` says what a file of an unknown name holds: a card's name (`sam_vit_b`, `sam2.1_hiera_tiny`) or a SAM 2 .yaml.
    `InputError` for an unknown name, a checkpoint that is not there (with the command that fetches it) or does not fit.
    """
    check(model)
    if model is None:
        from . import weights

        model = weights.default()
    if not isinstance(model, (str, Path)):
        return model
    if model == "grabcut":
        from .grabcut import GrabCut

        return GrabCut()
    from . import sam

    return sam.load(str(model), device, architecture)


def keeping(model: Any, count: int) -> Any:
    """The same model, sharing its weights, that keeps what it encoded of the last `count` images: the same image again costs nothing.

    Images are told apart by their bytes. For one thread.
    """
    twin, kept = copy.copy(model), OrderedDict()

    def encode(image: np.ndarray, *more: Any) -> Any:
        key = image.shape, hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest(), more
        if key not in kept:
            kept[key] = model.encode(image, *more)
        kept.move_to_end(key)
        if len(kept) > count:
            kept.popitem(last=False)
        return kept[key]

    twin.encode = encode
    return twin
