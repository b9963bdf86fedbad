"""Sound as input: full scale is one, time is in order, and what is not as said is refused by name."""

import numpy as np
import pytest

from octavo.errors import BadInput
from octavo.verify.data import read_data
from octavo.verify.sound import decode_wav, read_stream
from tests.verify.datasets import clip, how, unpacked, zipped

TOML = "sample_rate = 16000\nsamples = 8"


@pytest.mark.parametrize(
    ("values", "width"),
    [([0, 64, 128, 192], 1), ([-32768, -16384, 0, 16384], 2), ([-(1 << 23), -(1 << 22), 0, 1 << 22], 3),
     ([-(1 << 31), -(1 << 30), 0, 1 << 30], 4)],
)  # fmt: skip
def test_every_width_means_the_same(values, width):
    assert decode_wav(clip(np.array(values), width=width), "a.wav", 16000).tolist() == [-1, -0.5, 0, 0.5]


def test_channels_are_averaged():
    assert decode_wav(clip(np.array([16384, 0, 0, -16384]), channels=2), "a", 16000).tolist() == [0.25, -0.25]


def test_clips_are_cut_padded_and_labelled(tmp_path):
    how(tmp_path, TOML + '\nscale = 2\nclasses = ["yes", "no"]')
    long, short = np.full(12, 16384), np.full(3, -16384)
    path = zipped(tmp_path / "a.zip", {"no/a.wav": clip(short), "yes/a.wav": clip(long), "README.md": "text"})
    data = read_data(path, {"wave": (1, 1, 8)})
    assert data.labels.tolist() == [1, 0]
    assert data.inputs["wave"].tolist() == [[[-1, -1, -1, 0, 0, 0, 0, 0]], [[1] * 8]]
    assert read_data(path, {"wave": (-1, -1)}).inputs["wave"].shape == (2, 8)
    with pytest.raises(BadInput, match=r"waveforms of 8 samples; the model's input is \[batch, 49, 10, 1\].*features"):
        read_data(path, {"x": (1, 49, 10, 1)})


@pytest.mark.parametrize(
    ("raw", "toml", "says"),
    [
        (clip(np.zeros(9), rate=8000), TOML, "a/a.wav has 8000 Hz; expected 16000"),
        (clip(np.zeros(99))[:100], TOML, "a/a.wav is cut short"),
        (b"RIFF", TOML, "a/a.wav is no PCM .wav"),
        (clip(np.zeros(9)), "", "sound needs sample_rate and samples"),
        (clip(np.zeros(9)), TOML + "\nmean = [1, 2, 3]", "one mean and one std"),
    ],
)
def test_wrong_clips_are_named(tmp_path, raw, toml, says):
    how(tmp_path, toml)
    with pytest.raises(BadInput, match=says):
        _ = read_data(zipped(tmp_path / "a.zip", {"a/a.wav": raw})).inputs


def test_frames_follow_each_other_with_their_context(tmp_path):
    place = unpacked(tmp_path, {"a.wav": clip(np.arange(10) * 1024)}) / "a.wav"
    frames = read_stream(place, 4, 2) * 32
    assert frames.tolist() == [[0, 0, 0, 1, 2, 3], [2, 3, 4, 5, 6, 7], [6, 7, 8, 9, 0, 0]]
    with pytest.raises(BadInput, match="no samples"):
        read_stream(unpacked(tmp_path, {"b.wav": clip(np.zeros(0))}) / "b.wav", 4)


def test_clips_end_to_end_are_one_recording(tmp_path):
    files = {"b/a.wav": clip(np.array([3, 4]) * 1024), "a/b.wav": clip(np.array([1, 2]) * 1024), "a/x.txt": "text"}
    assert (read_stream(zipped(tmp_path / "a.zip", files), 2) * 32).tolist() == [[1, 2], [3, 4]]
    assert (read_stream(unpacked(tmp_path / "in", files), 4) * 32).tolist() == [[1, 2, 3, 4]]


def test_the_published_clips(shared, tmp_path):
    toml = how(tmp_path, "sample_rate = 16000\nsamples = 16000")
    data = read_data(shared / "data/audio/speech_commands/test_wav.zip", {"wave": (1, 16000)}, preprocess=toml)
    assert len(data) == 360
    assert np.bincount(data.labels).tolist() == [30] * 12
    assert "0 _silence_, 1 _unknown_, 2 down" in data.notes[-1]
    assert 0 < abs(next(data.batches(40)).inputs["wave"]).max() <= 1
