"""Distances between outputs, with both sides as plain functions."""

import json

import numpy as np
import pytest

from octavo.core import metrics
from octavo.errors import BadInput, OctavoError
from octavo.verify.outputs import OutputComparison, compare_outputs

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.standard_normal((50, 50)).astype(np.float32) * 3
NOISE = RANDOM.standard_normal((50, 50)).astype(np.float32) * 0.2


def model(ids):
    return TABLE[ids]


def noisy(ids):
    return TABLE[ids] + NOISE[ids]


WINDOWS = [RANDOM.integers(0, 50, n) for n in (20, 31, 7, 40)]


def test_positions_are_pooled_and_windows_are_the_clusters():
    found = compare_outputs(model, noisy, WINDOWS)
    ids = np.concatenate(WINDOWS)
    assert found.kl.value == pytest.approx(metrics.kl_divergence(TABLE[ids], (TABLE + NOISE)[ids]).mean())
    assert found.sqnr_db.value == pytest.approx(metrics.sqnr_db(TABLE[ids], (TABLE + NOISE)[ids]))
    assert found.agreement.value == pytest.approx(np.mean(TABLE[ids].argmax(1) == (TABLE + NOISE)[ids].argmax(1)))
    assert (found.kl.n, found.kl.clusters, found.samples) == (98, 4, 4)
    assert found.within(found.sqnr_db.value - 0.1)
    assert not found.within(found.sqnr_db.value + 0.1)


def test_a_model_against_itself_is_identical_and_within_any_bound():
    found = compare_outputs(model, model, WINDOWS)
    record = found.as_dict()
    assert found.within(1000)
    assert record["identical"]
    assert record["kl"] == 0
    assert record["agreement"] == 1
    assert record["sqnr_db"] is None
    assert json.dumps(record, allow_nan=False)


def test_nan_is_never_within_a_bound():
    def broken(ids):
        logits = model(ids)
        logits[-1, 3] = np.nan
        return logits

    found = compare_outputs(model, broken, WINDOWS)
    assert found.nonfinite == 4
    assert not found.within(-1000)
    with pytest.raises(BadInput, match="original holds NaN"):
        compare_outputs(broken, model, WINDOWS)


def test_of_several_outputs_the_worst_leads_and_each_is_listed():
    def two(inputs):
        return {"near": inputs["x"] @ TABLE, "far": inputs["x"] @ TABLE[:, :4]}

    def off(inputs):
        right = two(inputs)
        return {"far": right["far"] * np.float32(0.5), "near": right["near"] * np.float32(0.999)}

    batches = [{"x": RANDOM.standard_normal((5, 50)).astype(np.float32)} for _ in range(3)]
    found = compare_outputs(two, off, batches, kind="values")
    assert found.by_output["far"].sqnr_db.value == pytest.approx(6.0206, abs=1e-3)
    assert found.by_output["near"].sqnr_db.value == pytest.approx(60, abs=1e-2)
    assert found.sqnr_db == found.by_output["far"].sqnr_db
    assert found.kl is None
    assert found.cosine.value == pytest.approx(1)
    assert found.cosine.n == found.cosine.clusters == 15, "each sample of a batch stands alone"


def test_other_names_or_shapes_are_refused():
    with pytest.raises(OctavoError, match="no output"):
        compare_outputs(lambda i: {"y": i["x"]}, lambda i: {"z": i["x"]}, [{"x": np.ones((1, 2))}])
    with pytest.raises(OctavoError, match=r"\(1, 2\), the artifact \(1, 1\)"):
        compare_outputs(lambda i: {"y": i["x"]}, lambda i: {"y": i["x"][:, :1]}, [{"x": np.ones((1, 2))}])
    with pytest.raises(BadInput, match="No inputs"):
        OutputComparison().report()
