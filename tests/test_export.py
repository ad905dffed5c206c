"""Every format read back: by our readers bit by bit, by pycocotools, by PyAV and by Pillow; and what must not be written."""

import json
import sys

import av
import numpy as np
import pandas as pd
import pytest
from conftest import disc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from vosnb import cli
from vosnb.clip import Clip
from vosnb.errors import InputError
from vosnb.export import FORMATS, export, read_coco, read_masks, read_youtube_vis
from vosnb.masks import Masks
from vosnb.prompts import Prompts

NAMES = ["shot_7", "shot_9", "shot_10", "shot_11"]  # natural order, not alphabetical
ABOUT = {1: {"name": "girl", "color": "#e6194b"}, 3: {"name": "boy’s ball"}}
H, W = 45, 63


@pytest.fixture
def layers() -> list[dict[int, np.ndarray]]:
    """Objects 1 and 3 overlap; 3 comes on the second frame; the third is empty."""
    one, three = disc(H, W, 20, 20, 12), disc(H, W, 30, 24, 12)
    return [{1: one}, {1: one, 3: three}, {}, {3: three}]


@pytest.fixture
def masks(layers) -> Masks:
    return Masks(layers, NAMES, shape=(H, W), objects=ABOUT)


@pytest.fixture
def clip(tmp_path) -> Clip:
    frames = np.random.default_rng(0).integers(60, 200, (4, H, W, 3), dtype=np.uint8)
    (tmp_path / "shot").mkdir()
    for name, frame in zip(NAMES, frames, strict=True):
        Image.fromarray(frame).save(tmp_path / "shot" / f"{name}.png")
    return Clip(tmp_path / "shot")


def same(found: Masks, layers: list[dict[int, np.ndarray]]) -> None:
    assert len(found) == len(layers)
    for t, expected in enumerate(layers):
        got = found.layers(t)
        assert got.keys() == expected.keys()
        assert all(np.array_equal(got[obj], mask) for obj, mask in expected.items())


def test_all_formats_at_once_are_one_folder(masks, clip, tmp_path):
    paths = export(masks, clip, tmp_path / "out", list(FORMATS))
    assert paths.keys() == FORMATS.keys() and all(path.exists() for path in paths.values())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted({f.path for f in FORMATS.values()})


@pytest.mark.parametrize("form, read", [("coco", read_coco), ("youtube-vis", read_youtube_vis), ("png-per-object", Masks)])
def test_overlapping_late_and_absent_objects_come_back_bit_by_bit_with_the_frames_names(masks, layers, tmp_path, form, read):
    path = export(masks, None, tmp_path / "out", form)[form]
    found = read(path)
    assert found.names == NAMES and found.shape == (4, H, W) and found.ids == (1, 3)
    same(found, layers)
    same(read_masks(path), layers)
    assert np.array_equal(found, masks)
    if form != "png-per-object":
        assert found.objects == ABOUT | {3: {"name": "boy’s ball"}}


def test_palette_pngs_have_the_objects_own_colours_and_the_lower_id_on_top(masks, layers, tmp_path):
    folder = export(masks, None, tmp_path / "out")["png"]
    assert [p.name for p in sorted(folder.iterdir())] == sorted(f"{name}.png" for name in NAMES)
    assert np.array_equal(Masks(folder, NAMES), masks)
    with Image.open(folder / "shot_9.png") as image:
        assert image.mode == "P" and image.getpalette()[3:6] == [0xE6, 0x19, 0x4B]
        assert np.array_equal(np.array(image) == 1, layers[1][1])


def test_pycocotools_loads_the_coco_file_and_finds_the_same_masks_areas_and_boxes(masks, layers, tmp_path, capsys):
    api = COCO(export(masks, None, tmp_path / "coco.json", "coco")["coco"])
    assert [image["file_name"] for image in api.imgs.values()] == [f"{name}.jpg" for name in NAMES]
    assert {c["id"]: c["name"] for c in api.cats.values()} == {1: "girl", 3: "boy’s ball"}
    for t, expected in enumerate(layers):
        found = api.imgToAnns[t + 1]
        assert [one["category_id"] for one in found] == list(expected)
        for one in found:
            mask = expected[one["category_id"]]
            assert np.array_equal(api.annToMask(one), mask)
            assert one["area"] == mask.sum() == coco.area(one["segmentation"])
            assert one["bbox"] == coco.toBbox(one["segmentation"]).tolist()


