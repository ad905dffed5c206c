"""J and F over frames, objects, sequences: every protocol equal to its reference evaluator; reports; comparisons."""

import csv
import json
import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from vosnb import InputError, evaluate
from vosnb.evaluate import Comparison, _read, jaccard
from vosnb.masks import write_labels


def test_j_of_known_regions():
    a = np.zeros((4, 4), bool)
    b = a.copy()
    assert jaccard(a, b) == 1  # both empty
    a[:2] = True
    assert jaccard(a, b) == 0
    b[1:3] = True
    assert jaccard(a, b) == pytest.approx(1 / 3)


def test_prompted_frames_are_left_out_and_the_mean_is_over_objects(tmp_path):
    truth = np.zeros((3, 4, 4), np.uint8)
    truth[:, :2], truth[:, 2:] = 1, 2
    masks = truth.copy()
    masks[0] = 0  # not scored
    masks[2, :1] = 0
    report = evaluate(masks, truth)
    assert {1: pytest.approx(0.75), 2: 1.0} == report.J and report.mean == pytest.approx(0.875)
    assert report.frames == {1: {1: 1, 2: 0.5}, 2: {1: 1, 2: 1}} and report.tracks[0].numbers == (1, 2)
    assert json.loads(report.save(tmp_path / "r.json").read_text())["mean J"] == pytest.approx(0.875)


def test_an_object_that_was_never_prompted_is_told_of_and_can_be_left_out():
    truth = np.zeros((3, 4, 4), np.uint8)
    truth[:, :2], truth[:, 2:] = 1, 2
    report = evaluate(truth * (truth == 1), truth)
    assert report.mean == 0.5 and "object 2 is nowhere in the masks" in report.notes[0]
    report = evaluate(truth * (truth == 1), truth, ids=[1])
    assert report.mean == 1 and not report.notes
    with pytest.raises(InputError, match="without a protocol"):
        evaluate("masks", "truth", protocol="mose", ids=[1])


def test_shapes_that_differ_and_nothing_to_compare_are_refused():
    with pytest.raises(InputError, match="truth's shape"):
        evaluate(np.zeros((2, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(InputError, match="at least one object"):
        evaluate(np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8))


# -- data sets, against the reference evaluators -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def cases(shared, tmp_path_factory):
    """The folders that the reference evaluators ran on, made anew, and what they said."""
    folder = shared / "data" / "evaluation"
    if not (folder / "golden.json").is_file():
        pytest.skip("no reference values in ../shared/data/evaluation")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, folder / "make_cases.py", out], check=True, stdout=subprocess.DEVNULL)
    golden = json.loads((folder / "golden.json").read_text())
    made = json.loads((out / "manifest.json").read_text())
    assert all(made[name]["sha256"] == case["sha256"] for name, case in golden["cases"].items() if name in made)
    return out, golden


DAVIS = ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
MOSE = {
    "J": "J-Mean",
    "F_dot": "F-dot",
    "F": "F-Mean",
    "JF_dot": "J&F-dot",
    "JF": "J&F-Mean",
    "JF_dot_d": "J&F-dot_d",
    "JF_dot_r": "J&F-dot_r",
}
LVOS = {"JF": "G", **{f"{k}_{g}": f"{k}_{g}" for k in "JFV" for g in ("seen", "unseen")}, "V": "V"}
# (the evaluator, our protocol, its folders, what its global numbers are)
TOOLS = {
    "davis": ("davis2017", "pred", "gt", lambda found: dict(zip(DAVIS, found, strict=True))),
    "vosb": (
        "sa-v",
        "pred",
        "gt",
        lambda found: {k: v / 100 for k, v in zip(("J&F-Mean", "J-Mean", "F-Mean"), found, strict=True)},
    ),
    "sav_obj": (
        "sa-v",
        "sav_pred",
        "sav_gt",
        lambda f: {k: v / 100 for k, v in zip(("J&F-Mean", "J-Mean", "F-Mean"), f, strict=True)},
    ),
    "mose": ("mose", "pred", "gt", lambda found: {MOSE[k]: v for k, v in found.items()}),
    "lvos": ("lvos", "pred", "lvos", lambda found: {LVOS[k]: found[k] for k in LVOS}),
}
# What MOSE's scorer does there is not wanted: it moves a frame on, takes colours for ids, counts sequences of two frames as 0.
UNLIKE_MOSE = {"s16_missing_png_middle", "s18_pred_mode_RGB", "s20_len1", "s20_len2"}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_number_is_the_reference_evaluators(tool, cases):
    folder, golden = cases
    protocol, masks, truth, named = TOOLS[tool]
    checked = 0
    for name, case in golden["cases"].items():
        expected = case.get(tool, {})
        if (
            expected.get("status") != "ok"
            or None in (expected["global_"] if tool in ("davis", "vosb") else ())
            or not (folder / name).is_dir()
        ):
            continue
        if tool == "mose" and name in UNLIKE_MOSE:
            continue
        missing = "empty" if tool == "mose" else "skip"
        report = evaluate(
            folder / name / masks,
            folder / name / truth,
            protocol=protocol,
            missing=missing,
            unseen=["R3UJGYwy"] if tool == "lvos" else None,
        )
        for key, value in named(expected["global_"]).items():
            assert report.summary[key] == pytest.approx(math.nan if value is None else value, abs=1e-9, nan_ok=True), (
                name,
                key,
            )
        frames = expected["per_frame"]
        if tool == "lvos":
            frames = {f"{video}_{obj}": found for video, objects in frames.items() for obj, found in objects.items()}
        frames = {key.replace("/", "_"): found for key, found in frames.items() if found.get("in_gt", True) and found["J"]}
        lost = {t.key for t in report.tracks if np.isnan(t.scores).all(axis=0)[4]}
        assert frames.keys() == {t.key for t in report.tracks} - lost, name
        for track in (t for t in report.tracks if t.key in frames):
            found = frames[track.key]
            for kind, values in (("J", track.j), ("F", track.f), ("F_dot", track.f_dot)):
                assert kind not in found or values.tolist() == pytest.approx(found[kind], abs=1e-9), (name, track.key, kind)
        checked += 1
    assert checked >= (1 if tool == "lvos" else 15)


