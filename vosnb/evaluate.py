"""How good masks are, against ground truth: region similarity J per object and frame.

J is the intersection over union of the predicted and the true region; where both are empty it is 1 (Perazzi et al., "A Benchmark
Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import replacing
from .masks import Masks

__all__ = ["Report", "evaluate", "jaccard"]


@dataclass(frozen=True)
class Report:
    """`J`: {object: mean over frames}; `frames`: {object: J of each frame}; `about`: what was run (free form, goes into the JSON)."""

    J: dict[int, float]
    frames: dict[int, list[float]]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean of the objects' J."""
        return float(np.mean(list(self.J.values())))

    def save(self, path: str | Path) -> Path:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"mean J": self.mean, **asdict(self)}, indent=1))
        return Path(path)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{obj}</td><td>{j:.3f}</td></tr>" for obj, j in self.J.items())
        return f"<table><tr><th>object</th><th>J</th></tr>{rows}<tr><th>mean</th><th>{self.mean:.3f}</th></tr></table>"


def jaccard(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks; 1 where both are empty."""
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0


def evaluate(masks: Any, truth: Any, *, ids: Sequence[int] | None = None, skip: Sequence[int] = (0,), **about: Any) -> Report:
    """J of every object on every frame but those in `skip` (the prompted ones; by default the first).

    `masks` and `truth` are `Masks`, arrays (T, H, W) or folders of PNGs. `ids` defaults to the objects of the truth.
    """
    masks, truth = (m if isinstance(m, Masks) else Masks(m) for m in (masks, truth))
    if masks.shape != truth.shape:
        raise InputError(
            f"masks of the truth's shape {truth.shape} (T, H, W)", masks.shape, "compare the same frames at the same size"
        )
    ids = tuple(truth.ids) if ids is None else tuple(ids)
    kept = [t for t in range(len(truth)) if t not in set(skip)]
    if not ids or not kept:
        raise InputError(
            "at least one object and one frame to compare", f"objects {ids}, {len(kept)} frames", "check the ground truth"
        )
    found: dict[int, list[float]] = {obj: [] for obj in ids}
    for t in kept:
        a, b = masks[t], truth[t]
        for obj in ids:
            found[obj].append(jaccard(a == obj, b == obj))
    return Report({obj: float(np.mean(j)) for obj, j in found.items()}, found, about)
