"""Each data set's layout becomes the same clips and prompts; a folder that is something else is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosnb.datasets import dataset, folders, names_in
from vosnb.errors import InputError
from vosnb.masks import Masks, write_labels

NAMES = ["00000", "00001", "00002", "00003"]


def frames(folder: Path, names=NAMES, size=(32, 24)) -> None:
    folder.mkdir(parents=True)
    for n, name in enumerate(names):
        Image.new("RGB", size, (40 * n, 0, 0)).save(folder / f"{name}.jpg")


def labels(*ids, size=(24, 32)) -> np.ndarray:
    out = np.zeros(size, np.uint8)
    for n, obj in enumerate(ids):
        out[2:10, 2 + 8 * n : 8 + 8 * n] = obj
    return out


def masks(folder: Path, by_name: dict) -> None:
    for name, found in by_name.items():
        write_labels(folder / f"{name}.png", found)


def davis(root: Path, size="480p", first=None) -> Path:
    for name in ("bear", "swan"):
        frames(root / "JPEGImages" / size / name)
        masks(root / "Annotations" / size / name, {n: labels(1, 2) if first is None else first for n in NAMES})
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("swan\nbear\n\n")
    return root


def objects(prompts) -> dict:
    return {t: sorted(given) for t, given in prompts.items()}


def test_davis_2017_follows_its_list_and_prompts_the_first_frame(tmp_path):
    data = dataset(davis(tmp_path), "davis2017")
    assert data.names == ("swan", "bear") and len(data) == 2 and data[0].frames == 4
    assert data["bear"].clip.shape == (4, 24, 32, 3) and data["bear"].clip.name == "bear"
    prompts = data["bear"].prompts()
    assert objects(prompts) == {0: [1, 2]} and (prompts[0][2].mask == (labels(1, 2) == 2)).all()
    assert isinstance(data["bear"].truth, Masks) and len(data["bear"].truth) == 4
    assert objects(data["bear"].prompts(every=True)) == {0: [1, 2]}  # the rest is truth
    assert [video.name for video in data.only(["bear"])] == ["bear"]
    with pytest.raises(InputError, match="swan, bear"):
        data["cow"]


def test_void_is_no_object_and_davis_2016_takes_all_as_one(tmp_path):
    root = davis(tmp_path, first=labels(7, 255))
    assert objects(dataset(root, "davis2017")[0].prompts()) == {0: [7]}
    (root / "ImageSets" / "480p").mkdir()
    (root / "ImageSets" / "480p" / "val.txt").write_text(
        "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n/JPEGImages/480p/bear/00001.jpg x.png\n"
    )
    data = dataset(root, "davis2016")
    assert data.names == ("bear",)
    assert (data[0].prompts()[0][1].mask == (labels(7, 255) > 0)).all()


def test_youtube_vos_gives_late_objects_and_runs_on_all_frames_where_they_are(tmp_path):
    frames(tmp_path / "valid" / "JPEGImages" / "v", ["00000", "00005"])
    masks(tmp_path / "valid" / "Annotations" / "v", {"00000": labels(4), "00005": labels(9)})
    meta = {"videos": {"v": {"objects": {"4": {"frames": ["00000", "00005"]}, "9": {"frames": ["00005"]}}}}}
    (tmp_path / "valid" / "meta.json").write_text(json.dumps(meta))
    data = dataset(tmp_path, "youtube-vos")
    assert objects(data["v"].prompts()) == {0: [4], 1: [9]} and data["v"].saved is None and data["v"].ids == (4, 9)
    frames(tmp_path / "valid_all_frames" / "JPEGImages" / "v", [f"{t:05d}" for t in range(8)])
    dense = dataset(tmp_path, "youtube-vos", "valid")["v"]
    assert objects(dense.prompts()) == {0: [4], 5: [9]} and dense.saved == {"00000", "00005"} and dense.frames == 8


def test_lvos_counts_from_one_in_fives_and_takes_first_appearances_of_dense_truth(tmp_path):
    names = ["00000001", "00000006", "00000011"]
    frames(tmp_path / "val" / "JPEGImages" / "v", names)
    masks(tmp_path / "val" / "Annotations" / "v", dict(zip(names, [labels(1), labels(1, 2), labels(1, 2)], strict=True)))
    (tmp_path / "val" / "valid_meta.json").write_text(json.dumps({"videos": {"v": {"objects": {"1": {}, "2": {}}}}}))
    video = dataset(tmp_path, "lvos")["v"]
    assert objects(video.prompts()) == {0: [1], 1: [2]} and video.clip.names == names
    assert objects(video.prompts(every=True)) == {0: [1], 1: [1, 2], 2: [1, 2]}


def test_masks_of_0_and_255_alone_are_of_one_object_but_beside_ids_255_is_void(tmp_path):
    frames(tmp_path / "JPEGImages" / "a")
    masks(tmp_path / "Annotations" / "a", {"00000": labels(), "00001": labels(255), "00003": labels(0, 255)})
    prompts = dataset(tmp_path)["a"].prompts(every=True)
    assert objects(prompts) == {1: [1], 3: [1]} and (prompts[1][1].mask == (labels(255) > 0)).all()
    masks(tmp_path / "Annotations" / "a", {"00000": labels(2, 255)})
    assert objects(dataset(tmp_path)["a"].prompts(every=True)) == {0: [2]}


@pytest.mark.parametrize("meta", [None, {"length": 4, "objects": ["1", "2"]}], ids=["v1", "v2"])
def test_mose_with_and_without_its_meta_file_from_its_root_or_its_split(meta, tmp_path):
    frames(tmp_path / "valid" / "JPEGImages" / "v")
    masks(tmp_path / "valid" / "Annotations" / "v", {"00000": labels(1, 2)})
    if meta:
        (tmp_path / "valid" / "meta.json").write_text(json.dumps({"videos": {"v": meta}}))
    for root in (tmp_path, tmp_path / "valid"):
        assert objects(dataset(root, "mose")["v"].prompts()) == {0: [1, 2]}


def test_sa_v_has_a_folder_per_object_overlaps_and_sparse_annotations(tmp_path):
    top = tmp_path / "sav_val"
    frames(top / "JPEGImages_24fps" / "v", [f"{t:05d}" for t in range(9)])
    for obj, name in (("000", "00000"), ("002", "00004")):
        masks(top / "Annotations_6fps" / "v" / obj, {f"{t:05d}": labels() for t in (0, 4, 8)})
        masks(top / "Annotations_6fps" / "v" / obj, {name: labels(1) * 255, "00008": labels(1) * 255})
    (top / "sav_val.txt").write_text("v")
    video = dataset(tmp_path, "sa-v")["v"]
    prompts = video.prompts()
    assert objects(prompts) == {0: [1], 4: [3]} and prompts.objects == {1: {"folder": "000"}, 3: {"folder": "002"}}
    assert objects(video.prompts(every=True)) == {0: [1], 4: [3], 8: [1, 3]}
    assert video.truth.objects[3]["folder"] == "002"


def test_any_folder_that_looks_like_davis_and_any_two_folders(tmp_path):
    frames(tmp_path / "JPEGImages" / "a")
    masks(tmp_path / "Annotations" / "a", {"00002": labels(5)})
    (tmp_path / "JPEGImages" / ".DS_Store").write_text("")
    assert objects(dataset(tmp_path)["a"].prompts()) == {2: [5]}
    assert folders(tmp_path / "JPEGImages", tmp_path / "Annotations").names == ("a",)


def test_longer_videos_with_more_objects_cost_more(tmp_path):
    for name, ids, count in (("a", [1], 4), ("b", [1, 2], 4), ("c", [1], 9), ("damaged", [1], 4)):
        frames(tmp_path / "JPEGImages" / name, [f"{t:05d}" for t in range(count)])
        masks(tmp_path / "Annotations" / name, {"00000": labels(*ids)})
    (tmp_path / "Annotations" / "damaged" / "00000.png").write_bytes(b"\x89PNG")
    a, b, c, damaged = (video.cost() for video in dataset(tmp_path))
    assert a < b < c and damaged == a


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, split, says",
    [
        ("davis2018", "val", "davis2017"),
        ("sa-v", "val", r"sav_val/JPEGImages_24fps and sav_val/Annotations_6fps .* looks like davis2016 or davis2017"),
    ],
)
def test_a_folder_that_is_not_what_its_name_says(kind, split, says, tmp_path):
    with pytest.raises(InputError, match=says):
        dataset(davis(tmp_path), kind, split)


def test_a_root_that_is_none_and_one_with_nothing_in_it(tmp_path):
    with pytest.raises(InputError, match="which is none"):
        dataset(tmp_path / "none", "mose")
    with pytest.raises(InputError, match="nothing in it"):
        dataset(tmp_path, "mose")


def test_a_list_that_names_a_missing_video_is_refused_before_any_work(tmp_path):
    root = davis(tmp_path)
    (root / "ImageSets" / "2017" / "val.txt").write_text("bear\ncow\n")
    with pytest.raises(InputError, match=r"frames of each video; got none in .* for cow"):
        dataset(root, "davis2017")
    frames(root / "JPEGImages" / "480p" / "cow")
    with pytest.raises(InputError, match=r"masks of each video; got none in .* for cow"):
        dataset(root, "davis2017")
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n")
    with pytest.raises(InputError, match="names in"):
        dataset(root, "davis2017")
    with pytest.raises(InputError, match="text file of names"):
        names_in(root)


def test_folders_per_object_where_none_are_expected_and_the_other_way_round(tmp_path):
    frames(tmp_path / "images" / "v")
    masks(tmp_path / "nested" / "v" / "001", {"00000": labels(1)})
    masks(tmp_path / "flat" / "v", {"00000": labels(1)})
    with pytest.raises(InputError, match="per_obj_png_file"):
        folders(tmp_path / "images", tmp_path / "nested")
    with pytest.raises(InputError, match="leave per_object out"):
        folders(tmp_path / "images", tmp_path / "flat", per_object=True)


@pytest.mark.parametrize(
    "found, says",
    [
        ({"00000": labels(1, size=(30, 32))}, "a mask of 32×24; got 32×30"),
        ({"00009": labels(1)}, "a frame for each annotation"),
        ({"00000": labels()}, "at least one annotated object"),
    ],
    ids=["another size", "no such frame", "empty"],
)
def test_annotations_that_do_not_fit_are_named(found, says, tmp_path):
    frames(tmp_path / "JPEGImages" / "a")
    masks(tmp_path / "Annotations" / "a", found)
    with pytest.raises(InputError, match=says):
        dataset(tmp_path)["a"].prompts()


def test_a_meta_file_of_something_else(tmp_path):
    frames(tmp_path / "val" / "JPEGImages" / "v")
    masks(tmp_path / "val" / "Annotations" / "v", {"00000": labels(1)})
    (tmp_path / "val" / "meta.json").write_text("[]")
    with pytest.raises(InputError, match=r"meta\.json"):
        dataset(tmp_path, "mose")
