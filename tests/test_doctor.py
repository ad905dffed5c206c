"""What `vosnb doctor` says, on this machine and on worse ones."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vosnb.doctor import PACKAGES, doctor, report
from vosnb.models import weights


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("VOSNB_CACHE", str(tmp_path / "cache"))


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_a_working_machine_has_all_and_says_so():
    facts = doctor()
    text = report(facts)
    assert json.loads(json.dumps(facts))["packages"].keys() == PACKAGES.keys()
    assert facts["problems"] == [] and "MISSING" not in text
    assert facts["packages"]["numpy"] == metadata.version("numpy") and facts["python"]["executable"] == sys.executable
    assert "All there" not in text and text.splitlines()[-1].startswith("Ready. A checkpoint that is not there (-)")
    for checkpoint in facts["checkpoints"].values():
        checkpoint["file"] = "somewhere.pt"
    assert report(facts).splitlines()[-1] == "All there."
    assert facts["device"]["kind"] in ("cpu", "cuda", "mps") and facts["device"]["threads"] >= 1
    version = subprocess.run([facts["ffmpeg"]["path"], "-version"], capture_output=True, text=True, check=True).stdout
    assert facts["ffmpeg"]["version"] in version


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch):
    without(monkeypatch, "torch", "imageio-ffmpeg", "sam2", "scipy")
    facts = doctor()
    assert facts["device"] is None and facts["ffmpeg"] is None
    lines = report(facts).splitlines()
    assert "torch is not installed: pip install torch torchvision" in lines
    assert "sam2 is not installed: pip install --no-build-isolation sam2" in lines
    assert "scipy is not installed: pip install scipy" in lines
    assert [line.split()[1] for line in lines if line.startswith("MISSING")] == [
        "device",
        "ffmpeg",
        "torch",
        "sam2",
        "scipy",
        "imageio-ffmpeg",
    ]


def test_a_missing_ffmpeg_program_is_told(monkeypatch):
    import imageio_ffmpeg

    def none() -> str:
        raise RuntimeError("no ffmpeg")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    assert ("no ffmpeg program", "pip install --force-reinstall imageio-ffmpeg") in doctor()["problems"]


def test_either_opencv_will_do(monkeypatch):
    without(monkeypatch, "opencv-python-headless")
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.0" if name == "opencv-python" else real(name))
    assert doctor()["packages"]["opencv-python-headless"] == "4.0"


def test_checkpoints_are_listed_with_their_commands(tmp_path):
    name, other, half = list(weights.cards())[:3]
    (tmp_path / "checkpoints").mkdir()
    for known, length in ((name, weights.card(name).bytes), (half, 10)):
        with (tmp_path / "checkpoints" / weights.card(known).file).open("wb") as file:
            file.truncate(length)  # sparse: takes no room
    facts = doctor()["checkpoints"]
    assert facts.keys() == weights.cards().keys()
    assert facts[name]["file"] == str(tmp_path / "checkpoints" / weights.card(name).file)
    assert facts[other]["file"] is None and facts[half]["file"] is None
    text = report(doctor())
    assert f"vosnb fetch {other} (" in text and f"vosnb fetch {name} (" not in text


def test_the_cache_is_measured_and_not_made(tmp_path):
    assert doctor()["cache"]["bytes"] == 0 and not (tmp_path / "cache").exists()
    (tmp_path / "cache" / "frames").mkdir(parents=True)
    (tmp_path / "cache" / "frames" / "a.mkv").write_bytes(bytes(3000))
    cache = doctor()["cache"]
    assert cache["folder"] == str(tmp_path / "cache") and cache["bytes"] == 3000 and cache["free"] > 0


def test_importing_it_imports_nothing_heavy():
    heavy = "torch", "cv2", "av", "moviepy", "yt_dlp", "papermill", "nbformat", "nbconvert", "matplotlib", "pandas", "scipy"
    code = f"import sys, vosnb.doctor, vosnb.run, vosnb.extract; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
