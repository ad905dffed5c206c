"""What was run: a strategy with its models named and hashed, so that a result says what it is of, and a repeat takes the same."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from .errors import InputError

__all__ = ["checkpoint", "described", "settled"]

WITHOUT_FILE = ("grabcut", "mini-random")  # models that need no checkpoint


def settled(strategy: Any) -> Any:
    """The same, its model named, and that of the one that it refines: every process and every repeat is to take the same."""
    from .models import weights

    found = {}
    for name, value in _fields(strategy).items():
        if name == "model" and value is None:
            found[name] = weights.default(getattr(strategy, "family", "sam2"))
        elif name != "model" and dataclasses.is_dataclass(value):
            found[name] = settled(value)
    return dataclasses.replace(strategy, **found) if found else strategy


def described(strategy: Any) -> dict[str, Any]:
    """Its name, its settings, the checkpoint that its model is."""
    found = {"name": type(strategy).__name__}
    for name, value in _fields(strategy).items():
        found[name] = described(value) if name != "model" and dataclasses.is_dataclass(value) else value
    if of_model := checkpoint(found.get("model")):
        found["checkpoint"] = of_model
    return found


def _fields(strategy: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(strategy):
        return {}
    return {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}


def checkpoint(model: Any) -> dict[str, str] | None:
    """Which file a model's name stands for, and its hash; None where there is none."""
    from .models import weights

    if not isinstance(model, (str, Path)):
        return None
    if str(model) in weights.cards():
        file = weights.path(str(model))
    elif Path(model).suffix in (".pt", ".pth", ".safetensors"):
        file = Path(model)
    elif str(model) in WITHOUT_FILE:
        return None
    else:
        raise InputError("a checkpoint that `vosnb fetch` lists, or its file", repr(str(model)), "correct the name")
    if not file.is_file():
        raise InputError(
            "a checkpoint file", f"{file}, which does not exist", "check the path, or name one that `vosnb fetch` lists"
        )
    with file.open("rb") as data:
        return {"file": file.name, "sha256": hashlib.file_digest(data, "sha256").hexdigest()}
