"""Small films as people have them: from a phone held upright, with a varying rate, of odd size, in HEVC. By imageio-ffmpeg's program."""

import subprocess
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from vosnb.video import write_video

X264 = ("-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p")


def encoded(path: Path, frames: np.ndarray, *options: str, before: tuple[str, ...] = ()) -> Path:
    """(T, H, W, 3) uint8 frames at 25 a second, by these options of FFmpeg."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    pipe = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "25", "-i", "-")
    command = [get_ffmpeg_exe(), "-y", "-v", "error", *before, *pipe, *options, str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True, capture_output=True)
    return path


def phone(path: Path, frames: np.ndarray) -> Path:
    """Stored lying on its side, with the note that it be turned when it is shown."""
    lying = encoded(path.with_name("lying.mp4"), np.ascontiguousarray(np.rot90(frames, -1, axes=(1, 2))), *X264)
    turn = ["-display_rotation", "90", "-i", str(lying), "-c", "copy", str(path)]
    subprocess.run([get_ffmpeg_exe(), "-y", "-v", "error", *turn], check=True, capture_output=True)
    lying.unlink()
    return path


def varying(path: Path, frames: np.ndarray) -> Path:
    steps = np.random.default_rng(0).choice([0.02, 0.04, 0.1], len(frames))
    return write_video(path, frames, 25, times=np.cumsum(steps).tolist(), crf=12)


def odd(path: Path, frames: np.ndarray) -> Path:
    """One column and one row less."""
    kept = np.ascontiguousarray(
        frames[:, : frames.shape[1] - 1 + frames.shape[1] % 2, : frames.shape[2] - 1 + frames.shape[2] % 2]
    )
    return encoded(path, kept, "-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv444p")


def hevc(path: Path, frames: np.ndarray) -> Path:
    return encoded(path, frames, "-c:v", "libx265", "-crf", "12", "-x265-params", "log-level=0", "-pix_fmt", "yuv420p")


def plain(path: Path, frames: np.ndarray) -> Path:
    return encoded(path, frames, *X264)


KINDS = {"plain": plain, "phone": phone, "varying": varying, "odd": odd, "hevc": hevc}
