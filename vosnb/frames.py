"""The readers behind a `Clip`: a video file, image files, an array, an iterator. People use `vosnb.Clip`.

A reader gives frame i as (H, W, 3) uint8 RGB, contiguous and writeable, and the same bytes whichever way it is reached.

Video files are decoded by PyAV in one pass. The list of frames and their times comes from the packets' headers, without
decoding. A frame that is far from a key frame (in many files every frame is: they have one key frame) comes from a cache on
disk, made at the first such request: the same video with key frames close together, coded without loss.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import missing, natural, replacing
from .progress import progress

__all__ = ["Array", "Images", "Reader", "Stream", "Video", "open_reader"]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
MAX_PIXELS = 64_000_000  # of one image; below the size at which Pillow warns of a decompression bomb
_NEAR = 16  # frames: decoding this many to reach one is quicker than anyone notices; beyond it the cache is made
_CHECKED = 8  # frames decoded when a video is opened, to see that its packets told the truth
# what films come in; not lists of other files (concat, HLS), which may name themselves, or what is not theirs
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,gif,flv,ogg,mxf,dv,wtv,h264,hevc,ivf,apng"
_GROUP = 4  # frames from one key frame to the next in a cache file
_TICK = Fraction(1, 1000)  # Matroska's clock, in which frame i of a cache file is shown at tick i
_EIGHT_BIT = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"}  # what x264 keeps without loss


class Reader:
    """Frames by index. `length` is None where it cannot be known; `window` is the 16-bit range shown as 0 … 255, or None."""

    source: Any
    name: str = "clip"
    length: int | None
    height: int
    width: int
    fps: float = 25.0
    window: tuple[float, float] | None = None

    def frame(self, i: int) -> np.ndarray:
        """Frame i, from anywhere; safe to call from several threads."""
        raise NotImplementedError

    def frames(self, indices: range) -> Iterator[np.ndarray]:
        """The frames of one pass, in the order of `indices`."""
        return (self.frame(i) for i in indices)

    def frame_name(self, i: int) -> str:
        return f"{i:05d}"

    def time(self, i: int) -> float:
        """Seconds from the first frame to frame i."""
        return i / self.fps

    def sha256(self) -> str | None:
        """Of the source's bytes; None where they cannot be read twice."""
        return None

    def forget(self) -> None:
        """Removes what was kept on disk to make it quick."""

    def _begin(self, first: np.ndarray, window: tuple[float, float] | None, what: str) -> None:
        """Takes the size, and for 16 bits the window, from the first frame."""
        first = _pixels(first, what)
        if first.dtype == np.uint16:
            low, high = window or np.percentile(first, (0.1, 99.9)).tolist()
            self.window = (float(low), float(high) if high > low else float(low) + 1)
        elif window is not None:
            raise InputError("16-bit frames where a window is given", f"8-bit ones in {what}", "leave the window out")
        self.height, self.width = first.shape[:2]

    def _rgb(self, frame: np.ndarray, what: str) -> np.ndarray:
        """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), 8 or 16 bits, as the clip's (H, W, 3) uint8."""
        frame = _pixels(frame, what)
        if frame.shape[:2] != (self.height, self.width):
            raise _other_size(what, frame.shape[1::-1], (self.width, self.height))
        if (frame.dtype == np.uint16) != (self.window is not None):
            got = f"{8 * frame.dtype.itemsize} bits in {what}"
            raise InputError("frames of one depth, 8 or 16 bits, as the first one", got, "convert them to one depth")
        if self.window is not None:
            frame = _eight_bits(*self.window)[frame]
        if frame.ndim == 2 or frame.shape[2] == 1:
            frame = np.repeat(frame.reshape(self.height, self.width, 1), 3, axis=2)
        return np.array(frame[..., :3], order="C")  # a copy: the array is its owner's, and an iterator may use its buffer again


