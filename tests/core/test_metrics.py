"""Metrics against brute force, and intervals against their promise: they cover the truth as often as they say."""

import itertools
import math

import numpy as np
import pytest

from octavo.core import metrics
from octavo.core.metrics import Distance, Likelihood


def softmax(row):
    exact = [math.exp(float(v) - max(map(float, row))) for v in row]
    return [value / math.fsum(exact) for value in exact]


def slow_kl(p_logits, q_logits):
    p, q = softmax(p_logits), softmax(q_logits)
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


@pytest.fixture
def logits():
    random = np.random.default_rng(1)
    reference = random.standard_normal((23, 17)).astype(np.float32) * 5
    return reference, reference + random.standard_normal((23, 17)).astype(np.float32) * 0.3


def test_kl_is_from_reference_to_artifact_in_nats(logits):
    reference, artifact = logits
    expected = [slow_kl(r, a) for r, a in zip(reference, artifact, strict=True)]
    assert metrics.kl_divergence(reference, artifact) == pytest.approx(expected, rel=1e-9)
    assert metrics.kl_divergence(artifact, reference).mean() != pytest.approx(np.mean(expected), rel=1e-3)
    assert metrics.kl_divergence(np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]]))[0] == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    )


def test_kl_of_huge_and_of_masked_logits_is_finite_and_right():
    assert metrics.kl_divergence(np.float32([[3e4, 0.0]]), np.float32([[3e4, 1.0]]))[0] == pytest.approx(0, abs=1e-12)
    masked = np.array([[0.0, 1.0, -np.inf]])
    assert metrics.kl_divergence(masked, masked + np.array([[0.0, 0.5, 0.0]]))[0] == pytest.approx(
        slow_kl([0.0, 1.0], [0.0, 1.5])
    )


def test_sqnr_and_cosine_by_hand():
    assert metrics.sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(10 * math.log10(25 / 0.25))
    assert metrics.sqnr_db(np.ones(3), np.ones(3)) == math.inf
    assert metrics.sqnr_db(np.zeros(3), np.ones(3)) == -math.inf
    rows = metrics.cosine(np.array([[1.0, 0], [1, 1], [0, 0], [0, 0]]), np.array([[1.0, 1], [-1, -1], [0, 0], [1, 0]]))
    assert rows == pytest.approx([math.sqrt(0.5), -1, 1, 0])


def test_noise_far_below_float32_is_seen():
    reference = np.full(1000, 1000.0, np.float32)
    artifact = np.nextafter(reference, np.float32(np.inf))
    step = float(artifact[0] - reference[0])
    assert metrics.sqnr_db(reference, artifact) == pytest.approx(20 * math.log10(1000 / step), rel=1e-9)


def test_negative_log_likelihood_and_perplexity(logits):
    reference, _ = logits
    targets = np.random.default_rng(2).integers(0, 17, 23)
    expected = [-math.log(softmax(row)[t]) for row, t in zip(reference, targets, strict=True)]
    assert metrics.negative_log_likelihood(reference, targets) == pytest.approx(expected, rel=1e-9)
    both = Likelihood()
    both.add("a", np.array(expected[:10]), 30.0)
    both.add("b", np.array(expected[10:]), 50.0)
    found = both.perplexity()
    assert found.value == pytest.approx(math.exp(sum(expected) / 23))
    assert found.low < found.value < found.high
    assert both.bits_per_byte().value == pytest.approx(sum(expected) / math.log(2) / 80)
    assert (found.n, found.clusters) == (23, 2)


def test_feeding_in_pieces_changes_nothing(logits, monkeypatch):
    reference, artifact = logits
    whole = Distance()
    whole.add(reference, artifact, 0)
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", 40)
    pieces = Distance()
    for start, stop in itertools.pairwise([0, 5, 6, 23]):
        pieces.add(reference[start:stop], artifact[start:stop], start)
    one, many = whole.result(), pieces.result()
    for name in ("sqnr_db", "cosine", "kl", "agreement"):
        assert getattr(one, name).value == pytest.approx(getattr(many, name).value, rel=1e-12)
        assert getattr(one, name).low is None, "one cluster gives no interval"
        assert getattr(many, name).low <= getattr(many, name).value <= getattr(many, name).high
        assert (getattr(many, name).n, getattr(many, name).clusters) == (23, 3)
    assert one.kl.value == pytest.approx(np.mean([slow_kl(r, a) for r, a in zip(reference, artifact, strict=True)]))
    assert one.agreement.value == np.mean(reference.argmax(1) == artifact.argmax(1))


def test_nan_in_the_artifact_is_counted_and_spoils_the_figures():
    reference = np.random.default_rng(0).standard_normal((4, 5))
    artifact = reference.copy()
    artifact[2, 3] = np.nan
    distance = Distance()
    distance.add(reference, artifact, 0)
    found = distance.result()
    assert found.nonfinite == 1
    assert not found.identical
    assert math.isnan(found.sqnr_db.value)
    assert math.isnan(found.kl.value)
    assert math.isnan(found.cosine.value)


def test_identical_outputs_masked_ones_included():
    logits = np.array([[0.0, -np.inf, 2.0]])
    distance = Distance()
    distance.add(logits, logits.copy(), 0)
    found = distance.result()
    assert found.identical
    assert found.nonfinite == 0
    assert found.sqnr_db.value == math.inf
    assert found.kl.value == 0
    assert found.cosine.value == 1
