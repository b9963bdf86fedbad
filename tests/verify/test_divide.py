"""Calibration and evaluation never share a sample, whatever is given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadInput
from octavo.verify.data import Labelled, read_data
from octavo.verify.divide import calibration_and_evaluation, divided_stream, even_draw
from octavo.verify.lazy import decoded_digests
from octavo.verify.stream import Stream
from tests.verify.datasets import how, noise, zipped


def numbered(start, stop, labels=None):
    return Labelled({"x": np.arange(start, stop, dtype=np.float32)[:, None]}, labels)


def values(data):
    return data.inputs["x"][:, 0].astype(int).tolist()


def test_a_seeded_fifth_calibrates_and_both_counts_are_said():
    data = numbered(0, 500, np.arange(500) % 10)
    found = calibration_and_evaluation(data, seed=3)
    assert (len(found.calibration), len(found.evaluation)) == (100, 400)
    assert sorted(values(found.calibration) + values(found.evaluation)) == list(range(500))
    assert np.bincount(found.calibration.labels).tolist() == [10] * 10
    assert found.notes == (
        "100 samples calibrate (a fifth of the data, drawn by seed 3 evenly over the labels), 400 evaluate.",
    )
    assert values(calibration_and_evaluation(data, seed=3).calibration) == values(found.calibration)
    assert values(calibration_and_evaluation(data, seed=4).calibration) != values(found.calibration)


def test_fewer_calibration_samples_leave_the_evaluation_alone():
    data = numbered(0, 500, np.arange(500))
    whole, few = (calibration_and_evaluation(data, samples=n) for n in (None, 20))
    assert len(few.calibration) == 20
    assert values(few.evaluation) == values(whole.evaluation)
    assert set(values(few.calibration)) < set(values(whole.calibration))
    assert "20 samples calibrate" in few.notes[-1]


def test_copies_are_on_one_side():
    data = Labelled({"x": np.repeat(np.arange(50, dtype=np.float32), 4)[:, None]})
    found = calibration_and_evaluation(data)
    assert not set(values(found.calibration)) & set(values(found.evaluation))
    with pytest.raises(BadInput, match="1 different samples cannot be split"):
        calibration_and_evaluation(Labelled({"x": np.zeros((5, 2), np.float32)}))


def test_what_is_evaluated_does_not_calibrate():
    found = calibration_and_evaluation(numbered(0, 50), numbered(40, 70))
    assert values(found.calibration) == list(range(50, 70))
    assert values(found.evaluation) == list(range(50))
    assert found.notes[0] == "10 of 30 calibration samples are evaluation data too: left out."
    assert found.notes[1] == "20 samples calibrate (data of their own), 50 evaluate."
    with pytest.raises(BadInput, match=r"All 20 calibration samples are evaluation data too. Leave --calibration out"):
        calibration_and_evaluation(numbered(0, 50), numbered(10, 30))


def test_images_are_compared_by_content_not_by_name(tmp_path):
    how(tmp_path)
    one = read_data(zipped(tmp_path / "a.zip", {f"a/{i}.png": noise(i) for i in range(8)}), {"x": (1, 8, 6, 3)})
    other = read_data(zipped(tmp_path / "b.zip", {f"z/{i}9.png": noise(i) for i in range(6, 20)}), {"x": (1, 8, 6, 3)})
    found = calibration_and_evaluation(one, other)
    assert len(found.calibration) == 12
    assert not set(decoded_digests(found.calibration)) & set(decoded_digests(one))
    arrays = Labelled(one.inputs)
    assert "2 of 14 calibration samples" in calibration_and_evaluation(arrays, other).notes[0]


def test_whole_batches_on_both_sides():
    found = calibration_and_evaluation(numbered(0, 103), batch=4)
    assert (len(found.calibration), len(found.evaluation)) == (20, 80)
    assert found.notes[0] == "2 samples do not fill a batch of 4: left out."
    with pytest.raises(BadInput, match="1 samples do not fill one batch of 4"):
        calibration_and_evaluation(numbered(0, 6), batch=4)
    with pytest.raises(BadInput, match="0 samples calibrate nothing"):
        calibration_and_evaluation(numbered(0, 6), samples=0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 9))
def test_an_even_draw_keeps_every_labels_share(labels, count, seed):
    labels, count = np.array(labels), min(count, len(labels))
    drawn = even_draw(labels, len(labels), count, seed)
    assert len(set(drawn.tolist())) == count
    for label in np.unique(labels):
        share = count * (labels == label).mean()
        assert abs((labels[drawn] == label).sum() - share) <= 2


def test_one_recording_is_cut_in_time_and_two_must_differ():
    stream = Stream(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), "x", {"x": (1, 4)})
    evaluation, calibration, notes = divided_stream(stream, None)
    assert np.array_equal(calibration.frames, stream.frames[:10])
    assert np.array_equal(evaluation.frames, stream.frames[10:])
    assert notes == ("The first 10 frames calibrate, the last 40 evaluate, from a fresh state.",)
    assert len(divided_stream(stream, samples=3)[1]) == 3
    with pytest.raises(BadInput, match="10 of 10 frames of the calibration recording are evaluation data"):
        divided_stream(stream, calibration)
