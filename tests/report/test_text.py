"""What the tables say: sizes, intervals, verdicts, and every name in full."""

import pytest
from rich.console import Console

from octavo.records import DoctorRecord, ExportRecord, FitRecord, ModelRecord, TensorSummary, VerifyRecord
from octavo.report import text


def shown(renderable, width=200):
    console = Console(width=width, markup=False, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3352576, "3.35 MB"), (999_600_000, "1000 MB"),
     (7.2e9, "7.2 GB"), (None, "–")],
)  # fmt: skip
def test_sizes_count_in_powers_of_ten(count, expected):
    assert text.size(count) == expected


@pytest.mark.parametrize(
    ("value", "ends", "expected"),
    [
        (0.2314, (0.2194, 0.2434), "0.231 ± 0.012"),
        (31.26, (30.02, 32.5), "31.3 ± 1.2"),
        (4.3683, None, "4.368"),
        (4.3683, (None, None), "4.368"),
        (1.0, (0.9231, 1.0), "1 [0.9231, 1]"),
        (0.00042, (0.00038, 0.00046), "0.000420 ± 0.000040"),
        (None, (1, 2), "–"),
    ],
)
def test_intervals(value, ends, expected):
    assert text.interval(value, ends) == expected


VERIFY = VerifyRecord(
    artifact="m.gguf",
    digest="d",
    weights={"wrong": [{"name": "layers[0].q_proj.weight", "reason": "1 of 384 codes differ, first [3, 17]."}]},
    outputs={"sqnr_db": 20.0, "cosine": 0.99, "kl": 0.0123, "agreement": 0.95,
             "intervals": {"kl": [0.0103, 0.0143]}, "n": 4000},
    decoded=None,
    accuracy={"metric": "perplexity", "float": 5.05, "artifact": 5.15, "drop": 0.02,
              "interval": [0.01, 0.03], "n": 4000},
    fallback=(),
    gates=({"code": 6, "reason": "weights are not exact"},),
    passed=False,
)  # fmt: skip


def test_verify_names_what_is_wrong():
    found = shown(text.verify_summary(VERIFY))
    for part in (
        "WRONG: layers[0].q_proj.weight", "1 of 384 codes differ, first [3, 17]", "KL 0.0123 ± 0.0020 nats",
        "n = 4,000", "perplexity", "drop 0.020 ± 0.010", "gate failed (exit 6): weights are not exact", "FAILED",
    ):  # fmt: skip
        assert part in found


def test_fit_has_a_row_per_candidate_and_says_why_one_is_missing():
    verify = VERIFY.to_dict() | {"weights": "exact"}
    bench = {
        "latency_ms": {"p50": 1.5, "p90": 2, "p99": 2.25, "n": 50},
        "tokens_per_second": {"prefill": 900.0, "decode": 321.4},
    }
    done = {
        "scheme": "w8", "runtime": "llamacpp", "export": {"bytes": 3_400_000, "bits_per_weight": 8.51},
        "bench": bench | {"peak_memory_bytes": 25_000_000}, "verify": verify,
    }  # fmt: skip
    refused = {"scheme": "ternary", "runtime": "llamacpp", "reason": "rows of 192 are no multiple of 256"}
    record = FitRecord("host", 2_000_000_000, (done, refused), "w8 · llamacpp", "the smallest file", None, ())
    lines = shown(text.fit_summary(record)).splitlines()
    row = next(line for line in lines if "w8" in line)
    for part in ("3.4 MB", "8.51", "exact", "0.0123 ± 0.0020", "1.50 / 2.25", "321", "25 MB"):
        assert part in row
    assert any("ternary" in line and "192" in line for line in lines)
    assert any("2 GB" in line for line in lines)
    assert "measured" in "".join(lines)
    assert lines[-1] == "chosen: w8 · llamacpp"


def test_model_export_and_doctor():
    tensors = tuple(TensorSummary(f"t{i}", (64, 32), "w4g32", 21.5) for i in range(50))
    model = ModelRecord("X", "compressed model", "abc", 102400, 57600, 4.5, tensors, ({"name": "n", "reason": "1-D"},))
    found = shown(text.model_summary(model))
    for part in ("102,400", "57.6 kB", "4.500 bits", "abc", "64×32", "21.50", "and 10 more", "left in float: n: 1-D"):
        assert part in found
    widened = ({"scheme": "w4", "as": "Q4_0", "why": "scale repeated", "tensors": 7},)
    export = ExportRecord(
        "m.gguf", "llamacpp", 5000, "abc", "exact", (), widened, ("a note",), "llama-cli -m m.gguf", 4.5
    )
    found = shown(text.export_summary(export))
    for part in ("exact", "7 tensors: w4 as Q4_0: scale repeated", "note: a note", "llama-cli -m m.gguf"):
        assert part in found
    remedy = "pip install 'octavo[llama]'"
    runtimes = (
        {
            "runtime": "llamacpp",
            "works": False,
            "version": "",
            "units": (),
            "reason": "Not installed.",
            "remedy": remedy,
        },
    )
    extras = ({"extra": "llama", "installed": False, "packages": {"xllamacpp": None}, "remedy": remedy},)
    found = shown(text.doctor_summary(DoctorRecord(runtimes, extras)))
    assert found.count(remedy) == 2


def test_in_a_file_nothing_is_folded_or_coloured(capsys):
    text.write(text.verify_summary(VERIFY))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "layers[0].q_proj.weight: 1 of 384 codes differ, first [3, 17]." in out
