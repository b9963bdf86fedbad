"""Paired accuracy and perplexity: counted by hand, and on a real model against its published figures."""

import functools
import json
import math

import numpy as np
import pytest

from octavo.errors import BadInput, OctavoError
from octavo.verify.accuracy import compare_accuracy, compare_both, correct
from octavo.verify.data import Labelled, Text, Window, read_text
from octavo.verify.language import compare_text

RANDOM = np.random.default_rng(5)


def scores_for(picks, classes=10):
    """Scores whose order is: the pick, then the classes by number."""
    scores = np.tile(-np.arange(classes, dtype=np.float32), (len(picks), 1))
    scores[np.arange(len(picks)), picks] = 5
    return scores


@pytest.fixture
def sides():
    labels = RANDOM.integers(2, 10, 200)
    original, artifact = labels.copy(), labels.copy()
    original[:20] = 0
    artifact[5:35] = 1
    data = Labelled({"row": np.arange(200)[:, None]}, labels)

    def side(picks):
        return lambda inputs: {"out": scores_for(picks[inputs["row"][:, 0]])}

    return data, side(original), side(artifact)


@pytest.mark.parametrize("batch", [1, 32])
def test_top_1_is_paired(sides, batch):
    data, original, artifact = sides
    found = compare_accuracy(original, artifact, data, batch=batch, top=(1, 3))
    assert (found.original.value, found.artifact.value, found.n) == (0.9, 0.85, 200)
    assert found.drop.value == pytest.approx(0.05)
    assert found.drop.low < 0.05 < found.drop.high
    assert found.drop.margin < math.hypot(found.original.margin, found.artifact.margin)
    record = found.as_dict()
    assert record["float"] == 0.9
    assert record["artifact"] == 0.85
    assert record["interval"] == found.drop.interval
    assert record["top-3"]["n"] == 200
    assert record["top-3"]["float"] >= record["float"]
    assert json.dumps(record, allow_nan=False)
    assert found.within(0.06)
    assert not found.within(0.04)
    assert not found.within(0.06, confidence_bound=True)


def test_ties_go_to_the_lowest_class_as_in_argmax_and_nan_is_wrong():
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [np.nan, 9.0, 0.0]])
    labels = np.array([0, 1, 1])
    assert correct(scores, labels, 1).tolist() == [True, False, False]
    assert correct(scores, labels, 2).tolist() == [True, True, False]
    random = RANDOM.integers(0, 4, (50, 6)).astype(float)
    marks = RANDOM.integers(0, 6, 50)
    assert correct(random, marks, 1).tolist() == (random.argmax(1) == marks).tolist()


def test_labels_per_position_are_clustered_by_sample():
    labels = RANDOM.integers(0, 10, (12, 30))
    wrong = labels.copy()
    wrong[:3] = (wrong[:3] + 1) % 10  # three whole sequences lost

    def side(marks):
        return lambda i: {"y": np.eye(10, dtype=np.float32)[marks[i["row"][:, 0]]]}

    found = compare_accuracy(side(labels), side(wrong), Labelled({"row": np.arange(12)[:, None]}, labels))
    assert found.drop.value == pytest.approx(0.25)
    assert found.n == 360
    assert found.drop.margin > 0.2, "three of twelve sequences, not ninety of 360 samples"


def test_a_users_metric_sees_all_samples_and_gets_a_paired_interval(sides):
    data, original, artifact = sides

    def balanced(outputs, labels):
        right = outputs["out"].argmax(1) == labels
        return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))

    found = compare_accuracy(original, artifact, data, metric=balanced)
    assert found.metric == "balanced"
    assert found.original.value == pytest.approx(0.9, abs=0.03)
    assert found.drop.low < found.drop.value < found.drop.high
    assert found.drop.margin < 0.1
    assert found == compare_accuracy(original, artifact, data, metric=balanced), "seeded"


def test_outputs_and_accuracy_come_from_one_run(sides):
    data, original, artifact = sides
    runs = []
    outputs, accuracy = compare_both(lambda i: runs.append(1) or original(i), artifact, data, batch=50)
    assert len(runs) == 4
    assert accuracy.n == 200
    assert outputs.agreement.n == 200
    assert compare_both(original, artifact, Labelled(data.inputs))[1] is None


