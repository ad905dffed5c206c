"""The command line from its arguments to the files that it leaves; and every mistake that it must survive."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vosnb import cli, files
from vosnb.clip import Clip
from vosnb.errors import RunFailed
from vosnb.evaluate import jaccard
from vosnb.masks import Masks, write_labels
from vosnb.paint import davis_palette
from vosnb.prompts import Box, Prompts
from vosnb.strategies import get
from vosnb.video import write_video

# what an object of the `moving` clip gets on frame 0: {1: disc around (36, 26), 2: disc around (96, 71)}, radius 15
BOXES = ["--box", "1:20,10,53,43", "--box", "2:80,55,113,88"]


@pytest.fixture
def vosnb(monkeypatch, capfd, tmp_path):
    """Runs a command line in this process, in `tmp_path`: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["vosnb", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return SimpleNamespace(code=ended.value.code or 0, **dict(zip(("out", "err"), capfd.readouterr(), strict=True)))

    return run


@pytest.fixture
def refuses(vosnb, tmp_path):
    """Runs a command line that must fail: in three parts on stderr, with the code of a mistake, and without any new file."""

    def run(*arguments: object, says: str) -> None:
        before = everything(tmp_path)
        done = vosnb(*arguments)
        assert done.code == 2, done
        line = done.err.strip().splitlines()[-1]
        assert line.startswith("error: expected ") and "; got " in line and line.count("; ") >= 2, done.err
        assert says in line and "Traceback" not in done.err
        assert everything(tmp_path) == before

    return run


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content; a folder that was made for a file and stayed empty is no result."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def film(moving, tmp_path_factory) -> Path:
    """The first six frames of the `moving` clip: film/film.mp4, film/frames/*.png, film/truth/*.png, film/first.png."""
    folder = tmp_path_factory.mktemp("film")
    images, labels = (array[:6] for array in moving)
    write_video(folder / "film.mp4", images, fps=25, crf=1)
    (folder / "frames").mkdir()
    for t, image in enumerate(images):
        Image.fromarray(image).save(folder / "frames" / f"img{t}.png")
    Masks(labels, [f"img{t}" for t in range(6)]).save(folder / "truth")
    write_labels(folder / "first.png", labels[0])
    Prompts({0: {1: Box(20, 10, 53, 43), 2: Box(80, 55, 113, 88)}}).save(folder / "prompts.json")
    return folder


def indexed(path: Path) -> np.ndarray:
    """The label map of an indexed PNG with the DAVIS palette."""
    with Image.open(path) as image:
        assert image.mode == "P" and image.format == "PNG"
        assert image.getpalette()[:9] == davis_palette().ravel()[:9].tolist()
        return np.array(image)


def agree(labels: np.ndarray, truth: np.ndarray, least: float = 0.85) -> bool:
    return all(jaccard(labels == obj, truth == obj) > least for obj in (1, 2))


# -- what it does ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["film.mp4", "frames", "frames/img0.png"])
def test_segment_writes_an_indexed_png(source, film, moving, vosnb):
    done = vosnb("segment", film / source, *BOXES, "-o", "new/first.png", "--overlay", "look.png")
    assert done.code == 0 and "object 1: " in done.out and done.out.splitlines()[-1] == "new/first.png"
    assert agree(indexed(Path("new/first.png")), moving[1][0])
    with Image.open("look.png") as picture:
        assert picture.size == (128, 96) and picture.mode == "RGB"


def test_segment_takes_points_of_both_kinds_and_any_frame(film, moving, vosnb):
    points = ["--points", "1:46,26,40,30", "--points", "2:86,71", "--background", "1:60,60,2,2", "--background", "2:60,40"]
    boxes = ["--box", "1:30,10,63,43", "--box", "2:70,55,103,88"]
    assert vosnb("segment", film / "frames", "--frame", 5, *points, *boxes, "-o", "first.png").code == 0
    assert agree(indexed(Path("first.png")), moving[1][5])


def test_segment_takes_a_prompts_file_and_options_add_to_it(film, vosnb):
    vosnb("segment", film / "film.mp4", *BOXES, "-o", "options.png")
    vosnb("segment", film / "film.mp4", "--prompts", film / "prompts.json", "-o", "file.png")
    assert Path("options.png").read_bytes() == Path("file.png").read_bytes()
    done = vosnb("segment", film / "film.mp4", "--prompts", film / "prompts.json", "--box", "7:56,0,76,20", "-o", "more.png")
    assert "object 7: " in done.out


def test_segment_leaves_out_auxiliary_objects_and_says_what_came_out_empty(film, vosnb):
    assert vosnb("segment", film / "film.mp4", *BOXES, "--aux", 2, "--fill-holes", 50, "-o", "first.png").code == 0
    assert np.unique(indexed(Path("first.png"))).tolist() == [0, 1]
    write_labels("none.png", np.zeros((96, 128), np.uint8))
    empty = Prompts({0: {1: Box(20, 10, 53, 43), 2: np.zeros((96, 128), bool)}}).save("empty.json")
    assert "object 2: 0 px, EMPTY" in vosnb("segment", film / "film.mp4", "--prompts", empty, "-o", "empty.png").out


def test_propagate_writes_a_folder_of_masks_and_a_video(film, moving, vosnb):
    done = vosnb("propagate", film / "frames", film / "first.png", "-o", "masks", "--video", "look.mp4")
    assert done.code == 0 and done.out.split() == ["masks", "look.mp4"]
    names = [f"img{t}.png" for t in range(6)]
    assert sorted(path.name for path in Path("masks").iterdir()) == [*names, "scores.csv"]
    assert all(agree(indexed(Path("masks") / name), moving[1][t]) for t, name in enumerate(names))
    assert Clip("look.mp4").shape == (6, 96, 128, 3)


def test_propagate_takes_prompts_settings_and_runs_both_ways(film, moving, vosnb):
    settings = ["--by", "flow", "--set", "quality=fast", "--set", "tolerance=2.5"]
    assert vosnb("propagate", film / "film.mp4", film / "prompts.json", *settings, "-o", "forward").code == 0
    assert agree(Masks("forward")[5], moving[1][5])
    write_labels("last.png", moving[1][5])
    backward = ["--frame", 5, "--direction", "backward"]
    assert vosnb("propagate", film / "film.mp4", "last.png", *backward, "-o", "backward").code == 0
    assert agree(Masks("backward")[0], moving[1][0])
    write_labels("middle.png", moving[1][3])
    assert vosnb("propagate", film / "film.mp4", "middle.png", "--frame", 3, "--direction", "both", "-o", "both").code == 0
    assert agree(Masks("both")[0], moving[1][0]) and agree(Masks("both")[5], moving[1][5])


def test_propagate_by_sam_uses_the_model_that_is_set(film, moving, vosnb):
    arguments = ["--by", "sam", "--set", "model=grabcut", "--aux", 2, "-o", "masks"]
    assert vosnb("propagate", film / "film.mp4", film / "first.png", *arguments).code == 0
    masks = Masks("masks")
    assert masks.ids == (1,) and jaccard(masks[5] == 1, moving[1][5] == 1) > 0.85


def test_propagate_by_xmem_takes_a_folder_of_jpegs_and_its_first_annotation(moving, vosnb):
    """As XMem's own generic folder: the frames' names, their size whatever the network's, the palette, the ids of the annotation."""
    Path("JPEGImages").mkdir()
    for t, image in enumerate(moving[0][:3]):
        Image.fromarray(image[:93, :125]).save(f"JPEGImages/clip_{t + 3:04d}.jpg")
    write_labels("first.png", np.array([0, 7, 200], np.uint8)[moving[1][0][:93, :125]])
    settings = ["--set", "model=mini-random", "--set", "device=cpu", "--set", "size=64"]
    assert vosnb("propagate", "JPEGImages", "first.png", "--by", "xmem", *settings, "-o", "masks").code == 0
    assert sorted(p.name for p in Path("masks").glob("*.png")) == [f"clip_{t:04d}.png" for t in (3, 4, 5)]
    labels = [indexed(path) for path in sorted(Path("masks").glob("*.png"))]
    assert {a.shape for a in labels} == {(93, 125)} and set(np.unique(labels)) <= {0, 7, 200}
    first = indexed(Path("first.png"))
    assert all(jaccard(labels[0] == obj, first == obj) > 0.9 for obj in (7, 200))  # through the network's size and back


def test_refine_says_how_much_it_changed(film, moving, vosnb, refuses):
    done = vosnb("refine", film / "frames", film / "truth", "-o", "refined", "--prompt", "box", "--trust", 0)
    assert done.code == 0 and done.out.splitlines()[-1] == "refined"
    assert re.fullmatch(r"object 1: IoU with what it was 0\.\d{3}, at least 0\.\d{3} \(frame img\d\)", done.out.splitlines()[0])
    assert sorted(p.name for p in Path("refined").glob("*.png")) == [f"img{t}.png" for t in range(6)]
    refuses("refine", film / "frames", film / "truth", "-o", film / "truth", says="a place of its own")
    refuses("refine", film / "frames", film / "truth", "-o", "new", "--prompt", "clicks", says="a prompt among mask+box")


def test_compare_prints_a_table_and_writes_a_page(film, vosnb, refuses):
    settings = [
        "--by",
        "flow,flow+refine",
        "--set",
        "flow.quality=fast",
        "--set",
        "flow+refine.refine_prompt=box",
        "--set",
        "flow+refine.refine_trust=0",
        "--frames",
        3,
    ]
    done = vosnb("compare", film / "frames", film / "first.png", *settings, "-o", "out", "--truth", film / "truth")
    assert done.code == 0 and done.out.splitlines()[-1] == "out/index.html"
    assert re.search(r"J 1 +J 2 +J +.*agreement +s/frame +MB", done.out) and re.search(r"^flow\+refine +0\.\d", done.out, re.M)
    assert sorted(p.name for p in Path("out/masks/flow").glob("*.png")) == [f"img{t}.png" for t in range(3)]
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    for arguments, says in (
        (["-o", "notes"], "an earlier comparison"),
        (["-o", "new", "--set", "quality=fast"], "--set STRATEGY.name=value"),
        (["-o", "new", "--set", "sam.model=grabcut"], "a strategy that is compared"),
        (["-o", "new", "--by", "flow,flaw"], "a strategy among"),
    ):
        refuses("compare", film / "frames", film / "first.png", "--by", "flow", *arguments, says=says)


def test_measure_prints_the_last_frame_and_writes_tables(film, vosnb, refuses):
    done = vosnb("measure", film / "truth", "--pixel", 0.5, "--unit", "mm", "--fps", 25, "-o", "measures")
    assert done.code == 0 and done.out.splitlines()[-1] == "measures"
    assert Path("measures/objects.csv").read_text().splitlines()[0] == "# lengths in mm, areas in mm², times in s"
    area = float(re.search(r"^ *1 +area +(\S+)", done.out, re.M)[1])
    assert area == pytest.approx(np.pi * 15**2 / 4, rel=0.02)
    refuses("measure", film / "truth", film / "truth", "-o", "new", says="folders of different names")
    refuses("measure", film / "truth", "--fps", 0, "-o", "new", says="frames per second above 0")


def test_propagate_writes_a_folder_per_object(film, vosnb):
    assert vosnb("propagate", film / "frames", film / "first.png", "--per-object", "-o", "masks").code == 0
    found = sorted(str(path.relative_to("masks")) for path in Path("masks").rglob("*.png"))
    assert found == [f"{obj}/img{t}.png" for obj in ("001", "002") for t in range(6)]
    assert Masks("masks").ids == (1, 2)


def test_an_anti_aliased_first_mask_is_refused_or_snapped(film, moving, vosnb, refuses):
    smooth = Image.fromarray(davis_palette()[moving[1][0]]).resize((256, 192)).resize((128, 96), Image.Resampling.BILINEAR)
    smooth.save("smooth.png")
    refuses("propagate", film / "film.mp4", "smooth.png", "-o", "masks", says="phantom ids")
    assert vosnb("propagate", film / "film.mp4", "smooth.png", "--snap", "-o", "masks").code == 0
    assert Masks("masks").ids == (1, 2) and agree(Masks("masks")[0], moving[1][0])


def test_results_are_replaced_only_when_asked(film, vosnb, refuses):
    Path("masks").mkdir()
    Path("masks/00099.png").write_text("mine")
    refuses("propagate", film / "film.mp4", film / "first.png", "-o", "masks", says="choose another name, or say --overwrite")
    assert vosnb("propagate", film / "film.mp4", film / "first.png", "-o", "masks", "--overwrite").code == 0
    assert not Path("masks/00099.png").exists() and len(Masks("masks")) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "{film}", *BOXES, "--model", "grabcut", "-o", "mine.png"],
        ["segment", "{film}", *BOXES, "--model", "grabcut", "-o", "first.png", "--overlay", "mine.png"],
        ["propagate", "{film}", "{first}", "-o", "masks", "--video", "mine.mp4"],
        ["video", "--video_path", "{film}", "--points", "36", "26", "--output_video", "mine.mp4"],
        ["clip", "{film}", "-o", ".", "--name", "mine"],
    ],
)
def test_a_file_is_replaced_only_when_asked(arguments, film, vosnb, refuses, monkeypatch):
    monkeypatch.setattr("vosnb.strategies.sam2long.SAM2Long.tracker", lambda self, *shape: get("flow").tracker(*shape))
    arguments = [text.format(film=film / "film.mp4", first=film / "first.png") for text in arguments]
    mine = Path("mine.png" if "segment" in arguments else "mine.mp4")
    mine.write_text("mine")
    refuses(*arguments, says=f"{mine} to be new; got an existing file; choose another name, or say --overwrite")
    assert vosnb(*arguments, "--overwrite").code == 0 and mine.stat().st_size > 100