def open_reader(source: Any, window: tuple[float, float] | None = None) -> Reader:
    """The reader for whatever a person has: a path, a list of image paths, an array, a list or an iterator of frames."""
    if window is not None:
        window = _checked_window(window)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source), window)
    if isinstance(source, (list, tuple)) and source and all(isinstance(s, (str, os.PathLike)) for s in source):
        return Images([Path(s) for s in source], window, source=Path(source[0]).parent)
    if isinstance(source, (list, tuple)) or hasattr(source, "__array__") or hasattr(source, "dtype"):
        return Array(source, window)
    if isinstance(source, Iterable):
        return Stream(source, window)
    raise InputError(
        "a video file, a folder of images, an array (T, H, W, 3) or an iterator of frames",
        repr(source)[:80],
        "give one of these",
    )


def _open_path(source: str, window: tuple[float, float] | None) -> Reader:
    path = Path(source).expanduser()
    if "://" in source:
        raise InputError("a file or a folder", f"the address {source}", f"fetch it first: vosnb clip {source}")
    if path.is_dir():
        return Images(_images_in(path), window, source=path)
    if not path.exists():
        raise InputError("a video file or a folder of images", f"{path}, which does not exist", missing(path))
    if path.stat().st_size == 0:
        raise InputError("a video file or a folder of images", f"{path}, which is empty (0 bytes)", "copy or download it again")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Images([path], window, source=path)
    if window is not None:
        raise InputError("16-bit images or an array where a window is given", f"the video {path}", "leave the window out")
    return Video(path)


# -- pixels ------------------------------------------------------------------------------------------------------------


def _pixels(frame: Any, what: str) -> np.ndarray:
    frame = np.asarray(frame)
    if frame.dtype.kind != "u" or frame.dtype.itemsize > 2:
        do = "scale to 0 … 255 and use .astype(np.uint8)" if frame.dtype.kind in "fb" else "use .astype(np.uint8) or np.uint16"
        raise InputError("frames of uint8 or uint16", f"{frame.dtype} in {what}", do)
    if not (frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] in (1, 3, 4))) or 0 in frame.shape:
        channels_first = frame.ndim == 3 and frame.shape[0] in (1, 3, 4)
        do = "put the channels last: frames.transpose(0, 2, 3, 1)" if channels_first else "reshape it"
        raise InputError("frames of shape (H, W) or (H, W, 3)", f"shape {frame.shape} in {what}", do)
    return frame.astype(np.uint16 if frame.dtype.itemsize == 2 else np.uint8, copy=False)


@cache
def _eight_bits(low: float, high: float) -> np.ndarray:
    """All 65,536 values of 16 bits, mapped linearly: `low` and below to 0, `high` and above to 255."""
    scaled = (np.arange(65536) - low) / (high - low) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _checked_window(window: Any) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in window)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise InputError(
            "a window (lo, hi) of 16-bit values with lo < hi", repr(window), "give what shall be black and what white"
        )
    return low, high


def _other_size(what: str, got: tuple[int, int], first: tuple[int, int]) -> InputError:
    return InputError(
        f"frames of one size, {first[0]}×{first[1]} as the first one", f"{got[0]}×{got[1]} in {what}",
        "crop or scale them to one size, or leave that one out",
    )  # fmt: skip


# -- image files -------------------------------------------------------------------------------------------------------


