"""Frames in. A `Clip` is a video file, a folder of images, an array or an iterator, read when asked, as RGB."""

from __future__ import annotations

import copy
import operator
import os
import queue
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from .errors import InputError
from .files import replacing_folder
from .frames import Reader, open_reader
from .progress import progress

__all__ = ["Clip", "read_ahead"]

T = TypeVar("T")
_KEEP = "keep the frames first: clip.save_frames(folder)"
_ENDLESS = sys.maxsize  # the stop of a clip whose length is not known


class Clip:
    """Lazy frames, `(T, H, W, 3)` uint8 RGB: nothing is resized, nothing is kept in memory.

    >>> clip = Clip("bedroom.mp4")
    >>> clip
    Clip bedroom: 200 frames, 960×540, 30 fps, 6.67 s
    >>> clip[0]                   # (540, 960, 3) uint8
    >>> for image in clip[50:]:   # one pass, read ahead on another thread
    >>> clip[::-1]                # a view, as every slice is; reversed tracking is tracking on this

    `source` is one of

    - a video file: anything FFmpeg reads. Phone rotation is applied, edit lists are kept, every frame has its own time;
      the sample aspect ratio is ignored (the mask belongs to the stored pixels);
    - a folder of JPEG, PNG, TIFF, BMP or WebP images in natural order (img2 before img10), any names; or one multi-page TIFF;
      or a list of image paths. EXIF orientation is applied (8 bits), alpha dropped, grey becomes three equal channels;
    - an array `(T, H, W, 3)` or `(T, H, W)` of uint8 or uint16 (a memory map is fine), or a list of frames;
    - an iterator of frames: one pass, forwards, without a length; `clip[0]` may be looked at before;
    - another clip.

    **16 bits** become 8 by one linear map for the whole clip: `window = (lo, hi)` goes to 0 … 255, what lies outside is
    clipped. By default lo and hi are the 0.1 and 99.9 percentiles of the first frame; `clip.window` says which were used.

    **Access.** `clip[i]` is byte-equal to what a pass gives. A pass over a video file decodes straight through. Single frames
    far from a key frame come from a cache on disk, made at the first such request (it takes two or three passes' time and is
    lossless, hence large: 0.2 MB a frame of 960×540). It lies in the user's cache folder or in `$VOSNB_CACHE`; beyond
    `$VOSNB_CACHE_GB` (20) the entries unused for longest are deleted.

    `fps` overrides the source's rate (images, arrays and iterators have none: 25), and then times are even. `InputError` for
    whatever is no such source, now where that can be seen without decoding, else at the frame that fails.
    """

    def __init__(
        self, source: Any, *, fps: float | None = None, name: str | None = None, window: tuple[float, float] | None = None
    ):
        if fps is not None and not (isinstance(fps, (int, float, np.number)) and 0 < fps < float("inf")):
            raise InputError("a frame rate above 0", repr(fps), "give frames per second, such as 25")
        if isinstance(source, Clip):
            if window is not None:
                raise InputError("a window for a new source", "one for a clip", "give it to the first Clip(…)")
            self._reader, self._range, self._fps = source._reader, source._range, source._fps
            name = name or source.name
        else:
            self._reader: Reader = open_reader(source, window)
            self._range = range(_ENDLESS if self._reader.length is None else self._reader.length)
            self._fps: float | None = None
        self._fps = self._fps if fps is None else float(fps)
        self.name = name or self._reader.name

    # -- frames ----------------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, i: slice) -> Clip: ...
    def __getitem__(self, i: int | slice) -> np.ndarray | Clip:
        """`clip[i]`: frame i, (H, W, 3) uint8 RGB, from the end if negative. `clip[a:b:c]`: a view."""
        if isinstance(i, slice):
            if self.length is None and any(v is not None and v < 0 for v in (i.start, i.stop, i.step)):
                raise InputError("a slice forwards, counted from the start", f"{i} of an iterator", _KEEP)
            view = copy.copy(self)
            view._range = self._range[i]
            return view
        i = operator.index(i)
        if self.length is None and i < 0:
            raise InputError("a frame counted from the start", f"{i} of an iterator", _KEEP)
        try:
            return self._reader.frame(self._range[i])
        except IndexError:
            raise IndexError(f"frame {i} of a clip of {len(self._range)} frames") from None

    def __iter__(self) -> Iterator[np.ndarray]:
        return read_ahead(self._reader.frames(self._range))

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(f"a clip over an iterator has no length; count while reading, or {_KEEP}")
        return len(self._range)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        frames = np.stack(list(self)) if len(self) else np.empty(self.shape, np.uint8)
        return frames if dtype is None else frames.astype(dtype, copy=False)

    # -- what is known of it ---------------------------------------------------------------------------------------

    @property
    def length(self) -> int | None:
        """The number of frames; None for an iterator, where `len(clip)` is a `TypeError`."""
        return None if self._reader.length is None else len(self._range)

    @property
    def height(self) -> int:
        return self._reader.height

    @property
    def width(self) -> int:
        return self._reader.width

    @property
    def shape(self) -> tuple[int | None, int, int, int]:
        """(T, H, W, 3); T is None for an iterator."""
        return self.length, self.height, self.width, 3

    @property
    def fps(self) -> float:
        """Frames per second on average. `clip[::2]` has half the rate, so that it plays as fast as before."""
        return (self._fps or self._reader.fps) / abs(self._range.step)

    @property
    def times(self) -> np.ndarray:
        """(T,) float64: seconds of each frame, from the source's first; decreasing in a reversed clip."""
        return np.array([i / self._fps if self._fps else self._reader.time(i) for i in self._known()], dtype=np.float64)

    @property
    def rate_is_constant(self) -> bool:
        """Whether frames follow each other evenly: within 10 % and the 2 ms to which containers round."""
        steps = np.abs(np.diff(self.times)) if self.length is not None else np.zeros(0)
        return bool(len(steps) == 0 or (np.abs(steps - np.median(steps)) <= 0.1 * np.median(steps) + 0.002).all())

    @property
    def names(self) -> list[str]:
        """One name a frame, unique: the image file's stem, else the frame's number in the source (00000, 00001, …)."""
        return [self._reader.frame_name(i) for i in self._known()]

    @property
    def source(self) -> Path | str:
        """The path, or "array", or "iterator"."""
        return self._reader.source

    @property
    def taken(self) -> range:
        """Which of the source's frames these are: range(0, 200), or another one in a slice."""
        return self._known()

    @property
    def window(self) -> tuple[float, float] | None:
        """The 16-bit values that became 0 and 255; None for 8-bit sources."""
        return self._reader.window

    @cached_property
    def sha256(self) -> str | None:
        """Of the whole source, whatever the slice: a file's bytes; for images names and bytes; None for an iterator."""
        return self._reader.sha256()

    def forget(self) -> None:
        """Removes the source's frames from the cache on disk; the next request for a single frame makes it anew."""
        self._reader.forget()

    def _known(self) -> range:
        len(self)  # a TypeError for an iterator
        return self._range

    def __repr__(self) -> str:
        if self.length is None:
            return f"Clip {self.name}: frames from an iterator, {self.width}×{self.height}, {self.fps:g} fps"
        r = self._range
        every = f", every {abs(r.step)}" if abs(r.step) > 1 else ""
        part = f" ({r[0]} … {r[-1]}{every})" if r and r != range(self._reader.length) else ""
        rate = f"{self.fps:.4g} fps" + ("" if self.rate_is_constant else " on average")
        frames = f"{len(r)} frame{'' if len(r) == 1 else 's'}"
        return f"Clip {self.name}: {frames}{part}, {self.width}×{self.height}, {rate}, {len(r) / self.fps:.2f} s"

    # -- to disk ---------------------------------------------------------------------------------------------------

    def save_frames(self, folder: str | os.PathLike, suffix: str = ".jpg", overwrite: bool = False) -> Clip:
        """Writes the frames as `folder/NAME.jpg` (quality 95) or `.png`, all or none, and returns the clip of that folder.

        Names are kept; those of a reversed clip would sort the other way round, so it is numbered from 00000.
        `InputError` where the folder has files in it (unless `overwrite`) or cannot be written.
        """
        from PIL import Image

        if suffix.lower() not in (".jpg", ".jpeg", ".png"):
            raise InputError("the suffix .jpg or .png", repr(suffix), "choose one of these")
        if self.length == 0:
            raise InputError("at least one frame to write", "an empty clip", "check the slice")
        numbered = self.length is None or self._range.step < 0
        names = (f"{i:05d}" for i in range(_ENDLESS)) if numbered else iter(self.names)
        with replacing_folder(folder, overwrite) as temporary:
            for frame in progress(self, self.length, "writing frames"):
                Image.fromarray(frame).save(temporary / f"{next(names)}{suffix}", quality=95)
        return Clip(folder, fps=self.fps, name=self.name)


def read_ahead(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """Passes `items` through, made up to `depth` ahead on a thread of their own.

    An exception there is raised here, after the items before it. When the consumer stops (a `break`, an exception), the thread
    ends with the item at hand and closes `items`, if that is a generator.
    """
    made: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def make() -> None:
        try:
            for item in items:
                room.acquire()
                if stopped.is_set():
                    break
                made.put(("item", item))
            made.put(("end", None))
        except BaseException as error:
            made.put(("error", error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=make, name="vosnb-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            room.release()
            yield value
    finally:
        stopped.set()
        room.release()
        if threading.current_thread() is not thread:  # where the garbage collector is what stops us
            thread.join()
