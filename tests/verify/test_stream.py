"""A stateful model on a recording: each side carries its own state, and errors that build up are seen."""

import numpy as np
import pytest

from octavo.errors import BadInput
from octavo.verify.preprocess import Preprocess
from octavo.verify.sound import read_stream
from octavo.verify.stream import compare_stream, open_stream
from tests.verify.datasets import clip, unpacked

SHAPES = {"state": (1, 2), "sound": (1, 6)}
HOW = Preprocess(frame=4, context=2)


def leaky(leak=0.5):
    """probability = clipped mean of a leaky sum that is its state."""

    def run(inputs):
        assert list(inputs) == ["state", "sound"]
        state = leak * inputs["state"] + inputs["sound"][:, -2:]
        return {"next": state, "probability": np.clip(state.mean(axis=1, keepdims=True), 0, 1)}

    return run


@pytest.fixture
def wav(tmp_path):
    sound = np.random.default_rng(0).integers(-30000, 30000, 400)
    return unpacked(tmp_path, {"a.wav": clip(sound)}) / "a.wav"


def test_state_goes_round_on_both_sides(wav):
    stream = open_stream(wav, SHAPES, HOW, leaky())
    assert stream.carries == {"state": 0}
    state = np.zeros((1, 2), np.float32)
    for (inputs, outputs), frame in zip(stream.steps(leaky()), read_stream(wav, 4, 2), strict=True):
        assert np.array_equal(inputs["state"], state)
        assert np.array_equal(inputs["sound"][0], frame)
        answer = leaky()({"state": state, "sound": frame[None]})
        state = answer["next"]
        assert list(outputs) == ["probability"]
        assert outputs["probability"] == answer["probability"]
    same = compare_stream(leaky(), leaky(), stream)
    assert same.identical
    assert same.agreement.value == 1
    assert same.as_dict()["decisions"]["frames"] == 100
    worse = compare_stream(leaky(), leaky(0.9), stream)
    assert worse.agreement.value < 1
    assert worse.agreement.clusters == 13
    assert worse.sqnr_db.value < 20


def test_decisions_are_counted_against_a_plain_loop(wav):
    stream = open_stream(wav, SHAPES, HOW, leaky())
    sides = [
        np.array([float(out["probability"][0, 0]) for _, out in stream.steps(leaky(leak))]) > 0.5 for leak in (0.5, 0.6)
    ]
    found = compare_stream(leaky(0.5), leaky(0.6), stream)
    assert found.agreement.value == pytest.approx((sides[0] == sides[1]).mean())
    assert found.extra["decisions"]["float"] == pytest.approx(sides[0].mean())
    assert found.extra["decisions"]["artifact"] == pytest.approx(sides[1].mean())


def test_outputs_that_are_no_probabilities_have_no_decisions(wav):
    def run(inputs):
        return {"next": inputs["state"], "value": inputs["sound"].sum(keepdims=True) * 100}

    found = compare_stream(run, run, open_stream(wav, SHAPES, HOW, run))
    assert found.agreement is None
    assert "decisions" not in found.as_dict()


def test_which_output_is_which_state(wav):
    def outputs(names):
        return lambda inputs: {name: np.zeros((1, 2), np.float32) for name in names}

    def wire(shapes, run, **state):
        return open_stream(wav, shapes, Preprocess(frame=4, context=2, state=state), run).carries

    one, two = ({"sound": (1, 6)} | dict.fromkeys(names, (1, 2)) for names in (["h_in"], ["h_in", "c_in"]))
    assert wire(two, outputs(["c_out", "h_out"])) == {"h_in": 1, "c_in": 0}
    assert wire(two, outputs(["a", "b"]), h_in="a", c_in="b") == {"h_in": 0, "c_in": 1}
    with pytest.raises(
        BadInput, match=r"h_in \[1, 2\] is no frame, and several outputs .*a \[1, 2\], b.*state = {h_in"
    ):
        wire(two, outputs(["a", "b"]))
    with pytest.raises(BadInput, match="no output 'x' for the state h_in"):
        wire(two, outputs(["a", "b"]), h_in="x")
    with pytest.raises(BadInput, match=r"no state input 'hin'\. Nearest: h_in"):
        wire(one, outputs(["a"]), hin="a")
    with pytest.raises(BadInput, match=r"fit none of the model's inputs: sound \[1, 7\]"):
        wire({"sound": (1, 7)}, outputs(["a"]))
    with pytest.raises(BadInput, match=r"cut into frames; .* does not say how. \[stream\] frame = 512"):
        open_stream(wav, SHAPES, Preprocess(), leaky())


def test_a_speech_detector_over_its_recording(shared):
    """Silero on a minute of speech in ONNX Runtime: 77.4 % of the frames are speech, as published."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = shared / "data/audio/silero_vad"
    session = onnxruntime.InferenceSession(str(folder / "silero_vad_16k_op15.onnx"))

    def run(inputs):
        found = session.run(None, {**inputs, "sr": np.array(16000, np.int64)})
        return dict(zip(("output", "stateN"), found, strict=True))

    shapes = {"input": (1, 576), "state": (2, 1, 128)}
    stream = open_stream(folder / "test.wav", shapes, Preprocess(sample_rate=16000, frame=512, context=64), run)
    assert stream.carries == {"state": 1}
    found = compare_stream(run, run, stream)
    assert found.extra["decisions"]["float"] == pytest.approx(0.7743, abs=2e-4)
    assert found.identical