class Images(Reader):
    """Image files, one frame each, or the pages of one file (TIFF, animated WebP).

    8 bits: read by Pillow, turned as EXIF says, alpha dropped (SAM 2 reads its frames by Pillow too). 16 bits: read by OpenCV.
    The headers of all files are read at the start, 0.1 ms each, so that a frame of another size is found before any work.
    """

    def __init__(self, paths: Sequence[Path], window: tuple[float, float] | None, source: Path):
        self.source, self.name = source, source.resolve().stem if source.is_file() else source.resolve().name
        headers = [_header(path) for path in paths]
        for path, (size, deep, _) in zip(paths, headers, strict=True):
            if size != headers[0][0]:
                raise _other_size(str(path), size, headers[0][0])
            if deep != headers[0][1]:
                got = f"{16 if deep else 8} bits in {path}"
                raise InputError("images of one depth, 8 or 16 bits, as the first one", got, "convert them to one depth")
        pages = headers[0][2] if len(paths) == 1 else 1
        self._pages = [(paths[0], page) for page in range(pages)] if pages > 1 else [(path, 0) for path in paths]
        self._deep = headers[0][1]
        self.length = len(self._pages)
        self._names = [path.stem for path in paths] if pages == 1 else [f"{page:05d}" for page in range(pages)]
        seen: dict[str, Path] = {}
        for path, name in zip(paths, self._names, strict=False):
            if seen.setdefault(name, path) is not path:
                got = f"{seen[name].name} and {path.name} in {source}"
                raise InputError("images with names of their own", got, "keep frames and masks in two folders")
        self._begin(self._read(0), window, str(paths[0]))

    def frame(self, i: int) -> np.ndarray:
        return self._rgb(self._read(i), str(self._pages[i][0]))

    def frame_name(self, i: int) -> str:
        return self._names[i]

    def sha256(self) -> str:
        """Of names and bytes, in the order of the frames."""
        digest = hashlib.sha256()
        for path in dict.fromkeys(path for path, _ in self._pages):
            digest.update(path.name.encode() + b"\0" + _file_digest(path))
        return digest.hexdigest()

    def _read(self, i: int) -> np.ndarray:
        path, page = self._pages[i]
        return _read_deep(path, page) if self._deep else _read_plain(path, page)


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order: img2 before img10."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not files:
        folders = sorted(p.name for p in folder.iterdir() if p.is_dir())
        got = f"none in {folder}" + (f", but the folders {', '.join(folders[:5])}" if folders else "")
        raise InputError("images (JPEG, PNG, TIFF, BMP or WebP) in the folder", got, "choose the folder that holds the frames")
    return sorted(files, key=natural)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong in Pillow, as an `InputError` that names the file."""
    from PIL import Image

    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, str(error)) from None
    except FileNotFoundError:
        raise InputError("an image", f"{path}, which does not exist", "check the path") from None
    except PermissionError:
        raise InputError("an image", f"{path}, which you may not read", "change its permissions") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's ways to say that a file is damaged
        raise InputError("an image that can be read", f"{path} ({error})", "export or download it again") from error


def _header(path: Path) -> tuple[tuple[int, int], bool, int]:
    """(width, height), whether it has 16 bits, the number of pages; without reading the pixels."""
    from PIL import Image

    with _readable(path), Image.open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _too_large(path, f"{width}×{height}")
        if image.mode in ("I", "F"):
            raise InputError("images of 8 or 16 bits", f"32 bits in {path}", "convert it to 16 bits")
        if image.format in ("JPEG", "MPO") and image.getexif().get(0x0112, 1) >= 5:  # orientation: lying on its side
            width, height = height, width
        deep = any(";16" in str(tile[3]) for tile in image.tile)
        pages = getattr(image, "n_frames", 1) if image.format in ("TIFF", "WEBP", "PNG") else 1
        return (width, height), deep, pages


def _too_large(path: Path, got: str) -> InputError:
    return InputError(f"an image of at most {MAX_PIXELS // 10**6} million pixels", f"{got} in {path}", "scale it down first")


def _read_plain(path: Path, page: int) -> np.ndarray:
    from PIL import Image, ImageOps

    with _readable(path), Image.open(path) as image:
        image.seek(page)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _read_deep(path: Path, page: int) -> np.ndarray:
    """16 bits by OpenCV, since Pillow keeps only 8 of 16-bit RGB."""
    import cv2

    read, pages = cv2.imreadmulti(str(path), page, 1, flags=cv2.IMREAD_UNCHANGED)
    if not read or pages[0].dtype != np.uint16:
        raise InputError("a 16-bit image that can be read", str(path), "export or download it again")
    return pages[0] if pages[0].ndim == 2 else pages[0][..., 2::-1]  # BGR(A) to RGB


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# -- arrays and iterators ----------------------------------------------------------------------------------------------


class Array(Reader):
    """An array (T, H, W) or (T, H, W, 1 | 3 | 4) of uint8 or uint16, a memory map, what is indexed alike, a list of frames."""

    source = "array"

    def __init__(self, array: Any, window: tuple[float, float] | None):
        if not isinstance(array, (list, tuple)):
            if not isinstance(getattr(array, "dtype", None), np.dtype):
                array = np.asarray(array)
            if not (len(array.shape) == 4 or (len(array.shape) == 3 and array.shape[2] > 4)):
                do = "for one image give image[None]" if len(array.shape) in (2, 3) else "reshape it"
                raise InputError("an array of shape (T, H, W, 3) or (T, H, W)", f"shape {tuple(array.shape)}", do)
        self._array, self.length = array, len(array)
        if not self.length:
            raise InputError("at least one frame", "an array of none", "check where it comes from")
        self._begin(array[0], window, "frame 0")

    def frame(self, i: int) -> np.ndarray:
        return self._rgb(self._array[i], f"frame {i}")

    def sha256(self) -> str:
        """Of the frames as they are given (RGB, 8 bits), after their number and size."""
        digest = hashlib.sha256(f"{self.length} {self.height} {self.width} ".encode())
        for i in range(self.length):
            digest.update(self.frame(i))
        return digest.hexdigest()


class Stream(Reader):
    """An iterator of frames (a camera, another library): one pass, forwards. The first frame is read at once, for the size."""

    source = "iterator"
    length = None

    def __init__(self, frames: Iterable, window: tuple[float, float] | None):
        self._frames = iter(frames)
        self._passed = False
        try:
            first = next(self._frames)
        except StopIteration:
            raise InputError("at least one frame", "an iterator of none", "check where it comes from") from None
        self._begin(first, window, "frame 0")
        self._first = self._rgb(first, "frame 0")

    def frame(self, i: int) -> np.ndarray:
        if i:
            do = "keep the frames first: clip.save_frames(folder)"
            raise InputError("frame 0, or a pass over all", f"frame {i} of an iterator", do)
        return self._first.copy()

    def frames(self, indices: range) -> Iterator[np.ndarray]:
        if self._passed:
            do = "make it anew, or keep the frames first: clip.save_frames(folder)"
            raise InputError("one pass over an iterator", "a second one", do)
        self._passed = True
        rest = (self._rgb(frame, f"frame {i}") for i, frame in enumerate(self._frames, start=1))
        yield from islice(chain([self._first.copy()], rest), indices.start, indices.stop, indices.step)


# -- video files -------------------------------------------------------------------------------------------------------


class Video(Reader):
    """A video file, through PyAV. Turned as the file says (phones); pixels that are not square stay as they are stored."""

    def __init__(self, path: Path):
        self.source, self.name = path, path.stem
        self._lock = threading.Lock()
        self._near: _Decoder | None = None  # into the file itself, for frames near a key frame
        self._cached: _Decoder | None = None  # into the cache
        self._made: Path | None = None  # the file of the cache
        listed = _index(path)
        with closing(_Decoder(path, listed)) as decoder:
            first = list(islice(decoder.decoded, _CHECKED))
        if not first:
            raise InputError("a video with frames", f"{path}, of which none can be decoded", "re-encode or download it again")
        self._rotation = round(first[0].rotation / 90)
        size = first[0].width, first[0].height
        self.width, self.height = size[::-1] if self._rotation % 2 else size
        index = listed.starting_with([frame.pts for frame in first])
        self._counted = index is None  # times missing or wrong: the frames are counted, once, and read from the cache
        self._index = index or _index(self._cache(None)).evenly(listed.rate)
        self.length, self.fps = len(self._index.pts), self._index.fps

    def frame(self, i: int) -> np.ndarray:
        with self._lock:
            if self._cached is not None:
                return self._shown(self._cached.read(i), i)
            self._near = self._near or self._pass()
            if self._near.distance(i) <= _NEAR:
                return self._shown(self._near.read(i), i)
        cached = self._cache(self._index)  # it may take a while, in which other threads get what is near
        with self._lock:
            if self._cached is None:
                every = range(self.length)  # may be entered anywhere: it leaps to the key frame before
                self._cached = _Decoder(cached, _Index(every, every), threads="SLICE")
            if self._near is not None:
                self._near.close()
                self._near = None
            return self._shown(self._cached.read(i), i)

    def frames(self, indices: range) -> Iterator[np.ndarray]:
        if indices.step < 0:
            for _, group in groupby(indices, lambda i: i // _GROUP):  # from one key frame each
                yield from reversed([self.frame(i) for i in reversed(list(group))])
            return
        with closing(self._pass()) as decoder:
            for i in indices:
                yield self._shown(decoder.read(i), i)

    def time(self, i: int) -> float:
        return float((self._index.pts[i] - self._index.pts[0]) * self._index.tick)

    def sha256(self) -> str:
        return _file_digest(self.source).hex()

    def forget(self) -> None:
        with self._lock:
            for decoder in filter(None, (self._near, self._cached)):
                decoder.close()
            self._near = self._cached = None
            if self._made is not None:
                self._made.unlink(missing_ok=True)

    def _pass(self) -> _Decoder:
        return _Decoder(self._cache(None) if self._counted else self.source, self._index)

    def _shown(self, stored: np.ndarray, i: int) -> np.ndarray:
        shown = np.ascontiguousarray(np.rot90(stored, self._rotation))  # FFmpeg counts counter-clockwise, as NumPy does
        if shown.shape[:2] != (self.height, self.width):
            raise _other_size(f"frame {i} of {self.source}", shown.shape[1::-1], (self.width, self.height))
        return shown

    def _cache(self, index: _Index | None) -> Path:
        """The file in which every frame is near a key frame: found, or made now."""
        import av

        stat = self.source.stat()
        key = f"{self.source.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{av.__version__}"
        self._made = path = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.mkv"
        with _making:
            if path.exists():
                os.utime(path)  # used just now: those unused for longest are deleted first
            else:
                limit = _cache_limit()
                with _allowed(path), replacing(path) as temporary:
                    _transcode(self.source, index, temporary)
                _trim(path, limit)
        return path


@dataclass(frozen=True)
class _Index:
    """The frames of a video file in the order in which they are shown."""

    pts: Sequence[int]  # their times, in units of `tick`; none where the file has no times, or the same one twice
    keys: Sequence[int]  # those frames at which decoding can start
    tick: Fraction = _TICK  # seconds
    rate: float = 25.0  # frames per second, by the file's own word

    def starting_with(self, decoded: Sequence[int | None]) -> _Index | None:
        """Without the frames before the first one that decodes (a cut leaves such); None if decoding contradicts the times."""
        if decoded[0] not in self.pts:
            return None
        first = self.pts.index(decoded[0])
        if list(self.pts[first : first + len(decoded)]) != list(decoded):
            return None
        return replace(self, pts=self.pts[first:], keys=[key - first for key in self.keys if key >= first])

    def evenly(self, rate: float) -> _Index:
        """With the frames of a cache file, whose tick is only a count, at an even rate."""
        return replace(self, tick=1 / Fraction(rate), rate=rate)

    def key(self, i: int) -> int:
        """The key frame at or before frame i; 0 where none is listed."""
        at = bisect_right(self.keys, i)
        return self.keys[at - 1] if at else 0

    @property
    def fps(self) -> float:
        """Average frames per second; the file's own word, which is exact, where the two agree within one frame."""
        if len(self.pts) < 2:
            return self.rate
        seconds = float((self.pts[-1] - self.pts[0]) * self.tick)
        count = len(self.pts) - 1
        return self.rate if abs(seconds * self.rate - count) < 0.5 else count / seconds


