"""J is the intersection over union, averaged over frames, per object."""

import json

import numpy as np
import pytest

from vosnb import InputError, evaluate
from vosnb.evaluate import jaccard


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
    assert json.loads(report.save(tmp_path / "r.json").read_text())["mean J"] == pytest.approx(0.875)


def test_shapes_that_differ_and_nothing_to_compare_are_refused():
    with pytest.raises(InputError, match="truth's shape"):
        evaluate(np.zeros((2, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(InputError, match="at least one object"):
        evaluate(np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8))
