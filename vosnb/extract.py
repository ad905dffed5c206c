"""A clip cut out of a film: from a web address, from a file, or from the embedded turbulence."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from .errors import InputError
from .files import check_new, check_result, replacing, scratch
from .progress import progress

__all__ = ["extract", "parse_time"]

Time = str | float


def extract(
    source: str | Path,
    start: Time | None = None,
    end: Time | None = None,
    out: str | Path = "data",
    name: str | None = None,
    height: int = 1080,
    sound: bool = True,
    overwrite: bool = False,
) -> Path:
    """Cuts `start` … `end` out of `source` into an .mp4 in the folder `out` (H.264 yuv420p, AAC, index first); its path.

    `source` is an http(s) address that yt-dlp knows, a video file, or "turbulence", the embedded clip. `height` is the most
    lines to download, where the site offers a choice. Times are read by `parse_time`; an end up to the next whole second after
    the film's is the film's. The frame rate becomes constant, rotation is applied, and an odd last column or row is dropped.

    The file is `{name}_{start}_{end}.mp4`, times as digits of minutes and seconds: fluids_11, 13:21, 14:02 give
    fluids_11_1321_1402.mp4. Hours go in front where there are any (10203), fractions behind a dash (1321-5). Without a start it
    says 0000, without an end `end`, without both just `{name}.mp4`. `name` is the file's or the film's by default; what is
    neither a letter nor a digit, dot or dash becomes `_`.

    `InputError`: no such source, no network, a time that is none or lies outside of the film, an existing file without
    `overwrite`, no room. Nothing is left then.
    """
    begin, until = _span(start, end)
    film = _find(str(source), height, sound)
    _within(begin, until, film.length)
    times = "" if start is None and end is None else f"_{_digits(begin)}_{'end' if until is None else _digits(until)}"
    target = Path(out) / f"{_clean(name or film.name)}{times}.mp4"
    check_result(target, (), source)
    check_new(target, overwrite)
    with replacing(target) as temporary, scratch(target) as folder:
        film.cut(temporary, begin, until, folder)
    return target


def parse_time(value: Time) -> float:
    """Seconds from "13:21", "1:02:03.5", "801" or a number; `InputError` for anything else."""
    hint = "give seconds, minutes:seconds or hours:minutes:seconds, such as 13:21 or 801.5"
    *higher, last = str(value).strip().split(":")
    if isinstance(value, bool) or len(higher) > 2 or not all(re.fullmatch("[0-9]+", part) for part in higher):
        raise InputError("a time", repr(value), hint)
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", last) or math.isinf(float(last)):
        raise InputError("a time", repr(value), hint)
    first, *rest = *map(float, higher), float(last)
    if any(part >= 60 for part in rest):
        raise InputError("minutes and seconds below 60", repr(value), hint)
    return functools.reduce(lambda whole, part: 60 * whole + part, rest, first)


def _span(start: Time | None, end: Time | None) -> tuple[float, float | None]:
    begin, until = 0.0 if start is None else parse_time(start), None if end is None else parse_time(end)
    if until is not None and until <= begin:
        raise InputError(f"an end after the start, {_clock(begin)}", _clock(until), "correct one of the two")
    return begin, until


def _within(begin: float, until: float | None, length: float | None) -> None:
    """`InputError` where the span leaves a film of `length` seconds (None: not known yet)."""
    if length is None:
        return
    if begin >= length:
        raise InputError(f"a start before the film's end, {_clock(length)}", _clock(begin), "start earlier")
    if until is not None and until > math.ceil(length):  # players show whole seconds
        raise InputError(f"an end by the film's, {_clock(length)}", _clock(until), "end earlier, or leave the end out")


def _clock(seconds: float) -> str:
    """The inverse of `parse_time`, to the millisecond: 1:02:03.5."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    text = f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes:02}:{second:02}"
    return text + (f".{thousandths:03}".rstrip("0") if thousandths else "")


def _digits(seconds: float) -> str:
    return _clock(seconds).replace(":", "").replace(".", "-")


