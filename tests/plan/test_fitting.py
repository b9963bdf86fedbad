"""The fit: known terms come back, and published models are predicted better than by four terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import BadInput
from octavo.plan.features import TERMS
from octavo.plan.fitting import Row, fit, fit_measurements, interval, left_out
from octavo.plan.latency import estimate, value_of
from octavo.plan.nnls import nnls

TRUE = {"inference": 0.2, "dense_gmacs": 0.15, "mparameters": 0.03, "conv_melements": 0.04, "hundred_operators": 0.3}
SPEED = {"quick": 1.0, "slow": 3.0}


def _rows(noise: float = 0.0, models: int = 24) -> list[Row]:
    """Latencies of made-up models out of TRUE, on two devices and two runtimes."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(models):
        found = {
            "inference": 1.0, "dense_gmacs": 10 ** random.uniform(-1, 1), "mparameters": 10 ** random.uniform(0, 2),
            "conv_melements": 10 ** random.uniform(0, 1.5), "hundred_operators": 10 ** random.uniform(-0.5, 1),
        }  # fmt: skip
        for device, speed in SPEED.items():
            for runtime, factor in (("tflite", 1.0), ("onnx", 1.3)):
                latency = speed * factor * value_of(TRUE, found) * float(np.exp(noise * random.standard_normal()))
                rows.append(Row(f"m{index}", device, runtime, "float", latency, found))
    return rows


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_non_negative_least_squares_meets_the_conditions_of_an_optimum(seed: int, k: int, n: int, warm: bool) -> None:
    """Karush-Kuhn-Tucker: no slope along a positive entry, none downhill along a zero one."""
    random = np.random.default_rng(seed)
    a = random.random((n, k)) * random.random(k) ** 3
    y = random.random(n)
    x = nnls(a.T @ a, a.T @ y, random.random(k) - 0.5 if warm else None)
    slope = a.T @ (y - a @ x)
    assert (x >= 0).all()
    assert np.abs(slope[x > 0]).max(initial=0) < 1e-6
    assert slope.max() < 1e-6


def test_known_terms_are_recovered() -> None:
    made = fit(_rows())
    for device, speed in SPEED.items():
        found = made.of(device, "tflite", "float")
        assert found is not None
        for name, value in TRUE.items():
            assert found.terms[name] == pytest.approx(speed * value, rel=0.1), (device, name)


def test_models_left_out_are_predicted_and_the_interval_holds_its_share() -> None:
    held = left_out(_rows(noise=0.15))
    low, high = interval(held)
    within = np.mean([low <= np.exp(one.log_ratio / one.stretch) <= high for one in held])
    assert np.median([abs(one.log_ratio) for one in held]) < 0.2
    assert within == pytest.approx(0.8, abs=0.03)
    assert low < 1 < high < 1.6


def test_no_term_is_negative_and_one_that_rows_contradict_stays_out_of_the_way() -> None:
    rows = [Row(row.model, row.device, row.runtime, row.precision, 1.0, row.features) for row in _rows()]
    for terms in fit(rows).configs.values():
        assert min(terms.terms.values()) >= 0
        assert terms.terms["inference"] == pytest.approx(1.0, abs=0.15)


def test_coefficients_carry_their_errors_ranges_and_rows() -> None:
    fitted = fit_measurements(_rows(noise=0.1, models=12), source="made up", date="2026-11-22")
    one = next(item for item in fitted["slow"] if item.runtime == "onnx")
    assert (one.rows, one.models, one.unit, one.precision) == (12, 12, "npu", "float")
    assert 0 < one.median_error < 0.3
    assert one.median_error <= one.p90_error
    assert one.ranges["mparameters"][0] > 0
    assert "inference" not in one.ranges
    quantity = estimate(one, {"inference": 1.0, "dense_gmacs": 1.0, "mparameters": 10.0, "conv_melements": 5.0})
    assert quantity.low is not None
    assert quantity.value is not None
    assert quantity.low < quantity.value


