"""Images and recordings as --data: from the file to the record's notes, through the real runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

import octavo  # noqa: E402
from octavo.api.network_data import NetworkData  # noqa: E402
from octavo.api.original import open_original  # noqa: E402
from octavo.errors import BadInput  # noqa: E402
from tests.verify.datasets import clip, how, picture, unpacked, zipped  # noqa: E402

COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 20), "red": (220, 20, 40)}


class Colours(torch.nn.Module):
    """Which channel is brightest; outputs in the order red, green, blue."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.inner.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1) * 2 + 0.01)
            self.inner.bias.zero_()

    def forward(self, pixels: Any) -> Any:
        return self.inner(pixels).mean(dim=(2, 3))


class Leaky(torch.nn.Module):
    """A probability from a leaky state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 8)
        self.head = torch.nn.Linear(8, 1)

    def forward(self, sound: Any, state: Any) -> Any:
        following = torch.tanh(self.inner(sound) + 0.5 * state)
        return {"probability": torch.sigmoid(self.head(following)), "state_out": following}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    how(tmp_path, 'scale = 0.00392157\nclasses = ["red", "green", "blue"]')
    files = {
        f"{name}/{i}.png": picture(tuple(max(0, c - i) for c in colour))
        for name, colour in COLOURS.items()
        for i in range(20)
    }
    return zipped(tmp_path / "colours.zip", files)


def artifact(tmp_path: Path, module: Any, example: tuple[Any, ...]) -> Path:
    octavo.compress(module, example_inputs=example, scheme="w8", out=tmp_path / "folded")
    octavo.export(tmp_path / "folded", runtime="onnxruntime", out=tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_zip_of_class_folders_is_verified_on(tmp_path: Path, images: Path) -> None:
    model, example = Colours().eval(), (torch.zeros(1, 3, 8, 6),)
    record = octavo.verify(artifact(tmp_path, model, example), against=model, example_inputs=example, data=images)
    assert record.accuracy is not None
    assert (record.accuracy["float"], record.accuracy["artifact"], record.accuracy["n"]) == (1.0, 1.0, 60)
    assert "3 classes, as `classes` says: 0 red, 1 green, 2 blue." in record.notes
    how(tmp_path, 'scale = 0.00392157\nclasses = ["green", "blue", "red"]')
    record = octavo.verify(tmp_path / "m.onnx", against=model, example_inputs=example, data=images)
    assert any("as by guessing: are the classes in the model's order" in note for note in record.notes)


def test_calibration_is_divided_off_and_examined(tmp_path: Path, images: Path) -> None:
    model, example = Colours().eval(), (torch.zeros(1, 3, 8, 6),)
    found = open_original(model, images, windows=1, context=2, example_inputs=example, divide=True)
    assert (len(found.data), len(found.calibration)) == (48, 12)
    assert np.bincount(found.calibration.labels).tolist() == [4, 4, 4]
    assert (
        "12 samples calibrate (a fifth of the data, drawn by seed 0 evenly over the labels), 48 evaluate."
        in found.notes
    )
    assert any("Only 12 calibration samples" in note for note in found.notes)
    other = tmp_path / "raw.npz"
    np.savez(other, x=np.random.default_rng(0).integers(0, 256, (40, 3, 8, 6)).astype(np.float32))
    found = open_original(model, images, windows=1, context=2, example_inputs=example, calibration=other)
    assert (len(found.data), len(found.calibration)) == (60, 40)
    assert any("another scale (0–255 given for 0–1?)" in note for note in found.notes)
    with pytest.raises(BadInput, match="All 60 calibration samples are evaluation data too"):
        open_original(model, images, windows=1, context=2, example_inputs=example, calibration=images)


def test_calibrating_alone_draws_evenly(images: Path) -> None:
    found = open_original(Colours().eval(), images, windows=1, context=2, example_inputs=(torch.zeros(1, 3, 8, 6),))
    data, notes = NetworkData(found.source, found.run).calibrating(images, 33)
    assert np.bincount(data.labels).tolist() == [11, 11, 11]
    assert notes[-1] == "33 of 60 samples of colours.zip calibrate."


def test_a_recording_is_verified_frame_by_frame(tmp_path: Path) -> None:
    torch.manual_seed(0)
    how(tmp_path, "[stream]\nframe = 4\ncontext = 2")
    sound = np.random.default_rng(0).integers(-30000, 30000, 800)
    wav = unpacked(tmp_path, {"a.wav": clip(sound)}) / "a.wav"
    model, example = Leaky().eval(), (torch.zeros(1, 6), torch.zeros(1, 8))
    path = artifact(tmp_path, model, example)
    record = octavo.verify(path, against=model, example_inputs=example, data=wav, min_sqnr=25)
    assert record.passed
    assert record.outputs is not None
    assert record.outputs["decisions"]["frames"] == 200
    assert record.outputs["agreement"] > 0.9
    assert any("state from state_out" in note for note in record.notes)
    found = open_original(model, wav, windows=1, context=2, example_inputs=example, divide=True)
    assert (len(found.calibration), len(found.data)) == (40, 160)
    assert {name: array.shape for name, array in next(found.calibration.steps(found.run))[0].items()} == {
        "sound": (1, 6), "state": (1, 8),
    }  # fmt: skip
    clips = zipped(tmp_path / "clips.zip", {f"a/{i}.wav": clip(sound[::-1]) for i in range(2)})
    found = open_original(
        model, wav, windows=1, context=2, example_inputs=example, calibration=clips, samples=50
    )  # fmt: skip
    assert (len(found.calibration), len(found.data)) == (50, 200)


def test_the_speech_detector_as_it_is_typed(shared: Path, tmp_path: Path) -> None:
    """Weights in int8: at least 98 % of the frames of a minute are decided as by the float original."""
    model = shared / "data/audio/silero_vad/silero_vad_16k_op15.onnx"
    toml = how(tmp_path, "sample_rate = 16000\n[stream]\nframe = 512\ncontext = 64")
    fix = ["--fix", "sr=16000", "--fix", "sequence=576"]

    def typed(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "octavo", *map(str, words)], capture_output=True, text=True)

    folded, file = tmp_path / "x", tmp_path / "x.onnx"
    assert typed("compress", model, "--scheme", "w8", "-o", folded, *fix).returncode == 0
    assert typed("export", folded, "--runtime", "onnxruntime", "-o", file).returncode == 0
    wav = shared / "data/audio/silero_vad/test.wav"
    found = typed("verify", file, "--against", model, *fix, "--data", wav, "--preprocess", toml, "--json")
    assert found.returncode == 0, found.stderr
    outputs = json.loads(found.stdout)["outputs"]
    assert outputs["decisions"]["float"] == pytest.approx(0.7743, abs=2e-4)
    assert outputs["agreement"] >= 0.98
