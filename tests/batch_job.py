"""A job for the tests of the batch engine: small files, slowly; and items that go wrong. On its own, so that workers load it quickly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vosnb.errors import InputError
from vosnb.files import replacing_folder


@dataclass(frozen=True)
class Write:
    """Each item becomes a folder of five files. `faults`: {item: "raise", "input", "kill" or "exit"}; with `mend`, a file whose being there
    mends them. `gate`: a file; as long as it is there, no item goes beyond its second file."""

    costs: dict[str, float]
    seconds: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)
    mend: str = ""
    flavour: str = "plain"
    gate: str = ""

    def plan(self) -> dict[str, Any]:
        return {"job": "write", "flavour": self.flavour}

    def items(self) -> Mapping[str, float]:
        return self.costs

    def make(self, name: str, folder: Path) -> dict[str, Any]:
        with replacing_folder(folder) as part:  # as `MaskWriter` does
            for n in range(5):
                (part / f"{n:05d}.txt").write_text(f"{self.flavour} {name} {n}\n" * 500)
                time.sleep(self.seconds / 5)
                while n == 1 and self.gate and Path(self.gate).exists():
                    time.sleep(0.05)
        if self.faults.get(name) and not (self.mend and Path(self.mend).exists()):
            if self.faults[name] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.faults[name] == "exit":
                os._exit(7)
            if self.faults[name] == "input":
                raise InputError("an item that is good", name, "mend it")
            raise ValueError(f"{name} is no good")
        return {"pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "notes": [f"{name} was here"]}
