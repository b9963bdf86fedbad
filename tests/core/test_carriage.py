"""The carriage table: every cell can be believed, and what it refuses it refuses with what would do."""

from __future__ import annotations

import tomllib
from importlib import resources

import pytest

from octavo.core.carriage import carriage, possible, table
from octavo.core.model import TensorRecord
from octavo.core.scheme import SCHEMES
from octavo.core.store import FLOAT_DTYPE
from octavo.errors import Refused

ROLES = ("matmul", "conv", "embedding", "head", "other")
CELLS = [
    (runtime, operator, scheme)
    for runtime, operators in table().items()
    for operator, schemes in operators.items()
    for scheme in schemes
]


def record(scheme, shape=(64, 256), role="matmul"):
    return TensorRecord("layers.0.weight", shape, role, scheme, "0" * 64)


@pytest.mark.parametrize(("runtime", "operator", "scheme"), CELLS)
def test_every_cell_is_well_formed(runtime, operator, scheme):
    cell = table()[runtime][operator][scheme]
    assert operator in ROLES
    assert scheme in SCHEMES or scheme in FLOAT_DTYPE
    assert cell.how in ("exact", "widened", "refused")
    assert cell.stored_as if cell.how != "refused" else not cell.stored_as
    assert cell.why or cell.how == "exact", "what is widened or refused says why"
    assert cell.multiple >= 1
    grid = SCHEMES.get(scheme)
    if grid and grid.range and cell.how != "refused" and cell.bits is not None:
        rows = 4096
        assert cell.bits >= 8 * grid.bytes((rows, 4096)) / (rows * 4096) or cell.how == "exact"
        assert cell.bits >= grid.range.bits


def test_a_cell_has_only_fields_that_are_read():
    raw = tomllib.loads(resources.files("octavo.core").joinpath("carriage.toml").read_text("utf-8"))
    fields = {
        key for operators in raw.values() for cells in operators.values() for cell in cells.values() for key in cell
    }
    assert fields <= {"how", "as", "bits", "why", "multiple", "else"}


@pytest.mark.parametrize("runtime", table())
def test_a_float_model_can_always_be_carried(runtime):
    for role in ("matmul", "embedding", "head", "other"):
        assert carriage(runtime, record("fp32", role=role)).how in ("exact", "widened")


@pytest.mark.parametrize("role", ["embedding", "head"])
def test_embedding_and_head_follow_matmul_unless_listed(role):
    for runtime, operators in table().items():
        listed = operators.get(role) or operators["matmul"]
        assert possible(runtime, role) == {name: cell for name, cell in listed.items() if cell.how != "refused"}


def test_a_scheme_a_runtime_cannot_hold_is_refused_with_those_it_can():
    with pytest.raises(Refused) as caught:
        carriage("llamacpp", record("w4g32", (8, 3, 3, 32), "conv"))
    assert caught.value.message.startswith(
        "layers.0.weight [8, 3, 3, 32]: llamacpp has no exact form of w4g32 for 'conv'"
    )
    with pytest.raises(Refused) as caught:
        carriage("llamacpp", record("w8", (256,), "other"))
    assert caught.value.remedy == "It holds fp32, fp16.", "bf16 is no scheme that can be asked for"


def test_rows_of_the_wrong_length_are_refused_with_what_fits_them():
    assert carriage("llamacpp", record("ternary")).stored_as == "TQ2_0"
    with pytest.raises(Refused) as caught:
        carriage("llamacpp", record("w4g64", (64, 144)))
    assert "layers.0.weight [64, 144]" in caught.value.message
    assert "multiple of 32, and 144 is not" in caught.value.message
    offered = caught.value.remedy.removeprefix("For this row it holds ").split(";")[0].split(", ")
    assert offered == ["fp32", "fp16"]
    for scheme in offered:
        carriage("llamacpp", record(scheme, (64, 144)))


def test_the_first_alternative_whose_rows_fit_is_taken():
    other = carriage("llamacpp", record("ternary", (64, 160)))
    assert (other.how, other.stored_as, other.bits) == ("widened", "Q4_0", 4.5)
    assert "multiple of 256" in other.why
    with pytest.raises(Refused, match="as Q4_0, in rows of a multiple of 32, and 144 is not"):
        carriage("llamacpp", record("ternary", (64, 144)))


@pytest.mark.parametrize("scheme", [name for name, grid in SCHEMES.items() if grid.native])
def test_a_native_scheme_is_exact_in_its_own_runtime(scheme):
    assert carriage(SCHEMES[scheme].native, record(scheme)).how == "exact"