def test_the_csv_files_are_davis_own(cases, tmp_path):
    folder, golden = cases
    report = evaluate(folder / "s23_multi_seq" / "pred", folder / "s23_multi_seq" / "davis", protocol="davis2017")
    report.save(tmp_path / "out")
    for name in ("global_results-val.csv", "per-sequence_results-val.csv"):
        assert (tmp_path / "out" / name).read_text() == golden["csv_s23_multi_seq"][name]


# -- every row of the specification's table, on folders made here ------------------------------------------------------


def disc(x, y=30, r=12):
    yy, xx = np.mgrid[:60, :90]
    return (yy - y) ** 2 + (xx - x) ** 2 <= r * r


def film(*ids, frames=8, shift=0):
    """(T, 60, 90) uint8: a disc for each id, moving."""
    out = np.zeros((frames, 60, 90), np.uint8)
    for t in range(frames):
        for n, obj in enumerate(ids):
            out[t][disc(20 + 30 * n + t + shift, 30)] = obj
    return out


def write(folder, labels, names=None):
    for name, frame in zip(names or [f"{t:05d}" for t in range(len(labels))], labels, strict=True):
        write_labels(folder / f"{name}.png", frame)


@pytest.fixture
def pair(tmp_path):
    """Writes truth and masks of sequence `a`; returns evaluate with a protocol."""

    def run(truth, masks, protocol="davis2017", **settings):
        write(tmp_path / "truth" / "a", truth)
        write(tmp_path / "masks" / "a", masks)
        return evaluate(tmp_path / "masks", tmp_path / "truth", protocol=protocol, **settings)

    return run


def test_both_empty_is_1_but_before_its_first_sight_not_in_sa_v(pair):
    truth = film(1, 2)
    truth[:4][truth[:4] == 1] = 0  # object 1 comes late
    assert pair(truth, film(1, 2, shift=1) * (truth > 0)).tracks[0].j[:3].tolist() == [1, 1, 1]
    assert len(pair(truth, truth, "sa-v").frames["a_1"]) == 3


def test_a_false_positive_before_it_appears_starts_its_clock_in_sa_v(pair):
    truth = film(1, 2)
    truth[:4][truth[:4] == 1] = 0
    masks = truth.copy()
    masks[2, :3, :3] = 1
    assert pair(truth, masks).frames["a_1"] == {1: 1, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1}
    assert pair(truth, masks, "sa-v").frames["a_1"] == {2: 0, 3: 1, 4: 1, 5: 1, 6: 1}


def test_what_is_there_on_one_side_only_scores_0(pair):
    truth, masks = film(1, 2), film(1, 2)
    truth[3][truth[3] == 2] = 0  # false positive
    masks[4][masks[4] == 1] = 0  # missed
    report = pair(truth, masks)
    assert report.frames["a_2"][3] == 0 and report.frames["a_1"][4] == 0 and report.F["a_1"] == pytest.approx(5 / 6)