def test_evaluate_prints_and_saves(film, vosnb):
    done = vosnb("evaluate", film / "truth", film / "truth", "-o", "report.json")
    assert done.code == 0 and done.out.splitlines() == [
        "object 1: J 1.0000",
        "object 2: J 1.0000",
        "mean J 1.0000",
        "report.json",
    ]
    report = json.loads(Path("report.json").read_text())
    assert report["mean J"] == 1 and str(film / "truth") in json.dumps(report["about"])


def test_evaluate_scores_data_sets_and_compares(film, vosnb, tmp_path):
    for name in ("truth", "masks", "other"):
        shutil.copytree(film / "truth", tmp_path / name / "a")
    for path in sorted((tmp_path / "other" / "a").iterdir())[2:4]:
        write_labels(path, np.zeros((96, 128), np.uint8))
    done = vosnb("evaluate", "masks", "truth", "--protocol", "davis2017", "-o", "out")
    assert done.code == 0 and "J&F-Mean 1.0000" in done.out and Path("out/global_results-val.csv").is_file()
    done = vosnb("evaluate", "masks", "other", "truth", "--protocol", "davis2017", "-o", "both")
    assert done.code == 0 and "other: J&F -0.5000" in done.out and Path("both/other/index.html").is_file()


@pytest.mark.parametrize(
    "folders, names",
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/davis/masks", "runs/other/masks"], ["davis", "other"]),
        (["flow/masks", "sam/masks", "other"], ["flow_masks", "sam_masks", "other"]),
        (["/x/masks", "masks"], ["x_masks", "masks"]),
        (["masks"], ["masks"]),
    ],
)
def test_results_are_called_by_what_they_differ_in(folders, names):
    assert [cli._name(Path(f), [*map(Path, folders)]) for f in folders] == names


