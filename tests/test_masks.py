import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageFilter

from vosnb import masks as masks_module
from vosnb.errors import InputError
from vosnb.masks import Masks, MaskWriter, read_labels, write_labels
from vosnb.paint import davis_palette, with_colors
from vosnb.strategies import Score

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
label_maps = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 255))
clips = arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 3))


def scene(ids=(1, 2, 5), scale=1) -> np.ndarray:
    """Overlapping discs, 200×120 times `scale`."""
    labels = np.zeros((120 * scale, 200 * scale), np.uint8)
    y, x = np.mgrid[: 120 * scale, : 200 * scale] / scale
    for k, obj in enumerate(ids):
        labels[(x - 50 - 45 * k) ** 2 + (y - 45 - 12 * k) ** 2 < 30**2] = obj
    return labels


def saved(path: Path, image: np.ndarray | Image.Image) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, "PNG")
    return path


# -- colours -----------------------------------------------------------------------------------------------------------


def test_palette_is_the_published_one():
    assert davis_palette()[[0, 1, 2, 3, 4, 8, 19, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [64, 0, 0], [128, 192, 0], [224, 224, 192],
    ]  # fmt: skip
    assert len(np.unique(davis_palette(), axis=0)) == 256


def test_users_colours_replace_the_palettes():
    palette = with_colors({1: "#0000ff", 2: "red", 3: (1, 2, 3)})
    assert palette[:4].tolist() == [[0, 0, 0], [0, 0, 255], [255, 0, 0], [1, 2, 3]]
    assert (palette[4:] == davis_palette()[4:]).all()


@pytest.mark.parametrize("colors", [{1: "no such colour"}, {1: (1, 2)}, {1: (0, 0, 256)}, {0: "red"}])
def test_colours_that_are_none_are_refused(colors):
    with pytest.raises(InputError):
        with_colors(colors)


# -- label maps on disk ------------------------------------------------------------------------------------------------


@given(label_maps)
@settings(deadline=None)
def test_indexed_png_round_trip_is_exact(tmp_path_factory, labels):
    path = write_labels(tmp_path_factory.mktemp("labels") / "labels.png", labels)
    assert (read_labels(path, phantom="trust") == labels).all()
    with Image.open(path) as image:
        assert image.mode == "P"
        assert (np.asarray(image.convert("RGB")) == davis_palette()[labels]).all()


def test_labels_out_of_range_or_shape_are_refused_and_leave_no_file(tmp_path):
    for bad in (np.full((4, 4), 256), np.full((4, 4), -1), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4))):
        with pytest.raises(InputError):
            write_labels(tmp_path / "x.png", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["palette", "other palette", "grey", "16 bit", "lost palette", "transparent"])
def test_hard_masks_of_every_making_are_read_exactly(tmp_path, mode):
    labels = scene((1, 7, 255))
    labels[3:5, 3:5] = 9  # tiny, with hard edges: an object all the same
    if mode == "palette":
        path = write_labels(tmp_path / "m.png", labels)
    elif mode == "other palette":
        path = write_labels(tmp_path / "m.png", labels, np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8))
    elif mode == "grey":
        path = saved(tmp_path / "m.png", labels)
    elif mode == "16 bit":
        path = saved(tmp_path / "m.png", labels.astype(np.uint16))
    else:
        rgb = davis_palette()[labels]
        if mode == "transparent":
            rgb = np.dstack([np.where(labels[..., None] > 0, rgb, 77), np.where(labels > 0, 255, 0).astype(np.uint8)])
        path = saved(tmp_path / "m.png", rgb)
    assert (read_labels(path, size=labels.shape) == labels).all()


def test_black_and_white_is_object_one(tmp_path):
    mask = scene((1,)) > 0
    for image in (mask, mask.astype(np.uint8) * 255, np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)):
        assert (read_labels(saved(tmp_path / "m.png", image)) == mask).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_keeps_its_ids(tmp_path, bits):
    """Pillow cannot write these, so the PNG is made by hand: 4 pixels 0, 1, 2, 3."""
    row = {2: b"\x1b", 4: b"\x01\x23"}[bits]
    path = tmp_path / "m.png"
    path.write_bytes(png(4, 1, bits, 0, b"\0" + row))
    assert read_labels(path, phantom="trust", ids=[1, 2, 3]).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("kind", ["P", "L", "RGB", "0/255"])