def test_an_object_that_is_never_found_scores_0_and_is_named(pair):
    report = pair(film(1, 2), film(1))
    assert report.J == {"a_1": 1, "a_2": 0} and any("object 2 is nowhere" in note for note in report.notes)
    assert pair(film(1), np.zeros((8, 60, 90), np.uint8)).mean == 0


@pytest.mark.parametrize("protocol", ["davis2017", "mose", "sa-v", "lvos", "youtube-vos"])
def test_an_id_that_truth_lacks_is_ignored_and_named(protocol, pair):
    masks = film(1, 2)
    masks[4, :5, :5] = 3
    report = pair(film(1, 2), masks, protocol)
    assert report.mean == 1 and any("no object 3" in note for note in report.notes)


def test_gaps_between_ids_count_in_davis_only(pair):
    report = pair(film(1, 3), film(1, 3, shift=1))
    assert list(report.J) == ["a_1", "a_2", "a_3"] and report.J["a_2"] == 1 and "object 2" in report.notes[0]
    assert list(pair(film(1, 3), film(1, 3), "sa-v").J) == list(pair(film(1, 3), film(1, 3), "mose").J) == ["a_1", "a_3"]


def test_a_late_object_of_a_higher_id_counts_but_in_davis(pair):
    truth = film(1, 2)
    truth[:4][truth[:4] == 2] = 0
    lengths = {
        p: {k: len(v) for k, v in pair(truth, truth, p).frames.items()}
        for p in ("davis2017", "mose", "sa-v", "lvos", "youtube-vos")
    }
    assert lengths == {
        "davis2017": {"a_1": 6},
        "mose": {"a_1": 6, "a_2": 6},
        "sa-v": {"a_1": 6, "a_2": 3},
        "lvos": {"a_1": 6, "a_2": 2},
        "youtube-vos": {"a_1": 7, "a_2": 3},
    }


def test_an_object_only_on_the_first_frame_is_1_in_davis_and_dropped_in_sa_v(pair):
    truth = film(1, 2)
    truth[1:][truth[1:] == 2] = 0
    assert pair(truth, truth).J["a_2"] == 1
    report = pair(truth, truth, "sa-v")
    assert "a_2" not in report.J and "a: object 2 is on no frame scored; left out." in report.notes


def test_void_is_background_but_an_object_in_sa_v(pair):
    truth = film(1)
    truth[:, 50:, 60:] = 255
    assert pair(truth, film(1)).J == {"a_1": 1}
    assert pair(truth, film(1), "sa-v").J == {"a_1": 1, "a_255": 0}


def test_davis2016_takes_all_objects_as_one_whatever_their_values(pair):
    assert pair(film(255), film(1), "davis2016").J == {"a_1": 1}
    assert pair(film(1, 2), film(1, 1), "davis2016").J == {"a_1": 1}
    with pytest.raises(InputError, match="davis2016"):
        pair(film(255), film(255))


def test_missing_masks_are_one_error_or_empty(pair, tmp_path):
    pair(film(1), film(1))
    for name in ("00003", "00005"):
        (tmp_path / "masks" / "a" / f"{name}.png").unlink()
    again = [tmp_path / "masks", tmp_path / "truth"]
    with pytest.raises(InputError, match=r"00003\.png, .*00005\.png"):
        evaluate(*again, protocol="davis2017")
    assert evaluate(*again, protocol="davis2017", missing="empty").mean == pytest.approx(4 / 6)
    for name in ("00000", "00007"):  # the first and last do not count
        (tmp_path / "masks" / "a" / f"{name}.png").unlink()
    assert evaluate(*again, protocol="mose", missing="empty").F["a_1"] == pytest.approx(4 / 6)


def test_more_masks_than_truth_are_fine_and_sparse_truth_too(pair, tmp_path):
    write(tmp_path / "masks" / "zzz", film(1))
    (tmp_path / "masks" / "results.csv").write_text("a stray file")
    write(tmp_path / "truth" / "a", film(1)[::2], [f"{t:05d}" for t in range(0, 8, 2)])
    write(tmp_path / "masks" / "a", film(1))
    report = evaluate(tmp_path / "masks", tmp_path / "truth", protocol="davis2017")
    assert (report.tracks[0].frames, report.tracks[0].numbers) == (("00002", "00004"), (2, 4))
    assert report.mean == 1 and "zzz" in report.notes[0]


def test_a_missing_sequence_is_refused_left_out_or_0(pair, tmp_path):
    pair(film(1), film(1))
    write(tmp_path / "truth" / "b", film(1))
    again = [tmp_path / "masks", tmp_path / "truth"]
    with pytest.raises(InputError, match="masks/b"):
        evaluate(*again, protocol="mose")
    assert evaluate(*again, protocol="mose", missing="skip").J == {"a_1": 1}
    empty = evaluate(*again, protocol="mose", missing="empty")
    assert empty.J == {"a_1": 1, "b_1": 0} and "b: there are no masks of it; scores 0." in empty.notes


