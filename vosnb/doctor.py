"""What is installed, which device there is, which checkpoints; and the command that mends what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__

__all__ = ["doctor", "report"]

# distribution → how to install it, where `pip install NAME` does not do
PACKAGES = {
    "torch": "pip install torch torchvision",
    "torchvision": "pip install torch torchvision",
    "sam2": "pip install --no-build-isolation sam2",
    "segment-anything": "",
    "numpy": "",
    "scipy": "",
    "opencv-python-headless": "",
    "av": "",
    "imageio-ffmpeg": "",
    "moviepy": "",
    "yt-dlp": "pip install 'yt-dlp[default]'",
    "matplotlib": "",
    "pandas": "",
    "papermill": "",
    "nbconvert": "",
    "ipykernel": "",
    "ipywidgets": "",
    "jupyterlab": "",
    "gradio": "",
}
SAME = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}


def doctor() -> dict[str, Any]:
    """Facts about this machine, ready for JSON; sizes in bytes, None for what is missing.

    Keys: vosnb, python {version, executable, platform}, packages {name: version}, device {name, kind, threads, precision},
    ffmpeg {path, version}, cache {folder, bytes, free}, checkpoints {name: {file, bytes, licence}}, where `file` is set if it
    is there with the right size (its use verifies the hash, too), and problems, [(what, command that mends it)].
    """
    packages = {name: _version(name) for name in PACKAGES}
    problems = [
        (f"{name} is not installed", PACKAGES[name] or f"pip install {name}") for name in PACKAGES if not packages[name]
    ]
    facts = {
        "vosnb": __version__,
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(True, True),
        },
        "packages": packages,
        "device": _device() if packages["torch"] else None,
        "ffmpeg": _ffmpeg() if packages["imageio-ffmpeg"] else None,
        "cache": _cache(),
        "checkpoints": _checkpoints(),
        "problems": problems,
    }
    if packages["imageio-ffmpeg"] and not facts["ffmpeg"]:
        problems.append(("no ffmpeg program", "pip install --force-reinstall imageio-ffmpeg"))
    return facts


def report(facts: dict[str, Any]) -> str:
    """The facts of `doctor` as lines to read."""
    python, device, ffmpeg, cache = facts["python"], facts["device"], facts["ffmpeg"], facts["cache"]
    lines = [
        f"vosnb {facts['vosnb']}, Python {python['version']} ({python['executable']}), {python['platform']}",
        _line(device, "device", device and "{name} ({kind}, {precision}, {threads} threads)".format(**device)),
        _line(ffmpeg, "ffmpeg", ffmpeg and "{version} ({path})".format(**ffmpeg)),
        _line(True, "cache", f"{_size(cache['bytes'])} in {cache['folder']}, {_size(cache['free'])} free"),
        "",
        *(_line(version, name, version) for name, version in facts["packages"].items()),
        "",
    ]
    for name, checkpoint in facts["checkpoints"].items():
        fetch = f"vosnb fetch {name} ({_size(checkpoint['bytes'])}, {checkpoint['licence']})"
        lines.append(f"{'ok' if checkpoint['file'] else '-':8} {name:24} {checkpoint['file'] or fetch}")
    mend = [f"{what}: {command}" for what, command in facts["problems"]]
    there = all(checkpoint["file"] for checkpoint in facts["checkpoints"].values())
    usual = "All there." if there else "Ready. A checkpoint that is not there (-) is needed only by the model of its name."
    return "\n".join([*lines, "", *(mend or [usual])])


def _line(found: Any, name: str, text: str | None) -> str:
    return f"{'ok' if found else 'MISSING':8} {name:24} {text or ''}".rstrip()


def _size(count: int | None) -> str:
    if count is None:
        return "size unknown"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _version(name: str) -> str | None:
    for known in (name, *SAME.get(name, ())):
        try:
            return metadata.version(known)
        except metadata.PackageNotFoundError:
            continue
    return None


def _device() -> dict[str, Any]:
    import torch

    from .models.device import pick, precision

    device = pick()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "name": name,
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "precision": str(precision(device)).removeprefix("torch."),
    }


def _ffmpeg() -> dict[str, str] | None:
    import imageio_ffmpeg

    try:
        return {"path": imageio_ffmpeg.get_ffmpeg_exe(), "version": imageio_ffmpeg.get_ffmpeg_version()}
    except RuntimeError:  # it has none for this system
        return None


def _cache() -> dict[str, Any]:
    from platformdirs import user_cache_dir

    folder = Path(os.environ.get("VOSNB_CACHE") or user_cache_dir("vosnb"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return {"folder": str(folder), "bytes": sum(path.stat().st_size for path in files), "free": shutil.disk_usage(there).free}


def _checkpoints() -> dict[str, dict[str, Any]]:
    from .models import weights

    found = {}
    for name, card in weights.cards().items():
        files = (folder / card.file for folder in weights.folders())
        file: Path | None = next((file for file in files if file.is_file() and card.bytes in (None, file.stat().st_size)), None)
        found[name] = {"file": file and str(file), "bytes": card.bytes, "licence": card.licence}
    return found
