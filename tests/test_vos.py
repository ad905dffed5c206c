"""`vosnb vos` from the folders of a data set to a folder of masks per video."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image
from vos_fakes import Shift

from vosnb import cli
from vosnb.datasets import folders
from vosnb.masks import Masks, write_labels
from vosnb.paint import davis_palette
from vosnb.strategies import get
from vosnb.vos import Vos
from vosnb.vos_command import slurm_settings

FRAMES = 5


def truth(t: int, *ids: int) -> np.ndarray:
    out = np.zeros((24, 40), np.uint8)
    for n, obj in enumerate(ids):
        out[2:10, 2 + 12 * n + t : 10 + 12 * n + t] = obj
    return out


def write(root: Path, name: str, ids=(1, 2), frames=FRAMES, annotated=None) -> None:
    images, masks = root / "JPEGImages" / name, root / "Annotations" / name
    images.mkdir(parents=True)
    for t in range(frames):
        Image.new("RGB", (40, 24), (10 * t, 0, 0)).save(images / f"{t:05d}.jpg")
        if annotated is None:
            write_labels(masks / f"{t:05d}.png", truth(t, *ids))
    for t, found in (annotated or {}).items():
        write_labels(masks / f"{t:05d}.png", found)


@pytest.fixture
def data(tmp_path) -> Path:
    root = tmp_path / "data"
    write(root, "bear")
    write(root, "swan", ids=(3,), frames=7)
    return root


@pytest.fixture
def vosnb(monkeypatch, capfd, tmp_path):
    """`vosnb vos` in this process (its workers are others) with the fake strategy, from and into `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, by="shift", command="vos") -> SimpleNamespace:
        chosen = ["--by", by] if command == "vos" and by else []
        monkeypatch.setattr(sys, "argv", ["vosnb", command, *map(str, arguments), *chosen])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return SimpleNamespace(code=ended.value.code or 0, **dict(zip(("out", "err"), capfd.readouterr(), strict=True)))

    return run


FOLDERS = ["--base_video_dir", "data/JPEGImages", "--input_mask_dir", "data/Annotations", "--output_mask_dir", "masks"]


def test_names_with_spaces_and_frames_of_any_kind_of_name_and_picture_are_fine(vosnb, tmp_path):
    images, masks = tmp_path / "data" / "JPEGImages" / "ein Tag", tmp_path / "data" / "Annotations" / "ein Tag"
    images.mkdir(parents=True)
    for t in range(3):
        Image.new("RGB", (40, 24), (10 * t, 0, 0)).save(images / f"frame{t:05d}.PNG")
        write_labels(masks / f"frame{t:05d}.png", truth(t, 254))
    (tmp_path / "list.txt").write_bytes("\ufeffein Tag\r\n".encode())
    done = vosnb("--data", "data", "-o", "my masks", "--video_list_file", "list.txt", "--report", "r", "--protocol", "sa-v")
    assert done.code == 0 and "J&F-Mean 1.0000" in done.out, done.err
    assert [p.name for p in sorted((tmp_path / "my masks" / "ein Tag").iterdir())] == [f"frame{t:05d}.png" for t in range(3)]


def test_every_video_becomes_a_folder_of_indexed_pngs_named_like_its_frames(data, vosnb, tmp_path):
    done = vosnb(*FOLDERS)
    assert done.code == 0 and "2 done, 0 failed, 0 left" in done.out
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["bear", "swan"]
    for name, ids, frames in (("bear", (1, 2), 5), ("swan", (3,), 7)):
        files = sorted((tmp_path / "masks" / name).iterdir())
        assert [p.name for p in files] == [f"{t:05d}.png" for t in range(frames)]
        assert all((np.array(Image.open(p)) == truth(t, *ids)).all() for t, p in enumerate(files))
        assert Image.open(files[0]).getpalette() == davis_palette().ravel().tolist()
    manifest = json.loads((tmp_path / "masks.run" / "manifest.json").read_text())
    assert manifest["done"]["swan"]["frames"] == 7 and manifest["plan"]["strategy"] == {"name": "Shift", "speed": 1}
    assert vosnb("masks", "data/Annotations", "--protocol", "davis2017", command="evaluate").code == 0, "and are what it reads"


def test_the_settings_of_the_strategy_arrive_and_another_run_into_the_folder_is_refused(data, vosnb, tmp_path):
    assert vosnb(*FOLDERS, "--set", "speed=2", "--video_list_file", _list(tmp_path, "bear")).code == 0
    assert (Masks(tmp_path / "masks" / "bear")[2] == truth(4, 1, 2)).all() and not (tmp_path / "masks" / "swan").exists()
    refused = vosnb(*FOLDERS, "--set", "speed=3", "--video_list_file", "list.txt")
    assert refused.code == 2 and "another one (strategy" in refused.err
    assert vosnb(*FOLDERS, "--set", "speed=3", "--video_list_file", "list.txt", "--overwrite").code == 0
    assert (Masks(tmp_path / "masks" / "bear")[1] == truth(3, 1, 2)).all()


def _list(folder: Path, *names: str) -> Path:
    (folder / "list.txt").write_text("\n".join(names))
    return folder / "list.txt"


def test_chunks_share_the_sorted_videos_out(data, vosnb, tmp_path):
    for node, chunk in ((1, 0), (0, 0), (0, 1), (1, 1)):
        assert vosnb(*FOLDERS, "--num_nodes", 2, "--node_id", node, "--num_chunks", 2, "--chunk_id", chunk).code == 0
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["bear", "swan"]
    assert "a node_id from 0" in vosnb(*FOLDERS, "--num_nodes", 2, "--node_id", 2).err


def test_late_objects_are_tracked_and_told_of_unless_expected(vosnb, tmp_path):
    late = {0: truth(0, 1), 2: truth(2, 0, 2)}
    write(tmp_path / "data", "late", annotated=late)
    done = vosnb(*FOLDERS)
    assert "object 2 appears after frame 00000" in done.err and "--track_object_appearing_later_in_video" in done.err
    masks = Masks(tmp_path / "masks" / "late")
    assert masks.ids == (1, 2) and 2 not in masks[1] and (masks[3] == truth(3, 1, 2)).all()
    done = vosnb(*FOLDERS, "--overwrite", "--track_object_appearing_later_in_video")
    assert "appears after" not in done.err and (Masks(tmp_path / "masks" / "late")[3] == truth(3, 1, 2)).all()


def test_an_object_that_is_alone_and_late_is_told_of_too_and_the_frames_before_it_are_empty(vosnb, tmp_path):
    write(tmp_path / "data", "late", annotated={0: truth(0), 2: truth(0, 1)})
    assert "object 1 appears after frame 00000" in vosnb(*FOLDERS).err
    masks = Masks(tmp_path / "masks" / "late")
    assert len(masks) == FRAMES and not masks[1].any() and (masks[3] == truth(1, 1)).all()


def test_every_annotation_is_a_prompt_where_asked(vosnb, tmp_path):
    write(tmp_path / "data", "v", annotated={0: truth(0, 1), 3: truth(9, 1)})
    vosnb(*FOLDERS, "--use_all_masks")
    masks = Masks(tmp_path / "masks" / "v")
    assert (masks[2] == truth(2, 1)).all() and (masks[4] == truth(10, 1)).all()


def test_a_png_per_object_in_and_out_with_overlaps_and_every_frame(vosnb, tmp_path):
    write(tmp_path / "data", "v", annotated={})
    for folder, t in (("000", 0), ("004", 2)):
        write_labels(tmp_path / "data" / "Annotations" / "v" / folder / f"{t:05d}.png", truth(0, 1) * 255)
    assert "per_obj_png_file" in vosnb(*FOLDERS).err
    assert "object 004 appears after frame 00000" in vosnb(*FOLDERS, "--per_obj_png_file").err
    for folder, begin in (("000", 0), ("004", 2)):
        for t in range(FRAMES):
            found = np.array(Image.open(tmp_path / "masks" / "v" / folder / f"{t:05d}.png")) > 0
            assert (found == (truth(t - begin, 1) > 0 if t >= begin else False)).all(), (folder, t)


def test_a_data_set_by_its_kind_and_j_and_f_at_the_end(data, vosnb, tmp_path):
    for kind in ("JPEGImages", "Annotations"):
        (data / kind).rename(data / "480p")
        (data / kind).mkdir()
        (data / "480p").rename(data / kind / "480p")
    (data / "ImageSets" / "2017").mkdir(parents=True)
    (data / "ImageSets" / "2017" / "val.txt").write_text("bear\n")
    done = vosnb("--data", "data", "--kind", "davis2017", "-o", "masks", "--report", "report", "--jobs", "auto")
    assert done.code == 0 and "J&F-Mean 1.0000" in done.out and (tmp_path / "report" / "index.html").is_file()
    folder = ["--base_video_dir", "data/JPEGImages/480p", "--input_mask_dir", "data/Annotations/480p", "-o", "all"]
    done = vosnb(*folder, "--report", "other", "--protocol", "sa-v")
    assert done.code == 0 and "J&F-Mean 1.0000" in done.out and (tmp_path / "other" / "per-frame.csv").is_file()


@pytest.mark.parametrize("harm", ["truncated", "another size", "no object"])
def test_a_video_that_is_damaged_is_recorded_and_the_others_are_done(harm, data, vosnb, tmp_path):
    if harm == "truncated":
        middle = data / "JPEGImages" / "bear" / "00002.jpg"
        middle.write_bytes(middle.read_bytes()[:-200])
    else:
        first = data / "Annotations" / "bear" / "00000.png"
        for path in (data / "Annotations" / "bear").iterdir():
            path.unlink()
        write_labels(first, np.ones((9, 9), np.uint8) if harm == "another size" else truth(0))
    done = vosnb(*FOLDERS)
    assert done.code == 1 and "1 done, 1 failed" in done.out
    failed = json.loads((tmp_path / "masks.run" / "failed" / "bear.json").read_text())
    named = {"truncated": "00002.jpg", "another size": "00000.png", "no object": "Annotations/bear"}[harm]
    assert named in failed["error"] and "InputError" in failed["error"] and "Traceback" in failed["traceback"]
    assert [p.name for p in (tmp_path / "masks").iterdir()] == ["swan"] and "tries the failed ones again" in done.err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["-o", "masks"], "--base_video_dir and --input_mask_dir, or --data"),
        ([*FOLDERS, "--video_list_file", "list.txt"], "got none in data/JPEGImages for cow"),
        ([*FOLDERS, "--jobs", "many"], "a number of processes, or auto"),
        ([*FOLDERS, "--num_pathway", "3"], "a setting of shift among speed"),
        ([*FOLDERS, "--slurm", "partition"], "name=value"),
        ([*FOLDERS, "--report", "report"], "--report with --protocol davis2016, davis2017"),
        ([*FOLDERS, "--report", "report", "--protocol", "mose", "--num_chunks", "2"], "--report without chunks"),
        ([*FOLDERS, "--sam2_cfg", "sam2.1_hiera_l.yaml"], "--sam2_checkpoint with --sam2_cfg"),
        (["--data", "data", "-o", "masks", "--per_obj_png_file"], "--data of kind folder, which has one for all"),
        (["--data", "data", "--kind", "sa-v", "-o", "masks"], "sav_val/JPEGImages_24fps"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(arguments, says, data, vosnb, tmp_path):
    _list(tmp_path, "bear", "cow")
    done = vosnb(*arguments)
    assert done.code == 2 and says in done.err and not list(tmp_path.glob("masks*"))


def test_a_checkpoint_that_is_not_there_is_refused_before_any_work(data, vosnb, tmp_path, monkeypatch):
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path / "none"))
    for name, says in (("sam2.1_hiera_tiny", "vosnb fetch sam2.1_hiera_tiny"), ("none.pt", "none.pt, which does not exist")):
        done = vosnb(*FOLDERS, "--sam2_checkpoint", name, by="sam2long")
        assert done.code == 2 and says in done.err and not list(tmp_path.glob("masks*"))


def test_what_a_slurm_setting_lists_may_have_commas():
    assert slurm_settings(["partition=gpu,exclude=n1,n2,time=60", "mem=8GB"]) == {
        "partition": "gpu", "exclude": "n1,n2", "time": 60, "mem": "8GB",
    }  # fmt: skip


@pytest.mark.parametrize("by, first, file", [("sam2+refine", "SAM2", "sam2"), ("xmem+refine", "XMem", "xmem")])
def test_the_plan_names_every_model_and_its_checkpoint_also_of_what_is_refined(by, first, file, data):
    videos = folders(data / "JPEGImages", data / "Annotations")
    plan = Vos(videos, get(by)).plan()["strategy"]
    assert (plan["name"], plan["first"]["name"]) == ("Refined", first) and file in plan["first"]["checkpoint"]["file"].lower()
    for part in (plan, plan["first"]):
        assert part["model"] and len(part["checkpoint"]["sha256"]) == 64


def test_two_hundred_short_videos_in_one_process_keep_memory_flat(tmp_path):
    write(tmp_path / "data", "v", frames=3)
    job = Vos(folders(tmp_path / "data" / "JPEGImages", tmp_path / "data" / "Annotations"), Shift())
    process = psutil.Process()
    used = []
    for n in range(200):
        job.make("v", tmp_path / "out" / str(n))
        used.append(process.memory_info().rss)
    assert used[-1] - used[20] < 50e6