def test_the_youtube_vis_file_has_a_place_per_frame(masks, layers, tmp_path):
    data = json.loads(export(masks, None, tmp_path / "vis.json", "youtube-vis")["youtube-vis"].read_text())
    (video,) = data["videos"]
    assert (video["width"], video["height"], video["length"]) == (W, H, 4) and len(video["file_names"]) == 4
    for one in data["annotations"]:
        for t, rle in enumerate(one["segmentations"]):
            mask = layers[t].get(one["category_id"])
            assert (rle is None) == (mask is None) == (one["areas"][t] is None) == (one["bboxes"][t] is None)
            assert mask is None or np.array_equal(coco.decode(rle), mask)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_run_lengths_are_the_text_that_pycocotools_writes(tmp_path_factory, mask):
    folder = tmp_path_factory.mktemp("rle")
    masks = Masks([{7: mask}], shape=mask.shape)
    path = export(masks, None, folder / "coco.json", "coco", overwrite=True)["coco"]
    annotations = json.loads(path.read_text())["annotations"]
    assert bool(annotations) == bool(mask.any())
    for one in annotations:
        assert one["segmentation"]["counts"].encode() == coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    same(read_coco(path), [{7: mask}] if mask.any() else [{}])


def test_large_masks_with_long_runs_are_pycocotools_text_too(tmp_path):
    mask = disc(1080, 1920, 900, 500, 400) ^ disc(1080, 1920, 1000, 560, 120)
    path = export(Masks([{1: mask}]), None, tmp_path / "c.json", "coco")["coco"]
    rle = json.loads(path.read_text())["annotations"][0]["segmentation"]
    assert np.array_equal(coco.decode(rle), mask)
    same(read_coco(path), [{1: mask}])


def test_the_overlay_film_is_even_h264_with_every_frame(masks, clip, tmp_path):
    path = export(masks, clip, tmp_path / "o.mp4", "video")["video"]
    with av.open(str(path)) as file:
        codec = file.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.width, codec.height) == ("h264", "yuv420p", W + 1, H + 1)
        assert sum(1 for _ in file.decode(video=0)) == 4
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_the_alpha_film_shows_the_objects_and_hides_the_rest(tmp_path):
    shapes = [disc(H, W, 20 + 3 * t, 20, 12) for t in range(4)]
    images = np.full((4, H, W, 3), (200, 40, 60), np.uint8)
    path = export(Masks(shapes), Clip(images, fps=30), tmp_path / "a.webm", "webm")["webm"]
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.metadata["alpha_mode"]) == ("vp9", "1")
        decoder = av.CodecContext.create("libvpx-vp9", "r")  # FFmpeg's own drops the alpha
        found = [(f.pts, f.to_ndarray(format="rgba")) for p in file.demux(stream) for f in decoder.decode(p)]
    assert len(found) == 4 and np.allclose([pts for pts, _ in found], [0, 33, 67, 100], atol=1)
    for (_, image), shape in zip(found, shapes, strict=True):
        assert image.shape == (H + 1, W + 1, 4)
        inside, near = image[:H, :W][shape], image[:H, :W, 3] > 127
        assert np.count_nonzero(near & shape) / np.count_nonzero(near | shape) > 0.97
        assert np.abs(inside[:, :3].astype(int) - (200, 40, 60)).mean() < 6
        assert image[-4:, -4:, :3].max() < 40  # what is far from the object is not in the file


