"""The Clip: every way to a frame gives the same bytes, slices are views, and bad input says what to do."""

import gc
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vosnb import frames
from vosnb.clip import Clip, read_ahead
from vosnb.errors import InputError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NOISY = "testsrc2=size=64x48:rate=25:duration=1.6,noise=alls=30:allf=t"  # 40 frames that compress badly
ODD = NOISY + ",scale=65:47"
H264 = ["-pix_fmt", "yuv420p", "-c:v", "libx264"]
VIDEOS = {  # name: the ffmpeg arguments that make it, with {x} for another video of this list
    "one_key.mp4": ["-lavfi", NOISY, *H264, "-g", "1000", "-bf", "3", "-movflags", "+faststart"],
    "groups.mkv": ["-lavfi", NOISY, *H264, "-g", "10", "-x264-params", "open-gop=1:bframes=3"],
    "odd.webm": ["-lavfi", ODD, "-pix_fmt", "yuv420p", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"],
    "uneven.mp4": ["-lavfi", NOISY + ",select='lt(n,20)+not(mod(n,3))'", "-fps_mode", "vfr", *H264, "-bf", "2"],
    "phone.mp4": ["-display_rotation", "90", "-i", "{one_key.mp4}", "-c", "copy"],
    "trimmed.mp4": ["-ss", "0.5", "-i", "{one_key.mp4}", "-c", "copy"],
    "ten_bit_hevc.mp4": ["-lavfi", NOISY, "-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params", "log-level=0"],
    "full_range.mp4": ["-lavfi", NOISY + ",scale=out_range=pc:out_color_matrix=bt709,format=yuv420p", "-c:v", "libx264",
                       "-color_range", "pc", "-colorspace", "bt709"],
    "interlaced.ts": ["-lavfi", NOISY, *H264, "-flags", "+ildct+ilme", "-x264-params", "tff=1"],
    "refreshed.mp4": ["-lavfi", NOISY, *H264, "-x264-params", "intra-refresh=1:keyint=12"],  # its key frames are none
    "no_times.avi": ["-lavfi", NOISY, *H264, "-bf", "2"],  # AVI knows no order of display
}  # fmt: skip


def ffmpeg(*arguments: str) -> None:
    from imageio_ffmpeg import get_ffmpeg_exe

    subprocess.run([get_ffmpeg_exe(), "-y", "-v", "error", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """name → path, made when first asked for."""
    folder = tmp_path_factory.mktemp("videos")

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            ffmpeg(*[str(make(a[1:-1])) if a.startswith("{") else a for a in VIDEOS[name]], str(path))
        return path

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VOSNB_CACHE", str(folder))
    return folder / "frames"


def raw(path: Path, height: int, width: int) -> np.ndarray:
    """The frames according to the ffmpeg program."""
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [
        get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        str(path),
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    out = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(out, np.uint8).reshape(-1, height, width, 3)


def numbered(length: int, height: int = 4, width: int = 6) -> np.ndarray:
    """Grey frames (T, H, W) uint8 whose value is their number."""
    return np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None], (length, height, width))


def save(folder: Path, name: str, array: np.ndarray, **options) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(array).save(folder / name, **options)


# -- video files: one frame, whichever way ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIDEOS)
def test_a_frame_is_the_same_however_it_is_reached(name, videos, cache, monkeypatch):
    clip = Clip(videos(name))
    frames_of_a_pass = list(clip)
    assert len(frames_of_a_pass) == len(clip) > 20
    assert len({frame.tobytes() for frame in frames_of_a_pass}) == len(clip)  # so that a neighbour would be noticed
    for near in (frames._NEAR, -1):  # by the rule, then all from the cache
        monkeypatch.setattr(frames, "_NEAR", near)
        clip = Clip(videos(name))
        for i in np.random.default_rng(0).permutation(len(clip)):
            np.testing.assert_array_equal(clip[i], frames_of_a_pass[i], f"clip[{i}]")
    assert list(cache.glob("*.mkv"))
    for part in (slice(None, None, -1), slice(23, 31), slice(3, None, 9), slice(22, 5, -3), slice(11, 12)):
        for got, expected in zip(clip[part], frames_of_a_pass[part], strict=True):
            np.testing.assert_array_equal(got, expected, f"clip[{part}]")


@pytest.mark.parametrize("name", ["one_key.mp4", "phone.mp4", "trimmed.mp4", "uneven.mp4", "full_range.mp4", "no_times.avi"])
def test_frames_are_those_of_the_ffmpeg_program(name, videos):
    clip = Clip(videos(name))
    expected = raw(videos(name), clip.height, clip.width)
    assert len(clip) == len(expected)
    assert np.abs(np.asarray(clip).astype(int) - expected).mean() < 1


def test_near_frames_need_no_cache(videos, cache):
    clip = Clip(videos("one_key.mp4"))
    clip[0], clip[10], [clip[i] for i in range(12, 40)]  # near the start, then each near the one before
    assert not cache.exists()


def test_a_phone_video_stands_upright(videos):
    lying, upright = Clip(videos("one_key.mp4")), Clip(videos("phone.mp4"))
    assert upright.shape == (40, 64, 48, 3)
    np.testing.assert_array_equal(upright[0], np.rot90(lying[0]))


def test_times_of_an_uneven_video_are_kept(videos):
    clip = Clip(videos("uneven.mp4"))
    expected = [n / 25 for n in range(40) if n < 20 or n % 3 == 0]
    np.testing.assert_allclose(clip.times, expected, atol=1e-3)
    np.testing.assert_allclose(clip[::-2].times, expected[::-2], atol=1e-3)
    assert not clip.rate_is_constant and clip.fps == pytest.approx((len(expected) - 1) / expected[-1])
    assert Clip(videos("uneven.mp4"), fps=10).rate_is_constant


def test_rates(videos):
    clip = Clip(videos("groups.mkv"))
    assert clip.fps == 25 and clip.rate_is_constant and clip[::2].fps == 12.5
    np.testing.assert_allclose(clip.times, np.arange(40) / 25, atol=1e-3)
    assert clip.names[:2] == ["00000", "00001"] and clip[38:].names == ["00038", "00039"]
    assert Clip(videos("no_times.avi")).times[-1] == pytest.approx(39 / 25)


def test_several_threads_may_take_frames(videos):
    clip = Clip(videos("one_key.mp4"))
    expected = list(clip)
    wrong = []

    def take(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(len(clip), size=15):
            if not np.array_equal(clip[i], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=take, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_cache_is_used_again_and_bounded(videos, cache, monkeypatch):
    clip = Clip(videos("one_key.mp4"))
    last = clip[-1]
    (first,) = cache.glob("*.mkv")
    made = first.stat().st_ino
    np.testing.assert_array_equal(Clip(videos("one_key.mp4"))[-1], last)
    assert first.stat().st_ino == made
    monkeypatch.setenv("VOSNB_CACHE_GB", "0")
    Clip(videos("full_range.mp4"))[-1]
    (second,) = cache.glob("*.mkv")
    assert second != first
    np.testing.assert_array_equal(clip[-2], list(clip)[-2])  # an open clip goes on


def test_near_frames_do_not_wait_for_the_cache_that_another_thread_makes(videos, monkeypatch):
    clip = Clip(videos("one_key.mp4"))
    making, go_on, transcode = threading.Event(), threading.Event(), frames._transcode

    def slowly(*arguments):
        making.set()
        assert go_on.wait(30)
        transcode(*arguments)

    monkeypatch.setattr(frames, "_transcode", slowly)
    found = []
    far = threading.Thread(target=lambda: found.append(clip[39]))
    far.start()
    assert making.wait(30)
    assert np.array_equal(clip[3], list(clip[:4])[-1])
    go_on.set()
    far.join()
    assert np.array_equal(found[0], list(clip)[39])


@pytest.mark.parametrize("name", ["one_key.mp4", "no_times.avi"])
def test_a_clip_that_forgets_leaves_nothing_in_the_cache_and_gives_the_same_frames(name, videos, cache):
    clip = Clip(videos(name))
    last = clip[len(clip) - 1]
    assert list(cache.glob("*.mkv"))
    clip.forget()
    assert not list(cache.glob("*.mkv"))
    assert np.array_equal(clip[0], next(iter(clip)))
    assert np.array_equal(clip[len(clip) - 1], last) and np.array_equal(list(clip)[-1], last)
    Clip(numbered(3)).forget()  # has nothing there


def test_a_cache_that_cannot_be_written_says_so(videos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VOSNB_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"writable place.*set VOSNB_CACHE"):
        Clip(videos("one_key.mp4"))[-1]


def test_a_file_that_is_cut_off_gives_what_it_holds(videos, tmp_path):
    cut = tmp_path / "cut.mp4"
    whole = videos("one_key.mp4").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    clip, expected = Clip(cut), list(Clip(videos("one_key.mp4")))
    assert len(clip) == 40
    got = []
    with pytest.raises(InputError, match=r"expected frame \d+ of .*cut.mp4; got .*cut off; .* clip\[:\d+\]"):
        got.extend(clip)
    passed = 0
    with pytest.raises(InputError, match="cut off"):
        for frame in clip:
            np.testing.assert_array_equal(frame, expected[passed])
            passed += 1
    assert 0 < passed < 40
    assert len(list(clip[:passed])) == passed
    np.testing.assert_array_equal(clip[passed - 1], expected[passed - 1])
    with pytest.raises(InputError, match="frame 39"):
        clip[39]


def test_memory_does_not_grow_with_the_length(tmp_path):
    code = """if True:
        import resource, sys
        from vosnb.clip import Clip
        count = sum(1 for _ in Clip(sys.argv[1]))
        print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""
    most = {}
    for seconds in (4, 80):
        path = tmp_path / f"{seconds}.mp4"
        ffmpeg("-lavfi", f"testsrc2=size=128x96:rate=25:duration={seconds}", "-c:v", "mpeg4", str(path))
        out = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True).stdout
        count, most[seconds] = (int(word) for word in out.split())
        assert count == 25 * seconds
    assert most[80] - most[4] < 20_000  # kB; the frames of the longer one are 74,000


@pytest.mark.skipif(not (DATA / "bedroom.mp4").exists(), reason="the real footage is not at hand")
def test_real_footage_with_a_single_key_frame():
    clip = Clip(DATA / "bedroom.mp4")
    assert clip.shape == (200, 540, 960, 3) and clip.fps == 30 and clip.rate_is_constant
    wanted = {i: frame for i, frame in enumerate(clip) if i in (0, 63, 150, 199)}
    for i in (199, 63, 0, 150):
        np.testing.assert_array_equal(clip[i], wanted[i])


# -- slices ------------------------------------------------------------------------------------------------------------

bounds = st.none() | st.integers(-25, 25)
slices = st.builds(slice, bounds, bounds, st.none() | st.integers(-7, 7).filter(bool))


@given(st.lists(slices, max_size=3), st.integers(-25, 25))
@settings(deadline=None)
def test_slices_of_slices_are_those_of_numpy(parts, i):
    expected, clip = np.arange(20), Clip(numbered(20), fps=20)
    for part in parts:
        expected, clip = expected[part], clip[part]
    assert len(clip) == len(expected) == clip.shape[0]
    assert [frame[0, 0, 0] for frame in clip] == expected.tolist()
    np.testing.assert_allclose(clip.times, expected / 20)
    assert clip.names == [f"{n:05d}" for n in expected]
    if -len(expected) <= i < len(expected):
        assert clip[i][0, 0, 0] == expected[i]
    else:
        with pytest.raises(IndexError):
            clip[i]


@given(slices, slices)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_of_a_video_are_those_of_its_frames(videos, first, second):
    clip = Clip(videos("groups.mkv"))
    np.testing.assert_array_equal(np.asarray(clip[first][second]), np.asarray(clip)[first][second])


def test_a_clip_of_a_clip_is_the_same_view():
    clip = Clip(numbered(10), fps=5, name="dye")[2:8]
    again = Clip(clip)
    assert (again.names, again.fps, again.name) == (clip.names, 5, "dye")
    assert repr(clip) == "Clip dye: 6 frames (2 … 7), 6×4, 5 fps, 1.20 s"
    with pytest.raises(InputError, match="window"):
        Clip(clip, window=(0, 9))


# -- reading ahead -----------------------------------------------------------------------------------------------------


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vosnb-read-ahead"]


def ended() -> bool:
    """Whether no reading thread is left; one that has been told to end is given a moment."""
    gc.collect()
    deadline = time.monotonic() + 5
    while reading() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not reading()


def test_read_ahead_passes_everything_in_order_and_ends():
    assert list(read_ahead(range(100))) == list(range(100))
    assert ended()


def test_read_ahead_stays_within_its_depth():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = read_ahead(items(), depth=3)
    assert next(ahead) == 0
    for _ in range(50):
        threading.Event().wait(0.002)
    assert len(made) <= 6  # one taken, three waiting, one room free again, one at hand
    ahead.close()
    assert ended()


def test_the_thread_ends_when_the_consumer_breaks_off(videos):
    for n, _ in enumerate(Clip(videos("one_key.mp4"))):
        assert reading()
        if n == 2:
            break
    assert ended()
    with pytest.raises(ZeroDivisionError):
        for _ in Clip(videos("one_key.mp4")):
            1 / 0  # noqa: B018
    assert ended()


def test_an_error_on_the_thread_comes_after_the_items_before_it():
    closed = []

    def items():
        try:
            yield 1
            yield 2
            raise KeyError("three")
        finally:
            closed.append(True)

    got = []
    with pytest.raises(KeyError, match="three"):
        for item in read_ahead(items()):
            got.append(item)
    assert got == [1, 2] and closed and ended()


# -- images ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_natural_order_and_other_files_are_ignored(tmp_path):
    folder = tmp_path / "dye"
    for n in (10, 2, 1):
        save(folder, f"img{n}.png", np.full((4, 6, 3), n, np.uint8))
    for other in ("prompts.json", ".img3.png", "Thumbs.db", "notes.txt"):
        (folder / other).write_text("not a frame")
    clip = Clip(folder)
    assert clip.names == ["img1", "img2", "img10"] and clip.name == "dye" and clip.fps == 25
    assert [frame[0, 0, 0] for frame in clip] == [1, 2, 10] and clip[-1][0, 0, 0] == 10
    assert len(clip.sha256) == 64 and clip.sha256 == Clip(str(folder)).sha256
    assert [f[0, 0, 0] for f in Clip([folder / "img10.png", folder / "img1.png"])] == [10, 1]
    before = clip.sha256
    save(folder, "img10.png", np.full((4, 6, 3), 11, np.uint8))
    assert Clip(folder).sha256 != before


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "JPG"])
def test_formats_and_channels(tmp_path, suffix):
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[:, :4] = (250, 20, 20)
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "JPG" else {}
    save(tmp_path / "a", f"0.{suffix}", rgb, **options)
    frame = Clip(tmp_path / "a")[0]
    assert frame.shape == (8, 8, 3) and frame.dtype == np.uint8 and frame.flags.writeable and frame.flags.c_contiguous
    assert np.abs(frame.astype(int) - rgb).max() <= (4 if suffix == "JPG" else 0)
    if suffix in ("png", "tif"):
        save(tmp_path / "b", f"0.{suffix}", np.dstack([rgb, rgb[..., 0]]))
        save(tmp_path / "c", f"0.{suffix}", rgb[..., 0])
        np.testing.assert_array_equal(Clip(tmp_path / "b")[0], rgb)
        np.testing.assert_array_equal(Clip(tmp_path / "c")[0], np.repeat(rgb[..., :1], 3, 2))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a", "0.jpg", np.zeros((4, 6, 3), np.uint8), exif=exif)
    assert Clip(tmp_path / "a").shape == (1, 6, 4, 3) == (1, *Clip(tmp_path / "a")[0].shape)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_sixteen_bits_share_one_window(tmp_path, suffix, colour):
    import cv2

    folder = tmp_path / "deep"
    folder.mkdir()
    ramp = np.linspace(1000, 5000, 64 * 48).reshape(48, 64).astype(np.uint16)
    deep = [ramp, ramp // 2]
    if colour:
        deep = [np.dstack([frame, frame // 2, frame // 4]) for frame in deep]
    for n, frame in enumerate(deep):
        cv2.imwrite(str(folder / f"{n}.{suffix}"), frame[..., ::-1] if colour else frame)
    low, high = Clip(folder).window
    assert (low, high) == pytest.approx(np.percentile(deep[0], (0.1, 99.9)))
    clip = Clip(folder, window=(0, 5100))
    assert clip.window == (0, 5100)
    for got, frame in zip(clip, deep, strict=True):
        expected = np.rint(frame / 20).astype(np.uint8)
        np.testing.assert_array_equal(got, expected if colour else np.repeat(expected[..., None], 3, 2))


def test_pages_of_a_tiff_are_frames(tmp_path):
    pages = [Image.fromarray(np.full((4, 6), 10 * n, np.uint8)) for n in range(5)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    clip = Clip(tmp_path / "stack.tif")
    assert clip.names[3] == "00003" and clip.name == "stack"
    assert [frame[0, 0, 0] for frame in clip[::-1]] == [40, 30, 20, 10, 0]
    deep = [Image.fromarray(np.full((4, 6), 1000 * n, np.uint16)) for n in range(5)]
    deep[0].save(tmp_path / "deep.tif", save_all=True, append_images=deep[1:])
    assert [frame[0, 0, 0] for frame in Clip(tmp_path / "deep.tif", window=(0, 4000))] == [0, 64, 128, 191, 255]


# -- arrays and iterators ----------------------------------------------------------------------------------------------


def test_arrays_lists_and_memory_maps(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    for source in (array, list(array), np.load(tmp_path / "a.npy", mmap_mode="r"), array[..., [0, 1, 2, 0]]):
        clip = Clip(source)
        np.testing.assert_array_equal(np.asarray(clip), array)
        assert clip[1].flags.writeable and clip.source == "array" and clip.sha256 == Clip(array).sha256
    assert Clip(array.astype(np.uint16) * 10, window=(0, 2550))[2].tolist() == array[2].tolist()


def test_an_iterator_is_one_pass_forwards():
    clip = Clip((frame for frame in numbered(6)), fps=10)
    assert clip.length is None and clip.shape == (None, 4, 6, 3) and clip.sha256 is None and clip.fps == 10
    assert repr(clip) == "Clip clip: frames from an iterator, 6×4, 10 fps"
    assert clip[0][0, 0, 0] == 0  # a look that loses nothing
    for impossible in (lambda: len(clip), lambda: clip.times, lambda: clip.names):
        with pytest.raises(TypeError, match="save_frames"):
            impossible()
    for refused in (lambda: clip[3], lambda: clip[-1], lambda: clip[::-1], lambda: clip[-3:]):
        with pytest.raises(InputError, match="iterator"):
            refused()
    assert [frame[0, 0, 0] for frame in clip[1:][::2]] == [1, 3, 5]
    with pytest.raises(InputError, match="one pass"):
        list(clip)


def test_an_iterator_is_read_lazily():
    taken = []

    def camera():
        for n in range(10**6):
            taken.append(n)
            yield np.zeros((4, 6, 3), np.uint8)

    for n, _ in enumerate(Clip(camera())):
        if n == 5:
            break
    assert len(taken) < 20


# -- writing -----------------------------------------------------------------------------------------------------------


def test_saved_frames_come_back(tmp_path):
    clip = Clip(numbered(12), fps=12, name="n")
    kept = clip[2:8:2].save_frames(tmp_path / "a", suffix=".png")
    assert kept.names == ["00002", "00004", "00006"] and kept.fps == 6 and kept.name == "n"
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(clip[2:8:2]))
    assert [f[0, 0, 0] for f in clip[::-1].save_frames(tmp_path / "b")] == list(range(11, -1, -1))
    assert len(Clip(iter(numbered(4))).save_frames(tmp_path / "c")) == 4
    with pytest.raises(InputError, match="new or empty"):
        clip.save_frames(tmp_path / "a")
    assert len(clip.save_frames(tmp_path / "a", overwrite=True)) == 12
    with pytest.raises(InputError, match="suffix"):
        clip.save_frames(tmp_path / "d", suffix=".gif")
    with pytest.raises(InputError, match="at least one frame"):
        clip[5:5].save_frames(tmp_path / "d")


def test_frames_are_saved_all_or_none(tmp_path):
    def breaks():
        yield from numbered(3)
        raise RuntimeError("the camera was unplugged")

    with pytest.raises(RuntimeError):
        Clip(breaks()).save_frames(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# -- bad input ---------------------------------------------------------------------------------------------------------


def bad_video(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.mp4", "does not exist"),
        ("https://example.org/a.mp4", "vosnb clip https"),
        (42, "a video file, a folder of images, an array"),
        ([], "at least one frame"),
        (iter([]), "at least one frame"),
        (np.zeros((0, 4, 6, 3), np.uint8), "at least one frame"),
        (np.zeros((2, 4, 6, 3), np.float32), r"float32 .*; scale to 0"),
        (np.zeros((2, 4, 6), np.int64), "int64"),
        (np.zeros((2, 3, 40, 60), np.uint8), r"channels last: frames.transpose\(0, 2, 3, 1\)"),
        (np.zeros((40, 60, 3), np.uint8), r"image\[None\]"),
        (np.zeros((40, 60), np.uint8), r"image\[None\]"),
        (iter([np.zeros((4, 6, 3), bool)]), "bool"),
    ],
)
def test_what_is_no_clip_is_refused(source, says):
    with pytest.raises(InputError, match=says):
        Clip(source)


@pytest.mark.parametrize(
    "options", [{"fps": 0}, {"fps": float("nan")}, {"fps": "25"}, {"window": (5, 5)}, {"window": 7}, {"window": (0, 9)}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        Clip(numbered(3), **options)


def test_files_that_are_no_video_are_refused(tmp_path, videos):
    for content, says in (
        (b"", "empty"),
        (b"only words\n" * 100, "which is none, or cut off"),
        (videos("trimmed.mp4").read_bytes()[:3000], "which is none, or cut off"),  # its table of contents is at the end
    ):
        with pytest.raises(InputError, match=says):
            Clip(bad_video(tmp_path, content))
    (tmp_path / "notes.txt").write_text("only words\n" * 100)  # FFmpeg would draw them
    (tmp_path / "itself.mp4").write_text("ffconcat version 1.0\nfile itself.mp4")  # and open this until no file is left to open
    ffmpeg("-lavfi", "sine=duration=0.2", str(tmp_path / "tone.mp4"))
    for name, says in {"notes.txt": "which is none", "itself.mp4": "which is none", "tone.mp4": "video stream"}.items():
        with pytest.raises(InputError, match=says):
            Clip(tmp_path / name)
    with pytest.raises(InputError, match="window"):
        Clip(videos("one_key.mp4"), window=(0, 5))


def test_a_codec_that_nobody_knows_is_refused(tmp_path, videos):
    content = videos("one_key.mp4").read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC")
    with pytest.raises(InputError, match="codec"):
        Clip(bad_video(tmp_path, content))


def test_a_video_of_no_frames_is_refused(tmp_path, videos):
    content = bytearray(videos("one_key.mp4").read_bytes())
    data = content.index(b"mdat")
    content[data + 4 :] = bytes(len(content) - data - 4)
    with pytest.raises(InputError, match="none can be decoded"):
        Clip(bad_video(tmp_path, bytes(content)))


def test_a_folder_without_images_names_what_it_has(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(InputError, match="the folders JPEGImages"):
        Clip(tmp_path)


def test_an_image_of_another_size_is_named_before_any_work(tmp_path):
    for n in range(3):
        save(tmp_path, f"{n}.jpg", np.zeros((4, 6 if n < 2 else 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"6×4 .*8×4 in .*2\.jpg"):
        Clip(tmp_path)


def test_a_frame_of_another_size_is_named_when_it_comes():
    with pytest.raises(InputError, match=r"6×4 .*8×4 in frame 1"):
        list(Clip([np.zeros((4, 6, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)]))


def test_a_damaged_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for n in range(3):
        save(tmp_path, f"{n}.jpg", noise)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:1500])
    clip = Clip(tmp_path)
    with pytest.raises(InputError, match=r"1\.jpg .*truncated"):
        list(clip)
    np.testing.assert_array_equal(clip[2], clip[0])
    for content in (b"", b"not a picture"):
        (tmp_path / "1.jpg").write_bytes(content)
        with pytest.raises(InputError, match=r"1\.jpg"):
            Clip(tmp_path)


def test_folders_that_mix_things_up_are_refused(tmp_path):
    save(tmp_path / "masks", "0.jpg", np.zeros((4, 6), np.uint8))
    save(tmp_path / "masks", "0.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(InputError, match=r"0\.jpg and 0\.png"):
        Clip(tmp_path / "masks")
    save(tmp_path / "depth", "0.png", np.zeros((4, 6), np.uint8))
    save(tmp_path / "depth", "1.png", np.zeros((4, 6), np.uint16))
    with pytest.raises(InputError, match=r"16 bits in .*1\.png"):
        Clip(tmp_path / "depth")
    save(tmp_path / "float", "0.tif", np.zeros((4, 6), np.float32))
    with pytest.raises(InputError, match="32 bits"):
        Clip(tmp_path / "float")


@pytest.mark.parametrize("side", [8_001, 30_000])  # beyond our limit; beyond Pillow's, which raises by itself
def test_an_image_bomb_is_refused_unread(tmp_path, side):
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(InputError, match="64 million pixels"):
        Clip(tmp_path)


def test_the_limit_of_the_cache_must_be_a_number(videos, monkeypatch):
    monkeypatch.setenv("VOSNB_CACHE_GB", "much")
    with pytest.raises(InputError, match="gigabytes"):
        Clip(videos("one_key.mp4"))[-1]


def test_importing_the_clip_imports_no_video_library():
    code = "import sys, vosnb.clip; print(sorted({'av', 'cv2', 'PIL', 'torch'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"