@pytest.mark.parametrize("masks", [film(1)[:, ::2, ::2], film(1).transpose(0, 2, 1)], ids=["half the size", "transposed"])
def test_another_size_is_refused_by_name(masks, pair):
    with pytest.raises(InputError, match=r"90×60; got .* in .*00001.png"):
        pair(film(1), masks)


@pytest.mark.parametrize("mode, bits", [("L", 8), ("P", 1), ("P", 2), ("P", 4), ("1", 1)])
def test_masks_of_any_kind_of_png_are_read_as_they_are(mode, bits, pair, tmp_path):
    pair(film(1), film(1))
    for path in (tmp_path / "masks" / "a").iterdir():
        values = np.array(Image.open(path))
        image = Image.fromarray(values > 0) if mode == "1" else Image.fromarray(values)
        if mode == "P":
            image.putpalette([0, 0, 0, 255, 0, 0])
        image.save(path, **({"bits": bits} if mode == "P" else {}))
    assert evaluate(tmp_path / "masks", tmp_path / "truth", protocol="davis2017").mean == 1


def test_filtered_indexed_pngs_are_read_too(tmp_path):
    import cv2

    labels = film(1, 2)[0]
    grey = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_STRATEGY, 0])[1].tobytes()  # adaptive filters; now make it indexed
    head = bytearray(grey[:33])
    head[25] = 3
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    palette = b"PLTE" + bytes(768)
    (tmp_path / "a.png").write_bytes(
        head + (768).to_bytes(4, "big") + palette + zlib.crc32(palette).to_bytes(4, "big") + grey[33:]
    )
    assert (_read(tmp_path / "a.png") == labels).all()


@pytest.mark.parametrize("harm", ["cut", "flip", "colour", "empty"])
def test_damaged_and_coloured_masks_are_refused_by_name(harm, pair, tmp_path):
    pair(film(1), film(1))
    path = tmp_path / "masks" / "a" / "00004.png"
    data = bytearray(path.read_bytes())
    if harm == "colour":
        Image.open(path).convert("RGB").save(path)
    else:
        if harm == "flip":
            at = data.index(b"IDAT") + 14
            data[at] ^= 255
        path.write_bytes({"cut": data[:-30], "flip": data, "empty": b""}[harm])
    with pytest.raises(InputError, match=r"00004\.png"):
        evaluate(tmp_path / "masks", tmp_path / "truth", protocol="davis2017")


@pytest.mark.parametrize("frames", [1, 2])
def test_a_sequence_of_one_or_two_frames_is_left_out_and_named(frames, pair, tmp_path):
    pair(film(1), film(1))
    for kind in ("truth", "masks"):
        write(tmp_path / kind / "short", film(1)[:frames])
    report = evaluate(tmp_path / "masks", tmp_path / "truth", protocol="davis2017")
    assert report.J == {"a_1": 1} and f"short: {frames} frames" in report.notes[0]


def test_folders_per_object_may_overlap_and_begin_at_000(tmp_path):
    for kind, shift in (("truth", 0), ("masks", 2)):
        for folder, radius in (("000", 20), ("001", 8)):
            write(tmp_path / kind / "v" / folder, [disc(40 + t + shift, 30, radius).astype(np.uint8) * 255 for t in range(5)])
    report = evaluate(tmp_path / "masks", tmp_path / "truth", protocol="sa-v")
    assert list(report.J) == ["v_000", "v_001"] and report.J["v_000"] > report.J["v_001"] > 0.5
    mask, truth = report.read(report.tracks[0], 0)
    assert jaccard(mask, truth) == report.tracks[0].j[0]


def test_youtube_vos_scores_the_frames_that_its_meta_lists_and_groups_by_category(pair, tmp_path):
    names = [f"{t:05d}" for t in range(8)]
    objects = {"1": {"category": "cat", "frames": names}, "2": {"category": "owl", "frames": names[3:7]}}
    (tmp_path / "meta.json").write_text(json.dumps({"videos": {"a": {"objects": objects}}}))
    report = pair(film(1, 2), film(1, 2, shift=1), "youtube-vos", unseen={"owl"})
    assert report.tracks[1].frames == tuple(names[4:7]) and report.tracks[1].group == "unseen"
    four = [report.J["a_1"], report.F["a_1"], report.J["a_2"], report.F["a_2"]]
    assert report.headline == ("G", pytest.approx(np.mean(four)))
    (tmp_path / "meta.json").write_text("[]")
    with pytest.raises(InputError, match=r"meta\.json"):
        pair(film(1), film(1), "youtube-vos")