def test_a_runtime_that_lags_far_behind_is_told_from_the_latencies_alone() -> None:
    rows = [*_rows(), *(_moved(row, "third", 1.0) for row in _rows() if row.device == "quick")]
    rows = [_moved(row, row.device, 30.0 if (row.device, row.runtime) == ("quick", "onnx") else 1.0) for row in rows]
    fitted = fit_measurements(rows, source="made up", date="2026-11-22")
    assert {one.runtime: one.unit for one in fitted["quick"]} == {"tflite": "npu", "onnx": "cpu"}
    assert {one.unit for one in fitted["slow"]} == {"npu"}


def _moved(row: Row, device: str, factor: float) -> Row:
    return Row(row.model, device, row.runtime, row.precision, row.latency_ms * factor, row.features)


def test_what_cannot_be_fitted_is_refused() -> None:
    row = _rows()[0]
    with pytest.raises(BadInput, match="No rows"):
        fit_measurements([], source="", date="")
    with pytest.raises(BadInput, match=r"-1"):
        fit_measurements([_moved(row, "quick", -1 / row.latency_ms)], source="", date="")
    with pytest.raises(BadInput, match="unknown features layers"):
        fit_measurements([Row("m", "d", "r", "float", 1.0, {"layers": 3.0})], source="", date="")


def test_published_models_left_out_are_predicted_better_than_by_four_terms(shared: Path) -> None:
    """A coarse look at benchmarks/planner_phones.py: a third of the models away at once, no nested intervals."""
    folder = shared / "data" / "phones"
    phones = pytest.importorskip("benchmarks._phones")
    bench = pytest.importorskip("benchmarks.planner_phones")
    measured = phones.read(folder, extra=bench.EXTRA)
    held = left_out(measured.rows, folds=9)
    errors = np.array([abs(np.exp(-one.log_ratio) - 1) for one in held])
    plain = bench.baseline(measured.rows, [one.row for one in held], bench.plain_facts(folder))
    theirs = np.array([abs(value / held[index].row.latency_ms - 1) for index, value in plain.items()])
    assert len(held) == sum(row.weight >= 1 for row in measured.rows)
    assert not measured.holes
    assert np.median(errors) < np.median(theirs)
    assert np.quantile(errors, 0.9) < np.quantile(theirs, 0.9)
    assert set(measured.rows[0].features) == set(TERMS)


def test_the_benchmark_predicts_models_that_nobody_counted(shared: Path, tmp_path: Path) -> None:
    """A folder with a model under a name that no table has, on a device that no row has, with a hole."""
    bench = pytest.importorskip("benchmarks.planner_phones")
    folder = shared / "data" / "phones"
    facts = (folder / "facts.csv").read_text().splitlines()
    (tmp_path / "facts.csv").write_text(
        "\n".join([facts[0], "brandnew,,224,11.7,1.8,2.5", "resnet18,,224,11.7,1.8,2.5"])
    )
    lines = (folder / "latency.csv").read_text().splitlines()
    rows = [line.replace("resnet18,", "brandnew,", 1) for line in lines if line.startswith("resnet18,")]
    rows[0] = rows[0].replace(rows[0].split(",")[3], "Some New Phone")
    rows[1] = ",".join(["", *rows[1].split(",")[1:]]).replace(",", "brandnew,", 1)
    hole = rows[2].split(",")
    hole[5] = ""
    rows[2] = ",".join(hole)
    (tmp_path / "latency.csv").write_text(
        "\n".join([lines[0], *rows, *(x for x in lines if x.startswith("resnet18,"))])
    )
    found = bench.report(folder, tmp_path)
    assert found["overall"]["n"] == 2 * len(rows) - 1
    assert len(found["holes"]) == 1
    how = {one["model"]: one["features"] for one in found["models"]}
    assert how["resnet18"] == "counted"
    assert how["brandnew"].startswith("not counted: like")
    assert {one["model"]: one["median_error"] for one in found["models"]}["brandnew"] < 0.5
    assert {"overall", "groups", "baseline", "language"} <= set(found)