def test_a_film_of_varying_rate_keeps_its_times(masks, tmp_path):
    from vosnb.video import write_video

    frames = [np.full((48, 64, 3), 50 * t, np.uint8) for t in range(4)]
    film = Clip(write_video(tmp_path / "vfr.mp4", frames, 25, times=[0, 0.1, 0.15, 0.5]))
    paths = export(np.ones((4, 48, 64), np.uint8), film, tmp_path / "out", ["video", "webm", "csv"])
    for form in ("video", "webm"):
        with av.open(str(paths[form])) as file:
            assert np.allclose([f.time for f in file.decode(video=0)], [0, 0.1, 0.15, 0.5], atol=0.002)
    table = pd.read_csv(paths["csv"] / "objects.csv", comment="#")
    assert np.allclose(table["time"], [0, 0.1, 0.15, 0.5], atol=0.002) and (table["area"] == 48 * 64).all()


def test_cut_outs_are_the_frames_pixels_and_transparent_elsewhere(masks, clip, tmp_path):
    folder = export(masks, clip, tmp_path / "out", "cutout")["cutout"]
    for t, name in enumerate(NAMES):
        with Image.open(folder / f"{name}.png") as image:
            assert image.mode == "RGBA"
            pixels = np.array(image)
        on = masks[t] > 0
        assert np.array_equal(pixels[..., 3], np.where(on, 255, 0))
        assert np.array_equal(pixels[on][:, :3], clip[t][on]) and not pixels[~on].any()


def test_the_table_counts_pixels_per_frame_and_object(masks, layers, tmp_path):
    table = pd.read_csv(export(masks, None, tmp_path / "out", "csv")["csv"] / "objects.csv", comment="#")
    rows = table.set_index(["name", "object"])
    assert rows.loc[("shot_7", 1), "area"] == layers[0][1].sum() and rows.loc[("shot_10", 1), "area"] == 0
    assert rows.loc[("shot_11", 3), "area"] == layers[3][3].sum()


def test_single_objects_can_be_exported_whatever_covers_them(masks, layers, tmp_path):
    path = export(masks, None, tmp_path / "out", "png", ids=[3])["png"]
    assert np.array_equal(Masks(path, NAMES)[1] == 3, layers[1][3])
    with pytest.raises(InputError, match="objects among"):
        export(masks, None, tmp_path / "other", "png", ids=[2])
    assert not (tmp_path / "other").exists()


def test_nothing_is_replaced_unasked_and_then_only_what_was_named(masks, clip, tmp_path):
    out = tmp_path / "out"
    export(masks, None, out, "png")
    (out / "diary.txt").write_text("mine")
    export(masks, None, out, "coco")  # beside it
    first = (out / "coco.json").read_bytes()
    with pytest.raises(InputError, match=r"to be without coco.json"):
        export(masks[:2], None, out, ["youtube-vis", "coco"])
    assert (out / "coco.json").read_bytes() == first and not (out / "youtube_vis.json").exists()
    export(masks[:2], None, out, ["png", "coco"], overwrite=True)
    assert len(Masks(out / "masks")) == len(read_coco(out / "coco.json")) == 2
    assert (out / "diary.txt").read_text() == "mine"
    assert sorted(p.name for p in out.iterdir()) == ["coco.json", "diary.txt", "masks"]
    film = tmp_path / "film.mp4"
    film.write_text("mine")
    with pytest.raises(InputError, match="to be new"):
        export(masks, clip, film, "video")
    assert film.read_text() == "mine"
    with pytest.raises(InputError, match="a writable place"):
        export(masks, None, film, "png")


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_in_the_last_format_leaves_what_was_before(there, masks, clip, tmp_path, monkeypatch):
    def fails(self, i):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(clip._reader), "frame", fails)
    if there:
        export(masks[:1], None, tmp_path / "out", ["coco", "png"])
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match="room on the disk"):
        export(masks, clip, tmp_path / "out", ["coco", "cutout"], overwrite=True)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "form, with_clip, says",
    [("webp", True, "formats among"), ([], True, "formats among"), ("webm", False, "the clip, for webm")],
)
def test_what_cannot_be_written_is_refused_first(masks, clip, tmp_path, form, with_clip, says):
    with pytest.raises(InputError, match=says):
        export(masks, clip if with_clip else None, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_another_clip_is_refused(masks, clip, tmp_path):
    with pytest.raises(InputError, match="the clip of these masks"):
        export(masks, clip[:3], tmp_path / "out", "png")
    with pytest.raises(InputError, match="an object to measure"):
        export(np.zeros((2, 8, 8), np.uint8), None, tmp_path / "out", ["png", "csv"])


def test_files_from_elsewhere_are_read_where_they_say_who_is_who(tmp_path):
    mask = disc(20, 30, 9, 9, 6)
    plain = {"size": [20, 30], "counts": [0, 600]}
    text = coco.encode(np.asfortranarray(mask, np.uint8))
    data = {
        "images": [{"id": 9, "file_name": "a/b/f1.png", "height": 20, "width": 30}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 300, "track_id": 5, "segmentation": plain},
            {
                "id": 2,
                "image_id": 9,
                "category_id": 300,
                "track_id": 6,
                "segmentation": {**text, "counts": text["counts"].decode()},
            },
        ],
        "categories": [{"id": 300, "name": "person"}],
    }
    file = tmp_path / "there.json"
    file.write_text(json.dumps(data))
    found = read_coco(file)
    assert found.names == ["f1"]
    same(found, [{5: np.ones((20, 30), bool), 6: mask}])
    for one in data["annotations"]:
        del one["track_id"]
        one["category_id"] = 1
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="one instance of object 1 per image"):
        read_coco(file)