def _index(path: Path) -> _Index:
    """Reads the packets' headers, not the pictures. Frames that the file lists and no longer holds keep their place."""
    import av

    container, stream = _open(path)
    with closing(container):
        listed = len(stream.index_entries)
        tick = Fraction(stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        found: list[tuple[int | None, bool]] = []
        read = 0
        try:
            for packet in container.demux(stream):
                read += packet.dts is not None or packet.size > 0  # all but the last, which only flushes the decoder
                if packet.size and not packet.is_discard:  # discarded: before the start that an edit list sets
                    found.append((packet.pts, packet.is_keyframe))
        except av.error.FFmpegError:
            pass  # the data break off here; reading says so at the frame that is missing
    times = {pts for pts, _ in found}
    if None in times or len(times) < len(found) or not found:
        return _Index([], [], tick, rate)
    found.sort()
    pts = [pts for pts, _ in found]
    step = max(1, round(1 / (rate * tick)))
    pts += [pts[-1] + step * (k + 1) for k in range(listed - read)]
    return _Index(pts, [i for i, (_, is_key) in enumerate(found) if is_key], tick, rate)


class _Decoder:
    """A pass over a video's frames that goes forwards, and leaps to a key frame where that saves decoding."""

    def __init__(self, path: Path, index: _Index, threads: str = "AUTO"):
        from av.video.reformatter import VideoReformatter

        self._path, self._index, self._threads = path, index, threads
        self._colours = VideoReformatter()
        self._start()

    def _start(self) -> None:
        self._container, self._stream = _open(self._path)
        self._stream.thread_type = self._threads
        self.decoded = self._decode(self._container.demux(self._stream))  # the frames from here on, as PyAV gives them
        self._next = 0  # the index of the next one
        self._leapt = False

    def close(self) -> None:
        self.decoded.close()
        self._container.close()

    def distance(self, i: int) -> int:
        """How many frames are decoded on the way to frame i."""
        start = self._index.key(i)
        return i - (self._next if start <= self._next <= i else start)

    def read(self, i: int) -> np.ndarray:
        """Frame i, (H, W, 3) uint8 RGB, not yet turned."""
        start, wanted = self._index.key(i), self._index.pts[i]
        if not start <= self._next <= i:
            self._leap(start)
        frame = next((frame for frame in self.decoded if frame.pts is not None and frame.pts >= wanted), None)
        if frame is not None and frame.pts == wanted:
            self._next = i + 1
            return self.rgb(frame)
        if self._leapt:  # some streams cannot be entered exactly at what they call a key frame: do without
            self._index = replace(self._index, keys=[])
            self._restart()
            return self.read(i)
        self._next = len(self._index.pts) + 1  # wherever we are now: not before a frame that is wanted
        got, do = "damaged data in its place", f"re-encode the file, or leave the frame out: clip[:{i}], clip[{i + 1}:]"
        if frame is None:
            got, do = "the end of the data: the file is cut off", f"download it again, or use clip[:{i}]"
        raise InputError(f"frame {i} of {self._path}", got, do)

    def rgb(self, frame: Any) -> np.ndarray:
        return self._colours.reformat(frame, format="rgb24").to_ndarray()

    def _decode(self, packets: Iterable) -> Iterator[Any]:
        import av

        packets = iter(packets)
        while True:
            try:
                packet = next(packets, None)
                frames = packet.decode() if packet is not None else None
            except av.error.FFmpegError:
                continue  # a damaged packet gives no frame; `read` tells when that one is wanted
            if frames is None:
                return
            yield from frames

    def _leap(self, key: int) -> None:
        """To a key frame, or one before it; to the start where the file cannot be entered like that."""
        if key:
            self.decoded.close()
            self._container.seek(self._index.pts[key], stream=self._stream)
            packets = self._container.demux(self._stream)
            first = next(packets)
            if first.is_keyframe and first.pts is not None and first.pts <= self._index.pts[key]:
                self.decoded = self._decode(chain([first], packets))
                self._next, self._leapt = bisect_left(self._index.pts, first.pts), True
                return
        self._restart()

    def _restart(self) -> None:
        self.close()
        self._start()


def _open(path: Path) -> tuple[Any, Any]:
    """(container, video stream) of a file; `InputError` for whatever is not a video that we can decode."""
    import av
    from av.stream import Disposition

    try:
        container = av.open(str(path), metadata_errors="ignore", options={"format_whitelist": _FORMATS})
    except PermissionError:
        raise InputError("a video file", f"{path}, which you may not read", "change its permissions") from None
    except (av.error.FFmpegError, OSError) as error:
        do = "give a video such as .mp4, .mov, .mkv, .webm or .avi; a broken one: download it again"
        raise InputError("a video file", f"{path}, which is none, or cut off ({error.strerror})", do) from None
    stream = container.streams.best("video")
    problem = None
    if stream is None or stream.disposition & Disposition.attached_pic or container.format.name == "tty":  # tty: a text file
        problem = InputError("a file with a video stream", f"{path}, which has none", "give the file with the pictures")
    elif stream.codec_context is None:
        problem = InputError("a video codec that FFmpeg decodes", f"another one in {path}", "re-encode it as H.264")
    if problem is not None:
        container.close()
        raise problem
    return container, stream


# -- the cache of frames -----------------------------------------------------------------------------------------------

_making = threading.Lock()


def _cache_folder() -> Path:
    from platformdirs import user_cache_dir

    return Path(os.environ.get("VOSNB_CACHE") or user_cache_dir("vosnb")) / "frames"


@contextmanager
def _allowed(path: Path) -> Iterator[None]:
    """Where the cache cannot be written, its setting is the way out."""
    try:
        yield
    except InputError as error:
        if str(path) not in error.expected:  # the film's fault
            raise
        raise InputError(error.expected, error.got, "set VOSNB_CACHE to a folder of your own with room") from error


def _cache_limit() -> float:
    """Bytes."""
    text = os.environ.get("VOSNB_CACHE_GB", "20")
    try:
        return float(text) * 1e9
    except ValueError:
        raise InputError("a number of gigabytes in VOSNB_CACHE_GB", repr(text), "set it to a number, such as 20") from None


def _trim(made: Path, limit: float) -> None:
    """Deletes the entries unused for longest, but not `made`, until the rest fits; and what killed runs left behind."""
    entries = {p: p.stat() for p in made.parent.glob("*.mkv")}
    total = sum(stat.st_size for stat in entries.values())
    for path, stat in sorted(entries.items(), key=lambda entry: entry[1].st_mtime):
        if path.name.startswith("."):
            if time.time() - stat.st_mtime > 86400:
                path.unlink(missing_ok=True)
        elif total > limit and path != made:
            path.unlink(missing_ok=True)
            total -= stat.st_size


class _NotKept(Exception):
    """The quick form of the cache would not give the same colours back."""


def _transcode(source: Path, index: _Index | None, target: Path) -> None:
    """Writes the frames without loss and with a key frame at least every fourth, frame i at tick i (damaged ones leave a gap).

    H.264 keeps 8-bit pictures as they were decoded and is quick to read; a key frame every fourth is a third of the size of
    key frames only (720p). What it does not keep (odd sizes, other pixel formats, interlaced frames, frames whose form
    changes) is stored as the final RGB, in FFV1.
    """
    try:
        _write_cache(source, index, target, final=False)
    except _NotKept:
        _write_cache(source, index, target, final=True)


def _write_cache(source: Path, index: _Index | None, target: Path, final: bool) -> None:
    import av

    with closing(_Decoder(source, index or _Index([], []))) as decoder:
        first = next(decoder.decoded)
        form, colours = _form(first), decoder.rgb(first)
        if not final and (form[2] not in _EIGHT_BIT or first.width % 2 or first.height % 2 or first.interlaced_frame):
            raise _NotKept
        total = len(index.pts) if index else None
        place = {pts: i for i, pts in enumerate(index.pts)} if index else None
        slow = total is None or total * first.width * first.height > 3e8  # some seconds
        frames = progress(chain([first], decoder.decoded), total, f"caching {source.name}", show=slow)
        with av.open(str(target), "w", format="matroska") as container:
            options = {"level": "3", "slices": "4", "g": "1"} if final else {"qp": "0", "preset": "ultrafast", "g": str(_GROUP)}
            stream = container.add_stream("ffv1" if final else "libx264", rate=1 / _TICK, options=options)
            stream.width, stream.height, stream.pix_fmt = first.width, first.height, "bgr0" if final else form[2]
            stream.codec_context.time_base = _TICK
            if not final:
                stream.codec_context.colorspace, stream.codec_context.color_range = first.colorspace, first.color_range
            for count, frame in enumerate(frames):
                i = place.get(frame.pts) if place else count
                if i is None:  # before the clip's first frame
                    continue
                if not final and _form(frame) != form:
                    raise _NotKept
                if _form(frame)[:2] != form[:2]:
                    raise _other_size(f"frame {i} of {source}", _form(frame)[:2], form[:2])
                if final:
                    frame = av.VideoFrame.from_ndarray(decoder.rgb(frame), format="rgb24").reformat(format="bgr0")
                frame.pts, frame.time_base, frame.pict_type = i, _TICK, 0  # 0: the encoder chooses, a key frame
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    if not final:
        with closing(_Decoder(target, _Index([0], [0]))) as written:
            if not np.array_equal(written.read(0), colours):
                raise _NotKept


def _form(frame: Any) -> tuple:
    """What the colours of a decoded frame depend on, beside its data; the size first."""
    return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, frame.interlaced_frame
