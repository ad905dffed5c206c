"""Clips cut out of films. Every film here is made on the spot; the only web is a server on this machine."""

from __future__ import annotations

import functools
import http.server
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imageio_ffmpeg import get_ffmpeg_exe

from vosnb.errors import InputError
from vosnb.extract import _clean, _clock, _digits, extract, parse_time
from vosnb.synth.turbulence import turbulence

BRIGHTER = 50  # grey levels per second: a frame's brightness tells its time


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)


def film(path: Path, times: list[float], size: tuple[int, int] = (96, 64), rate: Fraction | int = 25) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for time in times:
            grey = np.full((size[1], size[0], 3), round(20 + time * BRIGHTER), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuv444p")
            frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def with_sound(source: Path, path: Path, seconds: float) -> Path:
    ffmpeg("-i", source, "-f", "lavfi", "-i", f"sine=440:duration={seconds}", "-c:v", "copy", "-c:a", "aac", path)
    return path


def seen(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(times shown, times read off the brightness) of every frame."""
    with av.open(str(path)) as file:
        frames = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24").mean()) for f in file.decode(video=0)]
    shown, grey = np.array(frames).T
    return shown, (grey - 20) / BRIGHTER


def streams(path: Path) -> dict[str, av.stream.Stream]:
    with av.open(str(path)) as file:
        return {stream.type: stream for stream in file.streams}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, 25 frames per second, with sound."""
    folder = tmp_path_factory.mktemp("films")
    silent = film(folder / "silent.mp4", [i / 25 for i in range(100)])
    return with_sound(silent, folder / "plain.mp4", 4)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever litters the working folder is seen by the tests that list it."""
    monkeypatch.chdir(tmp_path)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


# --- times and names


@pytest.mark.parametrize(
    "text, seconds",
    [("13:21", 801), ("1:02:03.5", 3723.5), ("801", 801), (801, 801), (0.25, 0.25), (" 90:00 ", 5400), ("0", 0), (1e-5, 1e-5)],
)
def test_times_are_read(text, seconds):
    assert parse_time(text) == seconds


NONSENSE = ["", "soon", "-3", -3, "1:60", "1:60:00", "1:2:3:4", ":30", "1:", "1.5:30", "nan", math.inf, "1e999", True, None]


@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InputError, match=r"a time|below 60"):
        parse_time(text)


@given(st.integers(0, 10**8))
def test_a_time_survives_being_written(thousandths):
    assert parse_time(_clock(thousandths / 1000)) == pytest.approx(thousandths / 1000, abs=1e-6)


@given(st.integers(0, 10**8), st.integers(0, 10**8))
def test_two_times_never_share_their_digits(a, b):
    assert (_digits(a / 1000) == _digits(b / 1000)) == (a == b)


@given(st.text(max_size=200))
def test_any_title_becomes_a_file_name(title):
    name = _clean(title)
    assert name and not set(name) & set('/\\:*?"<>|\0 \n') and not name.startswith(".") and len(name) <= 60


def test_the_file_is_named_after_source_and_times(plain, tmp_path):
    assert extract(plain, 1, 2, tmp_path).name == "plain_0001_0002.mp4"
    assert extract(plain, "0:01.5", "0:02", tmp_path, name="two dyes/1").name == "two_dyes_1_0001-5_0002.mp4"
    assert extract(plain, start=3, out=tmp_path).name == "plain_0003_end.mp4"
    assert extract(plain, out=tmp_path).name == "plain.mp4"
    assert _digits(parse_time("13:21")) == "1321" and _digits(parse_time("1:02:03")) == "10203"


# --- the cut


def test_the_cut_has_the_right_frames_and_keeps_the_sound(plain, tmp_path):
    shown, read = seen(extract(plain, 1.2, "0:03", tmp_path))
    assert len(shown) == 45 and np.allclose(shown, np.arange(45) / 25, atol=1e-3)
    assert np.allclose(read, 1.2 + shown, atol=0.06)
    found = streams(tmp_path / "plain_0001-2_0003.mp4")
    assert found["video"].codec_context.name == "h264" and found["video"].codec_context.pix_fmt == "yuv420p"
    assert found["audio"].codec_context.name == "aac" and abs(found["audio"].duration * found["audio"].time_base - 1.8) < 0.05


def test_the_index_comes_first_and_nothing_else_is_left(plain, tmp_path):
    data = extract(plain, 0, 1, tmp_path / "out").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["plain_0000_0001.mp4"]


def test_sound_can_be_left_out(plain, tmp_path):
    assert set(streams(extract(plain, 0, 1, tmp_path, sound=False))) == {"video"}


def test_odd_sizes_lose_a_column_and_a_row(tmp_path):
    video = streams(extract(film(tmp_path / "odd.mp4", [0, 0.04, 0.08], size=(97, 65)), out="out"))["video"]
    assert (video.width, video.height) == (96, 64)


def test_a_turned_phone_is_upright_and_not_squashed(tmp_path):
    tall = tmp_path / "tall.mp4"
    source = film(tmp_path / "wide.mp4", [i / 25 for i in range(10)])
    ffmpeg("-display_rotation", "90", "-i", source, "-c", "copy", tall)
    video = streams(extract(tall, out="out"))["video"]
    assert (video.width, video.height) == (64, 96)


def test_a_variable_frame_rate_keeps_its_time(tmp_path):
    times = [i / 30 for i in range(60)] + [2 + i / 10 for i in range(20)] + [4]
    shown, read = seen(extract(film(tmp_path / "phone.mp4", times, rate=30), 1, 3.5, "out"))
    assert abs(shown[-1] - 2.5) < 0.05 and np.allclose(read, 1 + shown, atol=0.15)


def test_broadcast_rates_stay_exact(tmp_path):
    rate = Fraction(24_000, 1001)
    source = film(tmp_path / "film.mp4", [float(i / rate) for i in range(48)], rate=rate)
    assert streams(extract(source, out="out"))["video"].average_rate == rate


def test_sound_that_outlasts_the_picture_freezes_nothing(plain, tmp_path):
    source = with_sound(film(tmp_path / "short.mp4", [i / 25 for i in range(25)]), tmp_path / "long.mp4", 3)
    shown, read = seen(extract(source, out="out"))
    assert len(shown) == 25 and np.allclose(read, shown, atol=0.06)


def test_an_end_is_rounded_up_as_players_do(tmp_path):
    source = film(tmp_path / "film.mp4", [i / 25 for i in range(30)])  # 1.2 s
    assert len(seen(extract(source, 0, 2, "out"))[0]) == 30
    with pytest.raises(InputError, match=r"00:01.2"):
        extract(source, 0, 2.1, "out")


def test_a_broken_stream_does_not_hang_the_decoder(tmp_path):
    source = tmp_path / "noise.mp4"
    picture = "testsrc2=size=320x240:rate=25:duration=40"
    ffmpeg("-f", "lavfi", "-i", picture, "-preset", "ultrafast", "-pix_fmt", "yuv420p", source)
    data = bytearray(source.read_bytes())
    for place in np.random.default_rng(0).integers(1000, len(data) - 60_000, 2000):
        data[place] ^= 255
    source.write_bytes(data)
    assert len(seen(extract(source, 2, 32, "out"))[0]) == 750


# --- what is refused, and what stays then


def test_bad_spans_are_refused_before_any_work(plain, tmp_path):
    for start, end in [(3, 3), (3, 1), (9, None), (1, 9), ("x", None)]:
        with pytest.raises(InputError):
            extract(plain, start, end, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["nowhere.mp4", ".", "ftp://example.org/a.mp4", "Turbulence"])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(InputError, match="'turbulence'"):
        extract(source)


@pytest.mark.parametrize("content", [b"", b"not a film" * 100])
def test_what_is_no_film_is_refused(content, tmp_path):
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(InputError, match="a video file"):
        extract(tmp_path / "film.mp4", out="out")
    assert not Path("out").exists()


def test_sound_alone_is_no_film(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=440:duration=1", tmp_path / "sound.m4a")
    with pytest.raises(InputError, match="no picture"):
        extract(tmp_path / "sound.m4a", out="out")


def test_a_film_that_stops_early_leaves_nothing(tmp_path):
    source = tmp_path / "cut.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25:duration=8", source)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(InputError, match="whole"):
        extract(source, out="out")
    assert list(Path("out").iterdir()) == []


def test_an_existing_file_is_kept_unless_told(plain, tmp_path):
    first = extract(plain, 0, 1, "out")
    first.write_bytes(b"mine")
    with pytest.raises(InputError, match="existing"):
        extract(plain, 0, 1, "out")
    assert first.read_bytes() == b"mine"
    assert len(seen(extract(plain, 0, 1, "out", overwrite=True))[0]) == 25


def test_a_film_is_never_written_over_itself(tmp_path):
    source = film(tmp_path / "film.mp4", [0, 0.04])
    before = source.read_bytes()
    with pytest.raises(InputError, match="place of its own"):
        extract(source, out=tmp_path, overwrite=True)
    assert source.read_bytes() == before


def test_a_failing_encoder_leaves_nothing(plain, monkeypatch):
    module = sys.modules["vosnb.extract"]  # the package says `extract` for the function
    look = module._look
    short = module._Look(0.1, Fraction(25), (96, 64))
    monkeypatch.setattr(module, "_look", lambda file: look(file) if file == plain else short)
    with pytest.raises(InputError, match="disk"):
        extract(plain, 0, 2, "out")
    assert list(Path("out").iterdir()) == []


# --- the embedded clip


def test_the_embedded_clip_is_cut_like_any_other():
    path = extract("turbulence", 0.08, 0.2, "out")
    truth = [image for image, _ in turbulence(frames=5)][2:]
    with av.open(str(path)) as file:
        images = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert path.name == "turbulence_0000-08_0000-2.mp4" and len(images) == 3
    for ours, theirs in zip(images, truth, strict=True):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


def test_a_start_after_the_embedded_clip_needs_an_end():
    with pytest.raises(InputError, match="start earlier"):
        extract("turbulence", start=60, out="out")
    assert list(Path("out").iterdir()) == []


# --- the web


@pytest.fixture
def server(plain: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(plain.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("sound", [True, False])
def test_a_film_on_the_web_is_downloaded_and_cut(server, sound, tmp_path):
    path = extract(f"{server}/plain.mp4", 1, 2, "out", sound=sound)
    assert path == Path("out/plain_0001_0002.mp4") and ("audio" in streams(path)) == sound
    shown, read = seen(path)
    assert len(shown) == 25 and np.allclose(read, 1 + shown, atol=0.06)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [path.name]


def test_a_missing_page_is_one_short_sentence(server, capfd):
    with pytest.raises(InputError, match="404") as raised:
        extract(f"{server}/none.mp4", out="out")
    assert raised.value.__context__ is None  # yt-dlp's error would keep the connection open, to be closed in some later test
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value) and "\x1b" not in str(raised.value)
    assert not Path("out").exists() and capfd.readouterr() == ("", "")


def test_no_network_is_one_short_sentence(capfd):
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="network") as raised:
            extract(f"http://127.0.0.1:{taken.getsockname()[1]}/film.mp4", out="out")
    assert len(str(raised.value)) < 400 and not Path("out").exists() and capfd.readouterr() == ("", "")


def test_a_span_outside_of_a_downloaded_film_leaves_nothing(server):
    with pytest.raises(InputError, match="start earlier"):
        extract(f"{server}/plain.mp4", 60, 70, "out")
    assert list(Path("out").iterdir()) == []