def _damage(data: dict, how: str) -> str:
    first = data["annotations"][0]
    rle = first.get("segmentation") or first["segmentations"][0]
    if how == "runs":
        rle["counts"] = "zzzzzzzz"  # pycocotools itself gives uninitialised memory for this
    elif how == "endless":
        rle["counts"] = "o" * 100_000
    elif how == "size":
        rle["size"] = [10**6, 10**6]
    elif how == "polygon":
        first["segmentation"] = first["segmentations"] = [[1, 1, 5, 1, 5, 5]]
    elif how == "key":
        del first["category_id"], first["track_id"]
        data["annotations"].append(3)
    elif how == "id":
        first["track_id"] = 256
    elif how == "bomb":
        for one in data.get("images", data.get("videos")):
            one["height"] = one["width"] = 10**7
    return json.dumps(data)[: -20 if how == "cut" else None]


@pytest.mark.parametrize("form, read", [("coco", read_coco), ("youtube-vis", read_youtube_vis)])
@pytest.mark.parametrize("how", ["runs", "endless", "size", "polygon", "key", "id", "bomb", "cut"])
def test_damaged_files_are_refused_in_three_parts(masks, tmp_path, form, read, how):
    path = export(masks, None, tmp_path / "x.json", form)[form]
    path.write_text(_damage(json.loads(path.read_text()), how))
    with pytest.raises(InputError):
        read(path)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_masks(tmp_path / "no.json")
    (tmp_path / "p.json").write_text('{"version": 1, "prompts": []}')
    with pytest.raises(InputError, match="annotations"):
        read_masks(tmp_path / "p.json")


def test_the_command_converts_names_and_says_where(masks, clip, tmp_path, monkeypatch, capsys):
    masks.save(tmp_path / "masks")
    (tmp_path / "p.json").write_text(Prompts({}, {1: {"name": "girl", "color": "#e6194b"}}).to_json())
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vosnb", "export", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    code, out, _ = run("masks", "--clip", "shot", "--as", "coco,video", "--as", "cutout", "--prompts", "p.json", "-o", "out")
    assert code == 0 and out.split() == ["out/coco.json", "out/overlay.mp4", "out/cutouts"]
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["categories"][0]["name"] == "girl"
    code, out, _ = run("out/coco.json", "--as", "png", "-o", "back", "--object", "3")
    assert code == 0 and np.array_equal(np.array(Masks("back/masks", NAMES)), np.where(np.array(masks) == 3, 3, 0))
    code, _, err = run("masks", "--as", "coco", "-o", "out")
    assert code == 2 and "--overwrite" in err
    for out in ("masks", "masks/in", "."):  # the last one would replace the masks with themselves
        code, _, err = run("masks", "--as", "png", "--overwrite", "-o", out)
        assert code == 2 and "a place of its own" in err
    code, _, _ = run("masks", "--as", "youtube-vis", "-o", ".")
    assert code == 0 and len(Masks("masks")) == 4
