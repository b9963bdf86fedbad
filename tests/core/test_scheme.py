"""The table of schemes: exact sizes, and refusals that say what, where, the numbers and what to do."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.grid import pack, portable_scale
from octavo.core.scheme import SCHEMES, scheme
from octavo.core.tensor import QuantizedTensor
from octavo.errors import BadInput, Refused

PORTABLE = ["fp32", "fp16", "w8", "w8t", "w8g32", "w4", "w4g32", "w4g64", "w4g128", "w3g32", "w2g32", "ternary"]
QUANTIZED = [name for name, grid in SCHEMES.items() if not grid.is_float]


def test_every_portable_scheme_of_the_contract_exists():
    assert set(PORTABLE) <= set(SCHEMES)
    weight_only = [name for name, grid in SCHEMES.items() if grid.native is None and grid.activation is None]
    assert weight_only == PORTABLE


@pytest.mark.parametrize(("name", "weights", "activation"), [
    ("w8a8", "w8", "int8"), ("w8ta8", "w8t", "int8"), ("w8a16", "w8", "int16"),
])  # fmt: skip
def test_a_static_scheme_has_the_weights_of_a_plain_one(name: str, weights: str, activation: str):
    found, plain = scheme(name), scheme(weights)
    assert (found.range, found.granularity, found.activation) == (plain.range, plain.granularity, activation)


def test_names_are_their_own_keys():
    assert all(scheme(name).name == name for name in SCHEMES)


@pytest.mark.parametrize(
    ("name", "bits", "group"),
    [("w8g32", 8, 32), ("w4g32", 4, 32), ("w4g64", 4, 64), ("w4g128", 4, 128), ("w3g32", 3, 32), ("w2g32", 2, 32)],
)
def test_a_grouped_name_means_what_it_says(name, bits, group):
    grid = SCHEMES[name]
    assert (grid.range.bits, grid.group) == (bits, group)
    assert grid.block((8, 512)) == (1, group)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("shape", [(5, 256), (1, 128), (7, 384)])
def test_bytes_are_those_of_the_packed_arrays(name, shape):
    grid = SCHEMES[name]
    groups = tuple(s // b for s, b in zip(shape, grid.block(shape), strict=True))
    codes, scale = np.zeros(shape, np.int8), portable_scale(np.ones(groups, np.float32))
    tensor = QuantizedTensor(codes, scale, grid.block(shape), grid.range)
    packed, half = pack(tensor.codes, grid.range.bits), tensor.scale.astype(np.float16)
    assert grid.bytes(shape) == packed.nbytes + half.nbytes


@pytest.mark.parametrize("name", ["w8", "w4", "w8t", "ternary"])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 1, 3, 3), (3, 7)])
def test_odd_rows_and_kernels_count_their_padding(name, shape):
    grid = SCHEMES[name]
    grid.check("conv.weight", shape)
    groups = np.prod([s // b for s, b in zip(shape, grid.block(shape), strict=True)])
    packed = pack(np.zeros((shape[0], int(np.prod(shape[1:]))), np.int8), grid.range.bits)
    assert grid.bytes(shape) == packed.nbytes + 2 * groups


def test_float_schemes_count_every_value():
    assert SCHEMES["fp32"].bytes((3, 5)) == 60
    assert SCHEMES["fp16"].bytes((3, 5)) == 30
    assert SCHEMES["fp16"].bytes(()) == 2
    with pytest.raises(ValueError, match="fp16 has no scales"):
        SCHEMES["fp16"].block((3, 5))


def test_true_bits_per_weight_of_w4g32_include_its_scales():
    assert 8 * SCHEMES["w4g32"].bytes((1024, 1024)) / 1024**2 == 4.5
    assert 8 * SCHEMES["w8g32"].bytes((1024, 1024)) / 1024**2 == 8.5


def test_a_group_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(Refused) as caught:
        SCHEMES["w4g128"].check("layers.3.mlp.down_proj.weight", (2048, 5696))
    assert caught.value.message == "layers.3.mlp.down_proj.weight [2048, 5696]: group 128 does not divide 5696."
    assert caught.value.remedy.startswith("Groups of 32 or 64 divide it;")
    assert "--allow-skip" in caught.value.remedy


def test_a_row_that_no_group_divides_is_refused_with_what_does_work():
    with pytest.raises(Refused, match=r"x \[4, 50\]: group 32 does not divide 50\. No group .* w4 and w8 .* always do"):
        SCHEMES["w4g32"].check("x", (4, 50))


def test_groups_on_a_convolution_are_refused_with_what_does_work():
    with pytest.raises(Refused, match=r"conv1\.weight \[8, 32, 3, 3\]: w4g32 .* 4 axes\. Use w8 or w4"):
        SCHEMES["w4g32"].check("conv1.weight", (8, 32, 3, 3))


def test_an_unknown_scheme_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"Unknown scheme 'w4g23'\. Nearest: .*w4g32"):
        scheme("w4g23")
    with pytest.raises(BadInput, match=r"Known: .*ternary"):
        scheme("§")
