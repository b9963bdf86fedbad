"""Calibration data that will spoil the ranges are recognised from their statistics, before anything is calibrated."""

import numpy as np
import pytest

from octavo.errors import BadInput
from octavo.verify.data import Labelled, read_arrays
from octavo.verify.examine import examine


def data(array):
    return Labelled({"x": np.asarray(array)})


def normal(count=64, seed=0, shape=(3, 4, 4)):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def test_healthy_data_give_no_warning_and_their_statistics():
    found = examine(data(normal()), {"x": (1, 3, 4, 4)}, beside=examine(data(normal(seed=1))))
    assert found.warnings == ()
    assert found.samples == 64
    assert found.inputs["x"].mean == pytest.approx(normal().mean(), abs=1e-6)
    assert found.inputs["x"].std == pytest.approx(normal().std(), abs=1e-6)
    assert found.as_dict()["inputs"]["x"]["min"] == normal().min()


def test_bytes_given_for_zero_to_one():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, 4, 4)).astype(np.float32)
    beside = examine(data(pixels / 255))
    (warning,) = examine(data(pixels), beside=beside).warnings
    assert "span 0 to 255, the evaluation data 0 to 1: another scale (0–255 given for 0–1?)" in warning
    (warning,) = examine(data(pixels / 255), beside=examine(data(pixels))).warnings
    assert "another scale" in warning
    (warning,) = examine(data(pixels)).warnings
    assert "whole numbers from 0 to 255, which look like raw bytes" in warning
    assert examine(data(pixels), raw_bytes=True).warnings == ()
    assert examine(data(pixels), beside=examine(data(pixels[::-1]))).warnings == ()


def test_another_mean():
    (warning,) = examine(data(normal() + 9), beside=examine(data(normal()))).warnings
    assert "have mean" in warning


def test_dead_channels_and_blank_samples():
    array = normal()
    array[:, 1] = 0
    array[:, 2] = 0.5
    dead = examine(data(array)).warnings
    assert "1 of 3 channels are 0 in every calibration sample (channel 1)" in dead[0]
    assert "1 of 3 channels are constant in every calibration sample (channel 2)" in dead[1]
    assert len(examine(data(array.transpose(0, 2, 3, 1))).warnings) == 2
    array = normal()
    array[:5] = 0
    assert "5 of 64 calibration samples are blank" in examine(data(array)).warnings[0]
    assert "is 0 in every calibration sample" in examine(data(array * 0)).warnings[0]


def test_few_samples_say_how_much_they_may_miss():
    """1 − 0.05^(1/10) = 25.9 %."""
    (warning,) = examine(data(normal(10))).warnings
    assert "Only 10 calibration samples: up to 26% of new ones" in warning


def test_what_cannot_be_calibrated_on_is_refused():
    with pytest.raises(BadInput, match=r"sample 0, input 'x': \[4, 4, 3\].*channels are last.*\(0, 3, 1, 2\)"):
        examine(data(normal().transpose(0, 2, 3, 1)), {"x": (1, 3, 4, 4)})
    array = normal()
    array[7, 0, 0, 0] = np.nan
    with pytest.raises(BadInput, match="sample 7, input 'x': 1 NaN or infinite"):
        examine(data(array))


def test_an_npz_whose_channels_are_last_is_told_how_to_turn_it(tmp_path):
    np.savez(tmp_path / "a.npz", x=normal().transpose(0, 2, 3, 1))
    with pytest.raises(BadInput, match=r"channels are last: turn them with numpy.transpose\(x, \(0, 3, 1, 2\)\)"):
        read_arrays(tmp_path / "a.npz", {"x": (1, 3, 4, 4)})


def test_the_published_keywords_are_healthy(shared):
    """Silence in the features' padding makes no channel dead."""
    found = examine(read_arrays(shared / "data/audio/kws/kws_500.npz"))
    assert found.samples == 500
    assert found.warnings == ()