def test_what_does_not_fit_is_refused(sides):
    data, original, artifact = sides
    with pytest.raises(BadInput, match="needs labels"):
        compare_accuracy(original, artifact, Labelled(data.inputs))
    with pytest.raises(BadInput, match=r"Label 1[0-2] for an output 'out' of 10"):
        compare_accuracy(original, artifact, Labelled(data.inputs, data.labels + 3))
    with pytest.raises(BadInput, match="several outputs: out, other"):
        compare_accuracy(lambda i: original(i) | {"other": original(i)["out"]}, artifact, data)


UNIGRAM = np.log(np.array([0.5, 0.25, 0.125, 0.125]))
UNIFORM = np.zeros(4)


def constant(logits):
    return lambda ids: np.tile(logits, (len(ids), 1))


def text_of(*windows):
    return Text(
        tuple(Window(np.array(ids), nbytes, i, i) for i, (ids, nbytes) in enumerate(windows)), 2, 2, "window", True
    )


def test_perplexity_and_bits_per_byte_by_hand():
    text = text_of(([0, 0, 1, 2], 8), ([0, 1, 1], 5))  # the first token is context
    outputs, found = compare_text(constant(UNIGRAM), constant(UNIFORM), text)
    bits = 1 + 2 + 3 + 2 + 2
    assert found.original.value == pytest.approx(2 ** (bits / 5))
    assert found.artifact.value == pytest.approx(4)
    assert found.as_dict()["bits_per_byte"]["float"] == pytest.approx(bits / 13)
    assert found.as_dict()["bits_per_byte"]["artifact"] == pytest.approx(10 / 13)
    assert found.drop.value == pytest.approx(found.artifact.value / found.original.value - 1)
    assert found.n == 5
    assert outputs.kl.n == 7
    assert outputs.kl.value > 0
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_the_paired_interval_of_perplexity_is_far_narrower_than_the_two_apart():
    random = np.random.default_rng(0)
    table = random.standard_normal((40, 40)) * 2
    changed = table + random.standard_normal((40, 40)) * 0.05
    text = text_of(*((random.integers(0, 40, 100), 300) for _ in range(12)))
    _, found = compare_text(lambda ids: table[ids], lambda ids: changed[ids], text)
    apart = found.original.margin / found.original.value
    assert found.drop.margin < apart / 10
    assert found.drop.low < found.drop.value < found.drop.high


def test_logits_of_the_wrong_shape_and_unknown_tokens_are_refused():
    text = text_of(([0, 9], 8))
    with pytest.raises(BadInput, match="Token 9 in the text; the original has 4 words"):
        compare_text(constant(UNIFORM), constant(UNIFORM), text)
    with pytest.raises(OctavoError, match=r"artifact gave logits \[3, 4\] for 2 tokens"):
        compare_text(constant(np.zeros(10)), lambda ids: np.zeros((3, 4)), text)


def test_a_real_model_gives_its_published_figures(shared, stories260k, tmp_path):
    """Baseline: 40 stories, leading BOS, first 512 tokens: perplexity 4.368 per token. Bytes: as decoded."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(stories260k / "tokenizer.json"))
    model = transformers.LlamaForCausalLM.from_pretrained(stories260k, dtype=torch.float32).eval()

    @functools.cache
    def logits(ids):
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].numpy()

    def run(ids):
        return logits(tuple(ids.tolist()))

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    def offsets(text):
        return tokenizer.encode(text, add_special_tokens=False).offsets

    whole = (shared / "data/text/tinystories/stories_a.txt").read_text("utf-8").split("<|endoftext|>")
    stories = [story.strip() for story in whole if story.strip()]
    picks = np.random.RandomState(0).permutation(len(stories))[:40]
    path = tmp_path / "t.txt"
    path.write_text("\n<|endoftext|>\n".join(stories[i] for i in picks), "utf-8")
    text = read_text(path, encode, length=512, bos=1, offsets=offsets)
    heads = {w.document: w for w in reversed(text.windows)}
    text = Text(tuple(heads[d] for d in sorted(heads)), 40, 40, "document", text.exact_bytes)
    outputs, found = compare_text(run, run, text)
    assert outputs.identical
    assert found.drop.value == 0
    assert found.original.value == pytest.approx(4.368, rel=2e-3)
    decoded = sum(len(tokenizer.decode(w.ids[1:].tolist()).encode()) for w in text.windows)
    bits = math.log2(found.original.value) * found.n
    assert found.as_dict()["bits_per_byte"]["float"] == pytest.approx(bits / decoded, rel=1e-9)