def test_fetch_without_a_name_lists_the_checkpoints(vosnb):
    done = vosnb("fetch")
    assert done.code == 0 and all(name in done.out for name in ("sam_vit_b", "sam2.1_hiera_tiny", "MB", "Apache-2.0"))


def test_doctor_reports(vosnb):
    done = vosnb("doctor")
    assert done.code == 0 and all(word in done.out for word in ("Python", "torch", "ffmpeg", "vosnb fetch sam2.1_hiera_tiny"))


def test_run_passes_parameters_and_tells_a_notebook_that_fails_from_one_that_cannot_run(vosnb, monkeypatch):
    asked = []

    def run_notebook(*arguments, **options):
        asked.append((*arguments, options))
        raise RunFailed(Path("runs/a.ipynb"), 3, "ValueError: no dye")

    assert vosnb("run", "none.ipynb", "-o", "runs").code == 2
    monkeypatch.setattr("vosnb.run.run_notebook", run_notebook)
    done = vosnb("run", "a.ipynb", "-p", "k=5", "-p", "by=a=b", "-r", "title=007", "-o", "runs", "--overwrite")
    assert asked == [(Path("a.ipynb"), Path("runs"), {"k": "5", "by": "a=b"}, {"title": "007"}, {"overwrite": True})]
    assert done.code == 1 and done.err.startswith("error: a.ipynb stopped in code cell 3: ValueError: no dye")