def _clean(name: str) -> str:
    """A file name that every system takes; letters of any alphabet stay."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:60] or "clip"


@dataclass(frozen=True)
class _Film:
    """What is known of a source before work begins; `cut(target, begin, until, folder)` does it, with `folder` for scratch."""

    name: str
    length: float | None  # seconds
    cut: Callable[[Path, float, float | None, Path], None]


def _find(source: str, height: int, sound: bool) -> _Film:
    if source == "turbulence":
        return _embedded()
    if re.match("https?://", source, re.IGNORECASE):
        return _web(source, height, sound)
    file = Path(source)
    if not file.is_file():
        raise InputError("a video file, an http(s) address or 'turbulence'", repr(source), "check the path")
    look = _look(file)
    return _Film(file.stem, look.length, lambda target, begin, until, folder: _cut(file, target, begin, until, sound, folder))


def _embedded() -> _Film:
    from .synth import turbulence
    from .video import write_video

    usual = turbulence()

    def cut(target: Path, begin: float, until: float | None, folder: Path) -> None:
        if until is None:
            until = usual.frames / usual.fps
            _within(begin, until, until)
        first = round(begin * usual.fps)
        last = max(first + 1, round(until * usual.fps))
        images = (image for image, _ in progress(turbulence(frames=last), last, "turbulence"))
        write_video(target, itertools.islice(images, first, None), usual.fps)

    return _Film("turbulence", None, cut)  # it flows on as long as one asks for


def _web(url: str, height: int, sound: bool) -> _Film:
    """A film on the web, looked up but not downloaded yet."""
    most = f"[height<=?{height}]"
    picture = f"bv*{most}[vcodec^=avc1]", f"bv*{most}", f"b{most}", "b"  # H.264 where there is a choice: every tool reads it
    options = {
        "format": "/".join([f"{picture[0]}+ba", f"{picture[1]}+ba", *picture[2:]] if sound else picture),
        "noplaylist": True,
        "cachedir": False,
        "socket_timeout": 20,
        "logger": _Silent(),
    }
    info = _yt_dlp(options, lambda client: client.extract_info(url, download=False))
    if info.get("_type", "video") != "video":
        raise InputError("the address of one film", f"a list of films at {url}", "give the address of one of them")
    if info.get("is_live"):
        raise InputError("a film that has ended", f"a live stream at {url}", "wait for its end")

    def cut(target: Path, begin: float, until: float | None, folder: Path) -> None:
        from imageio_ffmpeg import get_ffmpeg_exe

        here = {"paths": {"home": str(folder)}, "outtmpl": "film.%(ext)s", "ffmpeg_location": get_ffmpeg_exe()}
        done = _yt_dlp({**options, **here, "progress_hooks": [_Downloaded()]}, lambda client: client.process_ie_result(info))
        _cut(Path(done["requested_downloads"][0]["filepath"]), target, begin, until, sound, folder)

    return _Film(info["title"], info.get("duration"), cut)


def _yt_dlp(options: dict[str, Any], call: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    from yt_dlp import YoutubeDL
    from yt_dlp.utils import YoutubeDLError

    try:
        with YoutubeDL(options) as client:
            return call(client)
    except YoutubeDLError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).removeprefix("ERROR: ")
    reason = re.split(r" \(caused by|; please report", plain)[0]
    do = "check the address and the network; a site that changed may need: pip install -U 'yt-dlp[default]'"
    # raised out here: its context would be yt-dlp's error, which holds the answer and with it an open socket
    raise InputError("a film that yt-dlp can download", f"'{reason}'", do)


class _Silent:
    """yt-dlp raises what goes wrong; it need not print it too."""

    def debug(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


class _Pushed:
    """`progress` pulls; downloads and encoders push. `to(n)` says that n of `total` are done."""

    def __init__(self, total: int | None, label: str, unit: str):
        self._items = progress(itertools.count() if total is None else range(total), total, label, unit)
        self._done = -1
        self.to(0)

    def to(self, done: int) -> None:
        while self._done < done:
            next(self._items, None)
            self._done += 1


class _Downloaded:
    """A hook for yt-dlp: a bar per file (picture and sound may come apart)."""

    def __init__(self) -> None:
        self._bars: dict[str, _Pushed] = {}

    def __call__(self, state: dict[str, Any]) -> None:
        total = state.get("total_bytes") or state.get("total_bytes_estimate")
        if state["filename"] not in self._bars:
            self._bars[state["filename"]] = _Pushed(math.ceil(total / 1e6) if total else None, "download", "MB")
        self._bars[state["filename"]].to(math.ceil(state.get("downloaded_bytes", 0) / 1e6))


@dataclass(frozen=True)
class _Look:
    length: float  # of the picture, seconds; the sound may last longer
    rate: Fraction  # of the constant frame rate to write, 1/s
    size: tuple[int, int]  # width, height as shown, after rotation


def _look(file: Path) -> _Look:
    import av

    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            length = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, av.time_base)
            # a film of variable rate may call itself 1000 frames per second
            rates = [rate for rate in (stream.guessed_rate, stream.average_rate) if rate and rate <= 120]
            if not (length and rates):
                raise InputError("a film with a length and a frame rate", str(file), "is it a still image or a raw stream?")
            size = frame.width, frame.height
            return _Look(float(length), rates[0], size[::-1] if frame.rotation % 180 else size)
    except (av.FFmpegError, IndexError, StopIteration) as error:
        reason = error.strerror if isinstance(error, av.FFmpegError) else "no picture in it"
        raise InputError("a video file", f"{file}: {reason}", "check that it plays and is whole") from error


def _cut(source: Path, target: Path, begin: float, until: float | None, sound: bool, folder: Path) -> None:
    """Re-encodes, since a copy could begin on key frames only.

    moviepy 2.2 with a recent ffmpeg needs guarding: it misses a phone's rotation (and squashes the picture), counts variable
    frame rates by their average, repeats the last frame where a file ends early, and waits forever for a decoder that has
    much to complain about. And it leaves open pipes to be closed by the garbage collector; hence the collected warnings.
    """
    from moviepy import VideoFileClip

    look = _look(source)
    _within(begin, until, look.length)
    count = max(1, round((min(until or math.inf, look.length) - begin) * look.rate))
    matrix = "bt709" if look.size[1] >= 720 else "bt601"  # what players assume of films that do not say
    even = [side // 2 * 2 for side in look.size]
    with warnings.catch_warnings(record=True) as repeated:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "In file .* bytes wanted but", UserWarning)
        try:
            film = VideoFileClip(str(source), audio=sound, fps_source="tbr", target_resolution=look.size)
            try:
                for part in filter(None, (film, film.audio)):
                    part.get_frame(begin)  # the decoder starts again here, and from now on runs through
                    threading.Thread(target=_drain, args=[part.reader.proc.stderr], daemon=True).start()
                clip = film.subclipped(begin, min(begin + float(count / look.rate), film.duration))
                clip = clip.cropped(x1=0, y1=0, width=even[0], height=even[1])
                clip.duration = float((count + Fraction(1, 4)) / look.rate)  # it knows hundredths of seconds and rounds down
                clip.write_videofile(
                    str(target), fps=float(look.rate), codec="libx264", preset="veryfast", audio_codec="aac",
                    temp_audiofile=str(folder / "sound.m4a"), logger=_logger(repeated),
                    ffmpeg_params=[
                        # moviepy rounds the rate to two digits: number the frames again by the exact one
                        "-vf", f"scale=out_color_matrix={matrix}:out_range=tv,setpts=N/({look.rate})/TB", "-r", str(look.rate),
                        "-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart",
                    ],
                )  # fmt: skip
            finally:
                film.close()
        except OSError as error:
            reason = [line for line in str(error).splitlines() if line.strip()][-1].strip()
            raise InputError("a film that ffmpeg can read, and room for the result", f"'{reason}'", "check both") from error
    try:  # moviepy does not ask how ffmpeg ended
        written = _look(target).length
    except InputError as error:
        raise InputError(f"{count} frames written", "an unfinished file", "is the disk full?") from error
    if abs(written - count / look.rate) > 1.5 / look.rate:
        raise InputError(f"{count} frames written", f"{written:.2f} s of film", "is the disk full?")


def _drain(pipe: IO[bytes]) -> None:
    with contextlib.suppress(ValueError), pipe:  # moviepy may close it first
        for _ in pipe:
            pass


def _logger(repeated: list[warnings.WarningMessage]) -> Any:
    """For moviepy: a bar of frames; and the end of it, where the film has ended early."""
    from proglog import ProgressBarLogger

    class Frames(ProgressBarLogger):
        def bars_callback(self, bar: str, attr: str, value: int, old_value: int | None = None) -> None:
            if bar != "frame_index":
                return
            if attr == "total":
                self.shown = _Pushed(value, "cut", "frame")
            elif attr == "index":
                self.shown.to(value)
            if len(repeated) > 2:
                raise InputError("a film that is whole", "one whose frames end early", "end earlier, or get the file again")

    return Frames()
