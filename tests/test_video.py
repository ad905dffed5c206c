import av
import numpy as np
import pytest
from PIL import Image

from vosnb.clip import Clip
from vosnb.errors import InputError
from vosnb.masks import Masks
from vosnb.video import write_gif, write_video

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255), (250, 170, 30)]


def solid(height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [np.full((height, width, 3), color, np.uint8) for color in COLORS]


def decoded(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
        return stream.codec_context, float(stream.duration * stream.time_base), *zip(*frames, strict=True)


@pytest.mark.parametrize("height, width", [(64, 96), (45, 63), (721, 66)])
def test_film_is_what_browsers_play_with_true_colours(tmp_path, height, width):
    path = write_video(tmp_path / "o.mp4", solid(height, width), 29.97)
    codec, duration, times, frames = decoded(path)
    assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    assert (codec.height, codec.width) == (height + height % 2, width + width % 2)
    assert codec.colorspace == (1 if height >= 720 else 6)
    assert np.allclose(times, np.arange(6) * 1001 / 30000, atol=1e-4)
    assert duration == pytest.approx(6 * 1001 / 30000, abs=1e-3)
    for frame, color in zip(frames, COLORS, strict=True):
        assert np.abs(frame.astype(int) - color).max() <= 4
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_size_repeats_the_last_line_and_column(tmp_path):
    image = np.zeros((33, 47, 3), np.uint8)
    image[-3:, :, 0] = image[:, -3:, 1] = 255
    _, _, _, (frame,) = decoded(write_video(tmp_path / "o.mp4", [image], 25, crf=0))
    assert frame.shape == (34, 48, 3)
    assert np.abs(frame[33, :44].astype(int) - (255, 0, 0)).max() < 8
    assert np.abs(frame[:28, 47].astype(int) - (0, 255, 0)).max() < 8


@pytest.mark.parametrize("sign", [1, -1])
def test_variable_frame_times_are_kept_and_the_film_does_not_end_early(tmp_path, sign):
    times = [10, 10.1, 10.15, 10.5, 11, 11.04]
    _, duration, found, frames = decoded(write_video(tmp_path / "o.mp4", solid(), 25, times=[sign * t for t in times]))
    assert np.allclose(found, np.array(times) - 10, atol=1e-4)
    assert duration >= 1.04
    assert len(frames) == 6


def test_one_frame_is_a_film(tmp_path):
    _, duration, times, _ = decoded(write_video(tmp_path / "o.mp4", solid()[:1], 25))
    assert times == (0,)
    assert duration == pytest.approx(0.04)


@pytest.mark.parametrize(
    "frames, options, said",
    [
        ([], {}, "at least one frame"),
        ([np.zeros((8, 8), np.uint8)], {}, r"\(H, W, 3\)"),
        ([*solid(), *solid(32, 32)], {}, "frames of 96×64"),
        (solid(), {"times": [0, 1, 1, 2, 3, 4]}, "times in order"),
        (solid(), {"times": [0, 1]}, "a time for every frame"),
        (solid(), {"fps": 0}, "above 0"),
        (solid(), {"fps": float("nan")}, "above 0"),
    ],
)
def test_bad_frames_are_refused_and_leave_no_file(tmp_path, frames, options, said):
    with pytest.raises(InputError, match=said):
        write_video(tmp_path / "o.mp4", frames, **{"fps": 25, **options})
    assert not list(tmp_path.iterdir())


def test_frames_that_fail_half_way_leave_the_old_file(tmp_path):
    path = tmp_path / "o.mp4"
    path.write_bytes(b"old")

    def frames():
        yield from solid()
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_video(path, frames(), 25)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_masks_over_a_clip_make_a_film(tmp_path):
    labels = np.zeros((6, 64, 96), np.uint8)
    labels[:, 16:48, 16:48] = 2
    clip = Clip(np.full((6, 64, 96, 3), 100, np.uint8), fps=10)
    _, duration, _, frames = decoded(Masks(labels).video(clip, tmp_path / "o.mp4", colors={2: "blue"}, contour=False))
    assert duration == pytest.approx(0.6)
    assert np.abs(frames[3][32, 32].astype(int) - (50, 50, 178)).max() <= 4
    assert np.abs(frames[3][5, 80].astype(int) - 100).max() <= 3
    with pytest.raises(InputError, match=r"to be new.*overwrite=True"):
        Masks(labels).video(clip, tmp_path / "o.mp4")
    Masks(labels).video(clip, tmp_path / "o.mp4", overwrite=True)
    with pytest.raises(InputError, match="a clip of 5 frames"):
        Masks(labels)[1:].video(clip, tmp_path / "p.mp4")
    assert not (tmp_path / "p.mp4").exists()


def test_gif_loops_at_the_given_rate_and_width(tmp_path):
    with Image.open(write_gif(tmp_path / "o.gif", iter(solid(64, 96)), 10, width=48)) as image:
        assert (image.n_frames, image.size, image.info["duration"], image.info["loop"]) == (6, (48, 32), 100, 0)
        for t, color in enumerate(COLORS):
            image.seek(t)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - color).max() <= 4
    with pytest.raises(InputError):
        write_gif(tmp_path / "none.gif", [], 10)
    assert not (tmp_path / "none.gif").exists()