def test_processes_change_nothing_and_their_errors_come_back(pair, tmp_path):
    truth = film(1, 2, frames=70)
    alone = pair(truth, film(1, 2, frames=70, shift=1))
    several = evaluate(tmp_path / "masks", tmp_path / "truth", protocol="davis2017", jobs=2)
    assert several.frames == alone.frames and several.F == alone.F
    write_labels(tmp_path / "masks" / "a" / "00050.png", truth[0, ::2])
    with pytest.raises(InputError, match=r"00050\.png"):
        evaluate(tmp_path / "masks", tmp_path / "truth", protocol="davis2017", jobs=2)


@pytest.mark.parametrize(
    "settings, says",
    [({"protocol": "davis2018"}, "davis2017"), ({"missing": "ignore"}, "refuse"), ({"sequences": ["b"]}, "holds none")],
)
def test_unknown_settings_are_refused(settings, says, pair):
    with pytest.raises(InputError, match=says):
        pair(film(1), film(1), **settings)


def test_truth_as_its_own_masks_is_noted(pair, tmp_path):
    pair(film(1), film(1))
    report = evaluate(tmp_path / "truth", tmp_path / "truth", protocol="davis2017")
    assert "the ground truth itself" in report.notes[0]


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_report_folder_is_whole_and_shows_the_worst_frame(pair, tmp_path):
    masks = film(1, 2)
    masks[4][masks[4] == 2] = 0
    report = pair(film(1, 2), masks)
    report.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "global_results-val.csv", "per-sequence_results-val.csv", "per-frame.csv", "report.json", "index.html",
    }  # fmt: skip
    page = (tmp_path / "out" / "index.html").read_text()
    assert "a_2, frame 00004: J 0.000" in page and "data:image/png;base64," in page and page.count("<polyline") == 4
    table = list(csv.DictReader((tmp_path / "out" / "per-frame.csv").read_text().splitlines()))
    assert len(table) == 12 and {r["frame"] for r in table if float(r["J"]) == 0} == {"00004"}
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["summary"]["J-Mean"] == report.mean and found["about"]["sequences"] == ["a"]
    assert len(report.table()) == 2 and "a_2" in report._repr_html_()
    with pytest.raises(InputError, match="new or empty"):
        report.save(tmp_path / "out")


def test_the_worst_masks_are_drawn_on_the_frames(pair, tmp_path):
    report = pair(film(1), film(1, shift=4))
    for t in range(8):
        (tmp_path / "jpg" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60), (200, 200, 200)).save(tmp_path / "jpg" / "a" / f"{t:05d}.jpg")
    assert (
        "data:image/jpeg;base64," in report.save(tmp_path / "out", images=tmp_path / "jpg").joinpath("index.html").read_text()
    )
    with pytest.raises(InputError, match="frames to draw on"):
        report.save(tmp_path / "other", images=tmp_path)
    for path in (tmp_path / "jpg" / "a").iterdir():
        path.rename(path.with_suffix(".JPEG"))
    assert report.save(tmp_path / "more", images=tmp_path / "jpg").is_dir()


def test_a_comparison_pairs_objects_and_says_how_sure_it_is(tmp_path):
    for s in range(6):
        write(tmp_path / "truth" / f"s{s}", film(1, 2))
        for name, shift in (("first", 3), ("better", 1), ("worse", 5)):
            write(tmp_path / name / f"s{s}", film(1, 2, shift=shift + s % 2))
    reports = {n: evaluate(tmp_path / n, tmp_path / "truth", protocol="davis2017") for n in ("first", "better", "worse")}
    comparison = Comparison(reports)
    gain, loss = comparison.differences["better"], comparison.differences["worse"]
    assert 0 < gain.low <= gain.mean <= gain.high and loss.high < 0 and (gain.better, loss.worse) == (12, 12)
    assert gain.mean == pytest.approx(reports["better"].summary["J&F-Mean"] - reports["first"].summary["J&F-Mean"])
    comparison.save(tmp_path / "out")
    assert "better" in (tmp_path / "out" / "index.html").read_text() and (tmp_path / "out" / "worse" / "index.html").is_file()
    assert json.loads(comparison.save(tmp_path / "c.json").read_text())["differences"]["better"]["better"] == 12
    with pytest.raises(InputError, match="same objects"):
        Comparison({"a": reports["first"], "b": evaluate(film(1), film(1))})
