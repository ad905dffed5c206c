"""Each server gets the zip file that it wants; a wrong one is refused with what is wrong."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosnb.datasets import dataset
from vosnb.errors import InputError
from vosnb.masks import write_labels
from vosnb.submit import check, submit

NAMES = [f"{t:05d}" for t in range(3)]


def labels(*ids: int) -> np.ndarray:
    out = np.zeros((12, 20), np.uint8)
    for n, obj in enumerate(ids):
        out[2:8, 2 + 5 * n : 6 + 5 * n] = obj
    return out


@pytest.fixture
def mose(tmp_path) -> Path:
    """Two videos with two objects, truth on the first frame; results in masks, with a palette of their own in `b`."""
    for video in ("a", "b"):
        images = tmp_path / "valid" / "JPEGImages" / video
        images.mkdir(parents=True)
        for name in NAMES:
            Image.new("RGB", (20, 12)).save(images / f"{name}.jpg")
            write_labels(tmp_path / "masks" / video / f"{name}.png", labels(1, 2))
        write_labels(tmp_path / "valid" / "Annotations" / video / "00000.png", labels(1, 2))
    Image.fromarray(labels(1, 2)).save(tmp_path / "masks" / "b" / "00001.png")  # grey
    (tmp_path / "masks" / "a" / "extra.png").write_bytes(b"not asked for")
    return tmp_path


def entries(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


@pytest.mark.parametrize("kind, top", [("mose", ""), ("lvos", "Annotations/"), ("youtube-vos", "Annotations/")])
def test_names_frames_and_palette_are_what_the_server_wants(kind, top, mose):
    data = dataset(mose, kind)
    file = submit(mose / "masks", data, mose / "out.zip")
    assert entries(file) == [f"{top}{video}/{name}.png" for video in "ab" for name in NAMES]
    with zipfile.ZipFile(file) as archive, archive.open(f"{top}b/00001.png") as mask, Image.open(mask) as image:
        assert image.mode == "P" and (np.array(image) == labels(1, 2)).all()
    check(file, data)
    first = file.read_bytes()
    assert submit(mose / "masks", data, mose / "again.zip").read_bytes() == first, "the same masks, the same bytes"


def test_of_results_at_the_full_rate_only_the_frames_that_count_go_in(mose):
    shutil.copytree(mose / "valid", mose / "valid_all_frames")
    for path in (mose / "valid" / "JPEGImages" / "a" / "00001.jpg", mose / "valid" / "JPEGImages" / "b" / "00001.jpg"):
        path.unlink()
    file = submit(mose / "masks", dataset(mose, "youtube-vos"), mose / "out.zip")
    assert entries(file) == [f"Annotations/{video}/{name}.png" for video in "ab" for name in ("00000", "00002")]


def test_sa_v_has_black_and_white_masks_of_each_object_on_the_annotated_frames(tmp_path):
    for video in ("a", "b"):
        images = tmp_path / "sav_test" / "JPEGImages_24fps" / video
        images.mkdir(parents=True)
        for name in NAMES:
            Image.new("RGB", (20, 12)).save(images / f"{name}.jpg")
            Image.fromarray(labels(255)).save(_made(tmp_path / "masks" / video / "000" / f"{name}.png"))
        for name in ("00000", "00002"):
            write_labels(tmp_path / "sav_test" / "Annotations_6fps" / video / "000" / f"{name}.png", labels(255))
    write_labels(tmp_path / "masks" / "a" / "000" / "00002.png", labels(1))
    data = dataset(tmp_path, "sa-v", "test")
    file = submit(tmp_path / "masks", data, tmp_path / "out.zip")
    assert entries(file) == [f"{video}/000/{name}.png" for video in "ab" for name in ("00000", "00002")]
    check(file, data)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize(
    "harm, says",
    [
        ("missing", "no a/00001.png"),
        ("size", "a/00001.png of 12×20, not 20×12"),
        ("id", "a/00001.png with object 7, which was not prompted"),
        ("damaged", "00001.png"),
    ],
)
def test_masks_that_do_not_fit_are_not_packed(harm, says, mose):
    path = mose / "masks" / "a" / "00001.png"
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(path.read_bytes()[:40])
    else:
        write_labels(path, labels(1, 2).T if harm == "size" else labels(1, 7))
    with pytest.raises(InputError, match=says):
        submit(mose / "masks", dataset(mose, "mose"), mose / "out.zip")
    assert not (mose / "out.zip").exists()


def zipped(folder: Path, file: Path, top: str = "") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, f"{top}{path.relative_to(folder)}")
    return file


def test_a_zip_file_made_otherwise_is_refused_with_what_is_wrong(mose):
    (mose / "masks" / "a" / "extra.png").unlink()
    data = dataset(mose, "mose")
    with pytest.raises(InputError, match=r"b/00001\.png, which is not indexed by the palette of DAVIS"):
        check(zipped(mose / "masks", mose / "grey.zip"), data)
    with pytest.raises(InputError, match=r"no a/00000\.png.*and 6 more"):
        check(zipped(mose / "masks", mose / "below.zip", "Annotations/"), data)
    (mose / "text.zip").write_text("no zip file")
    with pytest.raises(InputError, match="a zip file; got"):
        check(mose / "text.zip", data)
    with pytest.raises(InputError, match="one video alone"):
        submit(mose / "masks", data[:1], mose / "one.zip")
    with pytest.raises(InputError, match="have no server"):
        submit(mose / "masks", dataset(mose / "valid", "folder"), mose / "out.zip")
    with pytest.raises(InputError, match=r"ends in \.zip"):
        submit(mose / "masks", data, mose / "out.tar")
