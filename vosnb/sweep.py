"""A notebook over a grid of parameters, by the batch engine: one executed notebook per combination, and one table of all."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .files import replacing
from .run import parameters_of, run_notebook, typed_parameters

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Sweep"]


@dataclass(frozen=True)
class Sweep:
    """A `batch.Job`: `notebook` once for each combination of the `grid`'s values, with `fixed` parameters for all.

    Text is read as `run_notebook` reads it. `InputError` where the notebook does not declare a parameter.
    """

    notebook: Path
    grid: dict[str, tuple[Any, ...]]
    fixed: dict[str, Any]

    def __post_init__(self) -> None:
        known = parameters_of(self.notebook)
        if not self.grid or not all(self.grid.values()):
            raise InputError("at least one parameter with values", self.grid, "write for example -g num_pathway=1,3,5")
        if both := sorted({*self.grid} & {*self.fixed, "out"}):
            raise InputError("parameters that are varied or fixed; out is each run's folder", ", ".join(both), "drop one")
        for values in self.combinations.values():
            typed_parameters(known, {**self.fixed, **values})
        if len(self.combinations) < len(list(itertools.product(*self.grid.values()))):
            raise InputError("combinations that differ", self.grid, "drop the values that come twice")

    @property
    def combinations(self) -> dict[str, dict[str, Any]]:
        """{name of its folder: {parameter: value}}."""
        made = (dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))
        return {",".join(f"{name}={re.sub(r'[^A-Za-z0-9.+-]+', '_', str(v))}" for name, v in c.items()): c for c in made}

    def plan(self) -> dict[str, Any]:
        content = hashlib.sha256(self.notebook.read_bytes()).hexdigest()
        grid = {name: list(values) for name, values in self.grid.items()}
        return {"job": "sweep", "notebook": self.notebook.name, "sha256": content, "grid": grid, "fixed": self.fixed}

    def items(self) -> Mapping[str, float]:
        return dict.fromkeys(self.combinations, 1.0)

    def make(self, name: str, folder: Path) -> dict[str, Any]:
        run_notebook(self.notebook, folder, {**self.fixed, **self.combinations[name]})
        return {"parameters": self.combinations[name], "found": _numbers(folder)}

    def table(self, done: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        """One row per combination that is done: its parameters, the seconds it took, the numbers of its report.json."""
        import pandas as pd

        rows = [
            {**values, "seconds": done[name]["seconds"], **done[name].get("found", {})}
            for name, values in self.combinations.items()
            if name in done
        ]
        return pd.DataFrame(rows)

    def save_table(self, done: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
        with replacing(path) as temporary:
            self.table(done).to_csv(temporary, index=False)
        return path


def _numbers(folder: Path) -> dict[str, float]:
    """What a notebook says in report.json: the numbers at its top and in its summary."""
    file = folder / "report.json"
    if not file.is_file():
        return {}
    said = json.loads(file.read_text())
    parts: Sequence[Any] = [said, said.get("summary")] if isinstance(said, dict) else []
    return {
        name: value for part in parts if isinstance(part, dict) for name, value in part.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }  # fmt: skip
