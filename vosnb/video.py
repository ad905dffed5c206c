"""Arrays to films that browsers play: H.264, yuv420p, index first; VP9 with alpha; and small GIFs for a README."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .errors import InputError
from .files import replacing

__all__ = ["write_alpha_video", "write_gif", "write_video"]

SUFFIXES = (".mp4", ".mov", ".mkv")
_TICKS = 90_000  # per second: the clock of MPEG streams, fine enough for any camera's time stamps


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    times: Iterable[float] | None = None,
    crf: float = 20,
) -> Path:
    """Encodes `frames`, each (H, W, 3) uint8 RGB of one size, as an H.264 .mp4; streams, so memory stays flat.

    `times` (seconds, one per frame, increasing, or decreasing as in a reversed clip) keeps a variable frame rate; without
    it frames are 1/`fps` apart. The film starts at the first time. Odd sizes get their last column or row twice, as yuv420p
    needs even ones. `crf` is x264's quality: 0 lossless, 20 good, 30 coarse. The colour matrix is what players assume when
    they do not look: BT.601 below 720 lines, BT.709 from there; it is also written into the file.

    `InputError`: no frame, frames that differ in size, times out of order or too few, nowhere to write. No file is left.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError("a video file name that ends in " + ", ".join(SUFFIXES), path.name, "add .mp4")
    options = {"crf": str(crf), "preset": "veryfast"}
    if times is not None:
        options["bf"] = "0"  # B-frames are stored out of order, and the file would end too early where rates vary
    return _encode(path, frames, _Form("libx264", 3, "rgb24", "yuv420p", options, {"movflags": "+faststart"}), fps, times)


def write_alpha_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    times: Iterable[float] | None = None,
    crf: float = 24,
) -> Path:
    """Encodes `frames`, each (H, W, 4) uint8 RGBA, alpha straight, as a VP9 .webm with alpha, which browsers and editors lay over
    other pictures. `crf` is libvpx's quality: 0 best, 24 good, 40 coarse. Everything else as in `write_video`.

    FFmpeg's own VP9 decoder drops the alpha: read such a film by `libvpx-vp9`.
    """
    path = Path(path)
    if path.suffix.lower() != ".webm":
        raise InputError("a video file name that ends in .webm", path.name, "add .webm")
    # alternate reference frames would be frames of their own, which alpha cannot have
    options = {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"}
    return _encode(path, frames, _Form("libvpx-vp9", 4, "rgba", "yuva420p", options, {}), fps, times)


@dataclass(frozen=True)
class _Form:
    """How pixels come, how they are kept, and what the encoder and the container are told."""

    codec: str
    channels: int
    given: str
    kept: str
    options: dict[str, str]
    container: dict[str, str]


def _encode(path: Path, frames: Iterable[np.ndarray], form: _Form, fps: float, times: Iterable[float] | None) -> Path:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    rate = _rate(fps)
    first, frames = _first(frames, form.channels)
    height, width = first.shape[:2]
    with replacing(path) as temporary, av.open(str(temporary), "w", options=form.container) as file:
        stream = file.add_stream(form.codec, rate=rate, options=form.options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, form.kept
        matrix = Colorspace.ITU709 if height >= 720 else Colorspace.ITU601
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.colorspace = 1 if height >= 720 else 6  # H.273: BT.709, SMPTE 170M (= BT.601)
        context.color_primaries = context.color_trc = 1
        context.color_range = ColorRange.MPEG
        for image, pts in zip(frames, _stamps(times, rate), strict=False):
            if image.shape != first.shape:
                raise InputError(f"frames of {width}×{height}", f"one of shape {image.shape}", "give frames of one size")
            frame = av.VideoFrame.from_ndarray(_even(image), format=form.given)
            frame = frame.reformat(format=form.kept, dst_colorspace=matrix, dst_color_range=ColorRange.MPEG)
            frame.pts, frame.time_base = pts, context.time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def _rate(fps: float) -> Fraction:
    if not (isinstance(fps, (int, float, Fraction, np.number)) and math.isfinite(fps) and fps > 0):
        raise InputError("frames per second above 0", repr(fps), "25 is a usual rate")
    return Fraction(fps).limit_denominator(1001) or Fraction(
        1, round(1 / fps)
    )  # 1001, so that 29.97 is the broadcast rate 30000/1001


def _first(frames: Iterable[np.ndarray], channels: int = 3) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError("at least one frame", "none", "check the clip's range")
    first = np.asarray(first)
    if first.ndim != 3 or first.shape[2] != channels or first.dtype != np.uint8 or 0 in first.shape:
        raise InputError(
            f"frames (H, W, {channels}) uint8 {'RGBA'[:channels]}", f"shape {first.shape}, {first.dtype}", "convert them first"
        )
    return first, itertools.chain([first], frames)


def _stamps(times: Iterable[float] | None, rate: Fraction) -> Iterator[int]:
    """Time stamps in ticks from 0."""
    if times is None:
        yield from (round(i * _TICKS / rate) for i in itertools.count())
        return
    start, last = None, -1
    for time in times:
        start = time if start is None else start
        stamp = round(abs(time - start) * _TICKS)
        if stamp <= last:
            raise InputError("times in order", f"{time:g} s again or out of order", "sort the frames, or leave times out")
        yield stamp
        last = stamp
    raise InputError("a time for every frame", "fewer times than frames", "give as many times as frames")


def _even(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(image)


def write_gif(path: str | Path, frames: Iterable[np.ndarray], fps: float, width: int = 480) -> Path:
    """A looping GIF of `frames`, each (H, W, 3) uint8 RGB, made `width` pixels wide; for a few seconds in a README.

    GIF counts in hundredths of a second: 30 fps become 33. `InputError` as in `write_video`.
    """
    from PIL import Image

    duration = max(20, round(100 / _rate(fps)) * 10)  # ms; players slow anything quicker than 20 down
    first, frames = _first(frames)
    size = width, max(1, round(first.shape[0] * width / first.shape[1]))
    small = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames]
    some = np.concatenate([np.asarray(image)[::2, ::2] for image in small[:: math.ceil(len(small) / 8)]])
    palette = Image.fromarray(some).quantize(128, Image.Quantize.MEDIANCUT)  # one for all: choosing it takes longest
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in small]
    with replacing(path) as temporary:
        images[0].save(temporary, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True)
    return Path(path)
