"""The embedded mini-benchmark: 14 made-up clips with ground truth, some of several hundred frames, in DAVIS layout.

    python -m vosnb.embedded.benchmark FOLDER

makes it in two or three minutes. Training never sees these seeds: its own begin at `clips.FIRST_SEED`, far above. The manifest beside
this file holds a hash of every clip; another processor may round a few pixels differently, and then is told so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..synth import Scene, scene, turbulence, write_scenes
from .clips import FIRST_SEED

__all__ = ["LONG_OCCLUDED", "SEEDS", "differing", "make_benchmark", "scenes"]

MANIFEST = Path(__file__).with_name("benchmark.json")
SEEDS = {
    "turbulence": {101: 120, 102: 120, 103: 300},
    "occluder": {111: 120, 112: 300, 113: 400},
    "lookalike": {121: 120, 122: 300},
    "late": {131: 120, 132: 120},
    "deform": {141: 90},
    "camera": {151: 90},
    "mixed": {161: 120, 162: 300},
}  # kind: {seed: frames}
LONG_OCCLUDED = ("occluder-112", "occluder-113", "lookalike-122", "mixed-162")


def scenes() -> list[Scene]:
    """The clips; they are drawn as they are read."""
    made = []
    for kind, seeds in SEEDS.items():
        for seed, frames in seeds.items():
            assert seed < FIRST_SEED
            if kind == "turbulence":
                made.append(turbulence(seed, frames, pace=min(1, 120 / frames)))  # the long one tells the same story slowly
            else:
                made.append(scene(seed, kind, frames))
    return made


def make_benchmark(folder: str | Path, overwrite: bool = False) -> Path:
    """Writes JPEGImages, Annotations and prompts into `folder`, all or nothing; an existing benchmark is left as it is."""
    folder = Path(folder)
    if not overwrite and (folder / "JPEGImages").is_dir():
        return folder
    return write_scenes(folder, scenes(), overwrite)


def hashes(folder: str | Path) -> dict[str, str]:
    """{clip: sha256 over its frames, label maps and prompts, in order}."""
    folder, found = Path(folder), {}
    for images in sorted((folder / "JPEGImages").iterdir()):
        digest = hashlib.sha256()
        files = [*sorted(images.iterdir()), *sorted((folder / "Annotations" / images.name).iterdir())]
        for file in (*files, folder / "prompts" / f"{images.name}.json"):
            digest.update(file.read_bytes())
        found[images.name] = digest.hexdigest()
    return found


def differing(folder: str | Path) -> list[str]:
    """The clips whose files are not those of the manifest."""
    manifest: Mapping[str, str] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    found = hashes(folder)
    return sorted(name for name in {*manifest, *found} if manifest.get(name) != found.get(name))


def main(
    folder: Path,
    overwrite: Annotated[bool, typer.Option(help="Make it anew where it exists.")] = False,
    record: Annotated[bool, typer.Option(help="Write the manifest: only after the generators have changed.")] = False,
) -> None:
    """Make the mini-benchmark in FOLDER, and compare it with the manifest."""
    make_benchmark(folder, overwrite)
    if record:
        MANIFEST.write_text(json.dumps(hashes(folder), indent=1) + "\n", encoding="utf-8")
    others = differing(folder)
    print(
        f"{folder}: {len(hashes(folder))} clips, "
        + (f"rounded otherwise here: {', '.join(others)}" if others else "as in the manifest")
    )


if __name__ == "__main__":
    typer.run(main)
