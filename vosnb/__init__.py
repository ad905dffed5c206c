"""Video object segmentation, notebook first: `Clip`, `segment`, `propagate`, `evaluate`, `show`. Importing it loads no network."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    "Editor": "widgets",
    "Box": "prompts", "Clip": "clip", "InputError": "errors", "Masks": "masks", "Point": "prompts", "Prompt": "prompts",
    "Prompts": "prompts", "Propagation": "propagate", "Report": "evaluate", "Session": "session", "compare": "compare",
    "contact_sheet": "show", "dataset": "datasets", "evaluate": "evaluate", "export": "export", "extract": "extract",
    "measure": "measure", "overlay": "paint", "propagate": "propagate", "read_masks": "export", "refine": "refine",
    "segment": "segment", "show": "show", "stream": "propagate", "turbulence": "synth",
}  # fmt: skip

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Names are imported on first use, so that `import vosnb` and `vosnb --help` stay quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'vosnb' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Verbs live in modules of the same name: `vosnb.segment` is to be the function, whichever import came first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