@pytest.mark.parametrize("how", ["×2 bilinear", "×4 bilinear", "÷2 bilinear", "×3 bicubic", "×2 lanczos"])
def test_smoothed_masks_are_refused_by_name_and_snapped_back(tmp_path, kind, how):
    factor, method = how.split()
    small = scene((2, 5, 9), scale=2 if "2" in factor else 1)
    if kind == "0/255":
        small = (small > 0) * np.uint8(255)
    size = tuple(int(n * {"×2": 2, "×4": 4, "×3": 3, "÷2": 0.5}[factor]) for n in small.shape[::-1])
    image = Image.fromarray(davis_palette()[small] if kind == "RGB" else small)
    smooth = image.resize(size, Image.Resampling[method.upper()])
    truth = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.NEAREST))
    if kind == "0/255":
        truth = truth // 255
    if kind == "P":
        path = write_labels(tmp_path / "m.png", np.asarray(smooth))
        assert (read_labels(path, phantom="trust") == np.asarray(smooth)).all()
    else:
        path = saved(tmp_path / "m.png", smooth)
    with pytest.raises(InputError, match=r"phantom ids, as smoothing makes them: \S+ \(\d+ px\)"):
        read_labels(path)
    snapped = read_labels(path, phantom="snap")
    assert set(np.unique(snapped)) == set(np.unique(truth))
    assert (snapped == truth).mean() >= 0.99


def test_feathered_mask_is_snapped_to_its_half_way_line(tmp_path):
    mask = scene((1,))
    path = saved(tmp_path / "m.png", Image.fromarray(mask * np.uint8(255)).filter(ImageFilter.GaussianBlur(3)))
    assert (read_labels(path, phantom="snap") == mask).mean() > 0.99


def test_blends_that_hit_a_palette_colour_are_phantoms_too(tmp_path):
    """Half of object 1's (128, 0, 0) is (64, 0, 0), the colour of object 8."""
    labels = scene((1,))
    smooth = np.asarray(Image.fromarray(davis_palette()[labels]).resize((399, 239), Image.Resampling.BILINEAR))
    assert (smooth == (64, 0, 0)).all(axis=2).any()
    assert set(np.unique(read_labels(saved(tmp_path / "m.png", smooth), phantom="snap"))) == {0, 1}


def test_expected_ids_decide(tmp_path):
    labels = scene((1, 2))
    labels[100:104, 10:14] = 7
    path = write_labels(tmp_path / "m.png", labels)
    assert (read_labels(path, ids=[1, 2, 7]) == labels).all()
    with pytest.raises(InputError, match=r"only objects \[1, 2\].*7 \(16 px\)"):
        read_labels(path, ids=[1, 2])
    assert (read_labels(path, ids=[1, 2], phantom="snap") == np.where(labels == 7, 0, labels)).all()
    with pytest.raises(InputError):
        read_labels(path, ids=[3], phantom="neither")


def test_thin_object_beside_another_is_real_if_the_caller_says_so(tmp_path):
    labels = np.zeros((60, 60), np.uint8)
    labels[20:40, 20:40] = 2
    labels[20:40, 19] = 1
    labels[20:40, 40] = 1
    path = saved(tmp_path / "m.png", labels)
    with pytest.raises(InputError, match="1 \\(40 px\\)"):
        read_labels(path)
    assert (read_labels(path, ids=[1, 2]) == labels).all()


def test_painted_colours_need_their_palette(tmp_path):
    labels = scene((1, 2))
    palette = with_colors({1: "blue", 2: "red"})
    path = saved(tmp_path / "m.png", palette[labels])
    for phantom in ("refuse", "snap"):  # snapping would lose the objects
        with pytest.raises(InputError, match=r"#0000ff \(\d+ px\)"):
            read_labels(path, phantom=phantom)
    assert (read_labels(path, palette=palette) == labels).all()


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60000, 60000, 8, 0, b""))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(InputError, match="60000×60000"):
        read_labels(path)
    with pytest.raises(InputError, match="a mask of 960×540"):
        read_labels(path, size=(540, 960))


def test_what_is_no_mask_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    photo = Image.fromarray(noise).resize((480, 360), Image.Resampling.BICUBIC)
    for image in (photo, photo.convert("L"), photo.quantize(256)):
        for phantom in ("refuse", "snap"):
            with pytest.raises(InputError, match="picture"):
                read_labels(saved(tmp_path / "photo.png", image), phantom=phantom)
    with pytest.raises(InputError, match="16-bit PNG with values up to 4000"):
        read_labels(saved(tmp_path / "deep.png", scene((1,)).astype(np.uint16) * 4000))
    whole = write_labels(tmp_path / "m.png", scene()).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    photo.save(tmp_path / "photo.jpg")
    (tmp_path / "empty.png").touch()
    for name, said in (
        ("cut", "damaged"),
        ("photo.jpg", "which is none"),
        ("empty", "which is none"),
        ("absent", "No such file"),
    ):
        with pytest.raises(InputError, match=said):
            read_labels((tmp_path / name).with_suffix(Path(name).suffix or ".png"))
    with pytest.raises(InputError, match=r"a mask of 200×121.*200×120"):
        read_labels(tmp_path / "m.png", size=(121, 200))