def test_stopping_it_is_no_error_of_ours(film, vosnb, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vosnb.strategies.flow.FlowTracker.step", interrupted)
    done = vosnb("propagate", film / "film.mp4", film / "first.png", "-o", "masks")
    assert done.code == 130 and done.err == "\nstopped, nothing half-written is left\n" and not list(Path().iterdir())


def test_the_installed_command_says_how_it_is_used_and_loads_nothing_heavy():
    code = """import sys; from vosnb import cli
try: cli.main()
finally: print(sorted({'torch', 'cv2', 'av', 'rich'} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("[]\n")
    assert all(name in done.stdout for name in ("clip", "segment", "propagate", "evaluate", "fetch", "run", "demo", "doctor"))


def test_the_module_is_a_program_too(film, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vosnb.cli",
        "segment",
        film / "film.mp4",
        "--box",
        "1:9,9,4,40",
        "-o",
        tmp_path / "first.png",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and not any(tmp_path.iterdir())
    assert done.stderr == (
        "error: expected a box x0,y0,x1,y1 with x0 < x1 and y0 < y1; got 9,9,4,40; "
        "give left, top, right, bottom, in this order\n"
    )


# -- what it refuses: clips --------------------------------------------------------------------------------------------


def without_index(good: bytes) -> bytes:
    """As a recording is whose end was lost: there stands where its frames are."""
    return good[: good.index(b"moov") - 4] + good[good.index(b"mdat") - 4 :]


def without_frames(good: bytes) -> bytes:
    data = good.index(b"mdat") + 4
    return good[:data] + bytes(len(good) - data)


def of_a_strange_codec(good: bytes) -> bytes:
    return good.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC")


CLIPS = {
    "empty": (lambda good: b"", "is empty (0 bytes)"),
    "cut off": (without_index, "which is none, or cut off"),
    "text": (lambda good: b"only words\n" * 100, "which is none, or cut off"),
    "noise": (lambda good: np.random.default_rng(0).bytes(4000), "which is none, or cut off"),
    "zero frames": (without_frames, "none can be decoded"),
    "missing codec": (of_a_strange_codec, "a video codec that FFmpeg decodes"),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_what_is_no_video_is_refused(kind, film, refuses, tmp_path):
    spoil, says = CLIPS[kind]
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(spoil((film / "film.mp4").read_bytes()))
    refuses("segment", bad, *BOXES, "-o", "first.png", says=says)
    refuses("propagate", bad, film / "first.png", "-o", "masks", "--video", "look.mp4", says=says)


def test_a_video_that_breaks_off_leaves_no_masks(film, refuses, tmp_path):
    good = (film / "film.mp4").read_bytes()
    (tmp_path / "bad.mp4").write_bytes(good[: -len(good) // 3])
    refuses("propagate", tmp_path / "bad.mp4", film / "first.png", "-o", "masks", says="download it again")


@pytest.mark.parametrize(
    "source, says", [("nowhere.mp4", "does not exist"), (".", "none in ."), ("https://x.org/a.mp4", "vosnb clip")]
)
def test_what_is_not_there_is_refused(source, says, film, refuses):
    refuses("segment", source, *BOXES, "-o", "first.png", says=says)
    refuses("propagate", source, film / "first.png", "-o", "masks", says=says)


def test_a_frame_of_another_size_is_refused_before_any_work(film, refuses, tmp_path):
    (tmp_path / "frames").mkdir()
    for t, size in enumerate([(128, 96), (128, 96), (64, 48)]):
        Image.new("RGB", size).save(tmp_path / "frames" / f"{t}.png")
    refuses("segment", "frames", *BOXES, "-o", "first.png", says="64×48 in frames/2.png")
    refuses("propagate", "frames", film / "first.png", "-o", "masks", says="64×48 in frames/2.png")


# -- what it refuses: prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--points", "1:500,20"], "a point inside a frame of 128×96"),
        (["--points", "1:-1,20"], "move the point"),
        (["--points", "1:20,110"], "x comes before y"),
        (["--background", "1:20,110"], "x comes before y"),
        (["--box", "1:10,10,300,40"], "clip the box to the frame"),
        (["--box", "1:10,50,60,120"], "x comes before y"),
        (["--box", "1:50,10,20,40"], "left, top, right, bottom"),
        (["--box", "1:20,10,20,40"], "x0 < x1"),
        (["--box", "1:10,20,30"], "--box OBJECT:x0,y0,x1,y1"),
        (["--points", "1:10"], "--points OBJECT:x,y"),
        (["--points", "dog:10,20"], "--points OBJECT:x,y"),
        (["--points", "10,20"], "--points OBJECT:x,y"),
        (["--points", "1:ten,20"], "--points OBJECT:x,y"),
        (["--points", ""], "--points OBJECT:x,y"),
        (["--points", "1:nan,20"], "a finite number"),
        (["--background", "1:10,20,30"], "--background OBJECT:x,y"),
        (["--points", "0:10,20"], "an object id from 1 to 255"),
        (["--points", "256:10,20"], "an object id from 1 to 255"),
        (["--box", "-1:10,20,30,40"], "an object id from 1 to 255"),
        (["--box", "1:10,20,30,40", "--box", "1:10,20,30,41"], "one box per object"),
        ([], "at least one prompted object"),
        ([*BOXES, "--frame", "6"], "a frame from 0 to 5"),
        ([*BOXES, "--frame", "-1"], "a frame from 0 to 5"),
        ([*BOXES, "--aux", "3"], "auxiliary objects among"),
        ([*BOXES, "--fill-holes", "-5"], "area"),
        ([*BOXES, "--model", "deeplab"], "grabcut"),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused(arguments, says, film, refuses):
    refuses("segment", film / "film.mp4", *arguments, "-o", "first.png", "--overlay", "look.png", says=says)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "not JSON"),
        ("[1]", "list"),
        ('{"version": 2, "prompts": []}', "version 2"),
        ('{"version": 1, "prompts": []}', "at least one prompted object"),
        (
            '{"version": 1, "prompts": [{"frame": 0, "obj": 1, "kind": "point", "x": 9, "y": 9, "label": 2}]}',
            "label 1 (object) or 0",
        ),
        ('{"version": 1, "prompts": [{"frame": 0, "obj": 1, "kind": "lasso"}]}', "kind point, box or mask"),
        ('{"version": 1, "prompts": [{"frame": 0, "obj": 0, "kind": "box", "xyxy": [1, 2, 3, 4]}]}', "object id from 1 to 255"),
        ('{"version": 1, "prompts": [{"frame": 0, "obj": 1, "kind": "box", "xyxy": [1, 2, 3]}]}', "went wrong"),
        ('{"version": 1, "prompts": [{"frame": 9, "obj": 1, "kind": "box", "xyxy": [1, 2, 3, 4]}]}', "below 6"),
        ('{"version": 1, "prompts": [{"frame": 0, "obj": 1, "kind": "mask", "size": [2, 2], "counts": [5]}]}', "2×2"),
        (
            '{"version": 1, "prompts": [{"frame": 0, "obj": 1, "kind": "mask", "size": [2, 2], "counts": [0, 4]}]}',
            "a mask of 2×2",
        ),
    ],
)
def test_prompt_files_that_cannot_be_meant_are_refused(text, says, film, refuses, tmp_path):
    (tmp_path / "p.json").write_text(text)
    refuses("segment", film / "film.mp4", "--prompts", "p.json", "-o", "first.png", says=says)
    refuses("propagate", film / "film.mp4", "p.json", "-o", "masks", says=says)


def test_a_prompts_file_for_another_frame_says_which(film, refuses):
    arguments = ["segment", film / "film.mp4", "--prompts", film / "prompts.json", "--frame", 3, "-o", "first.png"]
    refuses(*arguments, says="a prompt on frame 3; got prompts on frames [0]")


# -- what it refuses: first masks --------------------------------------------------------------------------------------


def bomb(path: Path, side: int) -> None:
    """A PNG of a few bytes that says it is side × side pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def photo(path: Path) -> None:
    y, x = np.mgrid[:96, :128]
    waves = [128 + 60 * np.sin(x / 9 + c) + 60 * np.cos(y / (7 + c)) for c in range(3)]
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(path)


MASKS = {
    "a bomb": (lambda path: bomb(path, 60_000), "60000×60000"),
    "a photo": (photo, "looks like a picture"),
    "of another size": (lambda path: write_labels(path, np.ones((48, 64), np.uint8)), "a mask of 128×96"),
    "empty": (lambda path: write_labels(path, np.zeros((96, 128), np.uint8)), "at least one prompted object"),
    "a JPEG": (lambda path: Image.new("L", (128, 96)).save(path, "JPEG"), "a PNG mask"),
    "words": (lambda path: path.write_text("only words, and many of them"), "a PNG mask"),
    "no bytes": (lambda path: path.write_bytes(b""), "a PNG mask"),
    "not there": (lambda path: None, "check the path"),
    "of ids above 255": (lambda path: Image.fromarray(np.full((96, 128), 300, np.uint16)).save(path), "ids from 0 to 255"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_what_is_no_mask_is_refused(kind, film, refuses, tmp_path):
    make, says = MASKS[kind]
    make(tmp_path / "mask.png")
    refuses("propagate", film / "film.mp4", "mask.png", "-o", "masks", says=says)


def test_a_mask_that_is_cut_off_is_refused(film, refuses, tmp_path):
    (tmp_path / "mask.png").write_bytes((film / "first.png").read_bytes()[:-60])
    refuses("propagate", film / "film.mp4", "mask.png", "-o", "masks", says="which is damaged")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--by", "magic"], "a strategy among flow"),
        (["--set", "speed=9"], "a setting of flow among tolerance, quality, model"),
        (["--set", "tolerance=much"], "flow's tolerance as float"),
        (["--set", "tolerance=-1"], "above 0"),
        (["--set", "quality=best"], "flow's quality among"),
        (["--set", "tolerance"], "name=value"),
        (["--direction", "sideways"], "forward, backward, both"),
        (["--frame", "6"], "below 6"),
        (["--frame", "-1"], "a frame number ≥ 0"),
        (["--aux", "9"], "auxiliary objects among"),
        (["--by", "sam", "--set", "model=deeplab"], "a model among grabcut"),
        (["--by", "sam", "--set", "strength=-1"], "strength, in logits, above 0"),
        (["--by", "sam", "--set", "box=perhaps"], "sam's box as bool"),
    ],
)
def test_settings_that_are_unknown_are_refused(arguments, says, film, refuses):
    refuses("propagate", film / "film.mp4", film / "first.png", *arguments, "-o", "masks", says=says)


@pytest.mark.parametrize("name, size", [("sam2.1_hiera_tiny", "156 MB"), ("sam_vit_b", "375 MB")])
def test_a_missing_checkpoint_names_the_command_and_its_size(name, size, film, refuses, monkeypatch, tmp_path):
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path / "none"))
    refuses("segment", film / "film.mp4", *BOXES, "--model", name, "-o", "first.png", says=f"vosnb fetch {name}")
    by = ["--by", "sam", "--set", f"model={name}"]
    refuses("propagate", film / "film.mp4", film / "first.png", *by, "-o", "masks", says=size)
    refuses("fetch", "resnet", says="a checkpoint among")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["segment", "frames", *BOXES, "-o", "first.jpg"], "ends in .png"),
        (["segment", "frames", *BOXES, "-o", "first.png", "--overlay", "look.xyz"], "ends in .png, .jpg"),
        (["segment", "frames/0.png", *BOXES, "-o", "frames/0.png"], "which is or holds"),
        (["propagate", "frames", "first.png", "-o", "masks", "--video", "look.gif"], "ends in .mp4"),
        (["propagate", "frames", "first.png", "-o", "frames", "--overwrite"], "which is or holds"),
        (["propagate", "frames", "kept/first.png", "-o", "kept", "--overwrite"], "which is or holds"),
        (["propagate", "film.mp4", "first.png", "-o", "masks", "--video", "film.mp4"], "which is or holds"),
        (["propagate", "film.mp4", "first.png", "-o", ".", "--overwrite"], "which is or holds"),
        (["evaluate", "frames", "frames", "-o", "report.txt"], "ends in .json"),
    ],
)
def test_results_have_names_of_their_own(arguments, says, film, refuses, tmp_path):
    """A result must not replace what it is made of, whatever `--overwrite` says; and a name is judged before the work."""
    shutil.copytree(film / "frames", tmp_path / "frames")
    os.rename("frames/img0.png", "frames/0.png")
    for name in ("first.png", "kept/first.png", "film.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(film / Path(name).name, tmp_path / name)
    refuses(*arguments, says=says)


def test_evaluating_what_does_not_match_is_refused(film, refuses, tmp_path):
    write_labels(tmp_path / "one" / "img0.png", np.ones((96, 128), np.uint8))
    refuses("evaluate", "one", film / "truth", "-o", "report.json", says="(6, 96, 128)")
    refuses("evaluate", "nowhere", film / "truth", says="a folder of PNG masks")
    (tmp_path / "none").mkdir()
    refuses("evaluate", film / "truth", "none", says="a folder of PNG masks")


# -- what the system refuses -------------------------------------------------------------------------------------------

COMMANDS = {
    "segment": lambda film, out: ["segment", film / "film.mp4", *BOXES, "-o", out / "first.png"],
    "overlay": lambda film, out: ["segment", film / "film.mp4", *BOXES, "-o", "first.png", "--overlay", out / "look.png"],
    "propagate": lambda film, out: ["propagate", film / "film.mp4", film / "first.png", "-o", out / "masks"],
    "video": lambda film, out: ["propagate", film / "film.mp4", film / "first.png", "-o", "masks", "--video", out / "look.mp4"],
    "evaluate": lambda film, out: ["evaluate", film / "truth", film / "truth", "-o", out / "report.json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_where_a_folder_should_be_is_refused(command, film, vosnb, tmp_path):
    (tmp_path / "out").write_text("mine")
    done = vosnb(*COMMANDS[command](film, tmp_path / "out"))
    assert done.code == 2 and "error: expected a writable place at" in done.err and "Traceback" not in done.err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("number, says", [(errno.ENOSPC, "a full disk"), (errno.EACCES, "to be allowed to write")])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_or_a_forbidden_folder_leaves_nothing_there(command, number, says, film, vosnb, tmp_path, monkeypatch):
    """The system refuses the very last step; everything before it has been written by then."""
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if (tmp_path / "out") in Path(target).parents:
            raise OSError(number, os.strerror(number), str(target))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    done = vosnb(*COMMANDS[command](film, tmp_path / "out"))
    assert done.code == 2 and "error: expected " in done.err and says in done.err and "Traceback" not in done.err
    assert everything(tmp_path / "out") == {}


@pytest.mark.parametrize("command", ["segment", "propagate"])
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_there(command, film, refuses, tmp_path, monkeypatch):
    written = []
    real = Image.Image.save

    def save(image: Image.Image, path: Path, *arguments, **options) -> None:
        real(image, path, *arguments, **options)
        written.append(path)
        if len(written) == (3 if command == "propagate" else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", save)
    refuses(*COMMANDS[command](film, tmp_path / "out"), says="a full disk")
    assert written


def test_whatever_else_the_system_refuses_is_told(film, refuses, tmp_path):
    (tmp_path / "folder.json").mkdir()
    refuses("segment", film / "film.mp4", "--prompts", "folder.json", "-o", "first.png", says="Is a directory: 'folder.json'")
    refuses("segment", film / "film.mp4", *BOXES, "-o", f"{'long' * 80}.png", says="File name too long")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(film, refuses, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    for command in COMMANDS.values():
        refuses(*command(film, tmp_path / "out"), says="to be allowed to write")