def test_real_photos_are_refused_and_real_masks_are_not(tmp_path):
    folder = SHARED / "judo"
    if not folder.exists():
        pytest.skip("the shared footage is not beside the checkout")
    for mask in sorted(folder.glob("*.png")):
        with Image.open(mask) as image:
            assert (read_labels(mask) == np.asarray(image)).all()
    with Image.open(folder / "00000.jpg") as photo:
        for image in (photo, photo.convert("L")):
            with pytest.raises(InputError, match="picture"):
                read_labels(saved(tmp_path / "photo.png", image))


# -- the masks of a clip -----------------------------------------------------------------------------------------------


@given(clips, st.slices(7), st.slices(7))
@settings(deadline=None)
def test_masks_slice_like_the_array_they_came_from(array, a, b):
    masks = Masks(array)
    names = [f"{t:05d}" for t in range(len(array))]
    view = masks[a][b]
    assert view.shape == array[a][b].shape
    assert (np.asarray(view) == array[a][b]).all()
    assert view.names == names[a][b]
    assert view.ids == tuple(int(i) for i in np.unique(array[a][b]) if i)
    assert all((x == y).all() for x, y in zip(masks, array, strict=True))


@given(label_maps)
@settings(deadline=None)
def test_unpack_is_the_inverse_of_pack(labels):
    unpacked = Masks.unpack(Masks.pack(labels), labels.shape)
    assert (unpacked == labels).all()
    assert unpacked.flags.writeable
    assert (Masks([Masks.pack(labels)], shape=labels.shape)[0] == labels).all()


def test_masks_in_memory_are_small():
    packed = Masks.pack(np.repeat(np.repeat(scene(), 4, axis=0), 4, axis=1))  # 480 × 800
    assert len(packed) < 3000


def test_wrong_arrays_and_counts_are_refused():
    for source in ([np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8)], np.zeros((2, 3, 4)), np.full((1, 2, 2), 300)):
        with pytest.raises(InputError):
            Masks(source)
    with pytest.raises(InputError, match="2 names"):
        Masks(np.zeros((2, 3, 4), np.uint8), names=["a"])
    with pytest.raises(IndexError):
        Masks(np.zeros((2, 3, 4), np.uint8))[2]


@given(clips)
@settings(deadline=None, max_examples=20)
def test_folders_round_trip(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("masks")
    names = [f"frame{t}" for t in range(8, 8 + len(array))]  # 8, 9, 10: only a natural sort has them in order
    masks = Masks(array, names=names)
    masks.save(folder / "labels")
    read = Masks(folder / "labels")
    assert read.names == names
    assert (np.asarray(read) == array).all()
    assert (read.at(names[-1]) == array[-1]).all()
    if masks.ids:
        masks.save(folder / "objects", per_object=True)
        assert sorted(p.name for p in (folder / "objects").iterdir()) == [f"{i:03d}" for i in masks.ids]
        read = Masks(folder / "objects")
        assert (np.asarray(read) == array).all()
        assert (np.asarray(read[::-1]) == array[::-1]).all()


def test_overlapping_objects_keep_their_files_and_merge_lowest_id_first(tmp_path):
    one, two = np.zeros((2, 4, 6), bool)
    one[1:3, 1:4] = True
    two[2:4, 2:6] = True
    with MaskWriter(tmp_path / "m", per_object=True) as writer:
        writer.write("00000", {1: one, 2: two})
        writer.write("00004", {1: ~one & False, 2: two})
    with Image.open(tmp_path / "m/002/00000.png") as image:
        assert (np.asarray(image) == two * 255).all()
    merged = Masks(tmp_path / "m")
    assert merged.names == ["00000", "00004"]
    assert (merged[0] == np.where(one, 1, np.where(two, 2, 0))).all()
    with MaskWriter(tmp_path / "flat") as writer:
        writer.write("00000", {2: two, 1: one})
    assert (Masks(tmp_path / "flat")[0] == merged[0]).all()


def test_object_folders_from_zero_keep_their_names(tmp_path):
    for name, column in (("000", 1), ("001", 3)):
        mask = np.zeros((3, 5), np.uint8)
        mask[:, column] = 255
        (tmp_path / "sav" / name).mkdir(parents=True)
        saved(tmp_path / "sav" / name / "00000.png", mask)
    masks = Masks(tmp_path / "sav")
    assert masks[0].tolist() == [[0, 1, 0, 2, 0]] * 3
    masks.save(tmp_path / "out", per_object=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000", "001"]


def test_scores_stay_beside_the_masks(tmp_path):
    scores = [{1: Score(0.5, 3.0, 0.25)}, {}, {1: Score(), 2: Score(iou=0.125)}]
    masks = Masks(np.ones((3, 2, 2), np.uint8), scores=scores)
    masks.save(tmp_path / "m")
    table = Masks(tmp_path / "m").scores_table()
    assert list(table.columns) == ["frame", "name", "object", "iou", "present", "disagreement"]
    assert table.equals(masks.scores_table())
    assert table["object"].tolist() == [1, 1, 2]
    assert Masks(tmp_path / "m")[::-1].scores[2] == scores[0]
    assert Masks(np.ones((3, 2, 2), np.uint8)).scores_table().empty


def test_folder_with_a_frame_of_another_size_or_a_smoothed_one_says_so(tmp_path):
    masks = Masks(np.stack([scene(), scene()]))
    masks.save(tmp_path / "m")
    write_labels(tmp_path / "m/00001.png", scene()[:-1])
    (tmp_path / "m/._00000.png").write_bytes(b"hidden by another system")
    read = Masks(tmp_path / "m")
    assert read.shape == (2, 120, 200)
    with pytest.raises(InputError, match="200×119"):
        read[1]
    saved(tmp_path / "m/00001.png", Image.fromarray(scene((2, 9))).filter(ImageFilter.GaussianBlur(1)))
    with pytest.raises(InputError, match="phantom"):
        read[1]
    for empty in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="a folder of PNG masks"):
            Masks(empty)


# -- writing behind ----------------------------------------------------------------------------------------------------


def test_folder_appears_only_at_the_end(tmp_path):
    with MaskWriter(tmp_path / "m") as writer:
        for t in range(20):
            writer.write(str(t), scene())
        assert not (tmp_path / "m").exists()
    assert len(list((tmp_path / "m").iterdir())) == 20
    with pytest.raises(InputError, match="new or empty"), MaskWriter(tmp_path / "m"):
        pass


@pytest.mark.parametrize("frames", [1, 30])
def test_full_disk_on_the_thread_reaches_the_caller_and_leaves_nothing(tmp_path, monkeypatch, frames):
    def save(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(masks_module, "_save", save)
    with pytest.raises(InputError, match=r"room on the disk for .*/m;"), MaskWriter(tmp_path / "m") as writer:
        for t in range(frames):
            writer.write(str(t), scene())
    assert not list(tmp_path.iterdir())


def test_callers_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), MaskWriter(tmp_path / "m") as writer:
        writer.write("0", scene())
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_writer_refuses_bad_names_sizes_and_ids(tmp_path):
    bad = [("a/b", scene()), ("0", scene()), ("1", scene()[1:]), ("1", {0: scene()}), ("1", {})]
    for name, labels in bad:
        with pytest.raises(InputError), MaskWriter(tmp_path / "m") as writer:
            writer.write("0", scene())
            writer.write(name, labels)
    assert not list(tmp_path.iterdir())


def test_writer_takes_a_copy(tmp_path):
    labels = scene()
    with MaskWriter(tmp_path / "m") as writer:
        for t in range(8):
            labels[0, 0] = t
            writer.write(str(t), labels)
    assert [int(frame[0, 0]) for frame in Masks(tmp_path / "m")] == list(range(8))


def test_objects_that_overlap_are_kept_apart_and_the_lower_one_is_on_top(tmp_path):
    one, two = np.zeros((2, 12, 16), bool)
    one[2:8, 2:8], two[4:10, 4:12] = True, True
    masks = Masks([{2: two, 1: one}, {}, {2: two}], shape=(12, 16), objects={1: {"name": "girl"}})
    assert masks.ids == (1, 2) and np.array_equal(masks[0], np.where(one, 1, np.where(two, 2, 0)))
    assert list(masks.layers(0)) == [1, 2] and np.array_equal(masks.layers(0)[2], two) and masks.layers(1) == {}
    assert np.array_equal(masks[::-1].layers(0)[2], two)
    saved = Masks(masks.save(tmp_path / "apart", per_object=True))
    assert all(np.array_equal(saved.layers(0)[obj], mask) for obj, mask in {1: one, 2: two}.items()) and saved.layers(1) == {}
    alone = masks.only([2])
    assert alone.ids == (2,) and np.array_equal(alone[0] == 2, two) and alone.objects == {}
    assert masks.only([1]).objects == {1: {"name": "girl"}}
    with pytest.raises(InputError, match="the shape"):
        Masks([{}])
    with pytest.raises(InputError, match="label maps of shape"):
        Masks([{1: one}, {1: one[1:]}])
