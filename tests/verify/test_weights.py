"""Whatever was changed in an artifact's weights, the tensors are named; untouched, they are exact.

The decoder here is in memory and holds real QuantizedTensors, so that every tampering can be made; that the vendors'
readers decode real files is tested with the runtimes.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from octavo.core.grid import IntegerRange
from octavo.core.manifest import Carried, EditedManifest, Manifest, manifest_for
from octavo.core.model import CompressedModel, Program, TensorRecord
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import QuantizedTensor, float_digest
from octavo.errors import Refused
from octavo.verify.weights import check_weights, edited_manifest


def quantized(seed, scheme="w4g32", shape=(6, 64)):
    random, grid = np.random.default_rng(seed), SCHEMES[scheme]
    block = grid.block(shape)
    groups = tuple(s // b for s, b in zip(shape, block, strict=True))
    codes = random.integers(grid.range.low, grid.range.high + 1, shape).astype(np.int8)
    return QuantizedTensor(codes, random.choice([0.5, 0.25, 0.125], groups).astype(np.float32), block, grid.range)


class Held:
    """Tensors by name, as a compressed model's reader."""

    def __init__(self, tensors):
        self.tensors = tensors

    def tensor(self, record, start=0, stop=None):
        return self.tensors[record.name]


class Decoded:
    """What a vendor's reader found at each place in the file."""

    def __init__(self, places):
        self.places = dict(places)

    def tensor(self, carried):
        value = self.places[carried.at[0]]
        if isinstance(value, Exception):
            raise value
        return value

    def stored(self, carried):
        return self.places[carried.at[0]]


@pytest.fixture
def tensors():
    norm = np.linspace(0.5, 1.5, 64, dtype=np.float32)
    return {"a": quantized(1), "b": quantized(2), "c": quantized(3, "w8"), "norm": norm}


@pytest.fixture
def model(tensors):
    schemes = {"a": "w4g32", "b": "w4g32", "c": "w8", "norm": "fp32"}
    records = tuple(
        TensorRecord(
            name, value.shape, "matmul", schemes[name], value.digest() if name != "norm" else float_digest(value)
        )
        for name, value in tensors.items()
    )
    return CompressedModel(Program("graph", {}), records, Held(tensors))


@pytest.fixture
def manifest(model):
    carried = tuple(
        Carried(r.name, r.shape, r.role, r.scheme, r.digest, "Q", (f"file.{r.name}",), why="wider" * (r.name == "c"))
        for r in model.tensors
    )
    return manifest_for(model, "someruntime", carried)


@pytest.fixture
def decoder(tensors):
    return Decoded({f"file.{name}": value for name, value in tensors.items()})


def wrong(report):
    return {item["name"]: item["reason"] for item in report.verdict["wrong"]}


def test_untouched_is_exact_by_either_record(decoder, manifest, model):
    by_manifest, by_model = check_weights(decoder, manifest), check_weights(decoder, manifest, model)
    assert by_manifest.verdict == by_model.verdict == "exact"
    assert (by_manifest.against, by_model.against) == ("manifest", "compressed model")
    assert by_manifest.digest == by_model.digest == model.digest
    assert by_manifest.checked == 4
    assert by_manifest.widened == {"w8 as Q: wider": 1}


def test_without_any_record_it_is_unknown(decoder):
    assert check_weights(decoder, None).verdict == "unknown"


def test_without_a_manifest_the_model_and_the_runtimes_plan_will_do(decoder, manifest, model):
    assert check_weights(decoder, None, model, carry=lambda _: manifest).verdict == "exact"
    with pytest.raises(ValueError, match="carry"):
        check_weights(decoder, None, model)


@pytest.mark.parametrize("given", ["manifest", "compressed"])
def test_one_edited_code_names_the_tensor(decoder, manifest, model, tensors, given):
    codes = tensors["b"].codes.copy()
    codes[3, 17] ^= 1
    decoder.places["file.b"] = replace(tensors["b"], codes=codes)
    found = wrong(check_weights(decoder, manifest, model if given == "compressed" else None))
    assert list(found) == ["b"]
    if given == "compressed":
        assert "1 of 384 codes differ, first [3, 17]" in found["b"]
        assert "file.b" in found["b"]


@pytest.mark.parametrize("given", ["manifest", "compressed"])
def test_one_edited_scale_names_the_tensor(decoder, manifest, model, tensors, given):
    scale = tensors["a"].scale.copy()
    scale[5, 1] *= 2
    decoder.places["file.a"] = replace(tensors["a"], scale=scale)
    found = wrong(check_weights(decoder, manifest, model if given == "compressed" else None))
    assert list(found) == ["a"]
    if given == "compressed":
        assert "1 of 12 scales differ, first [5, 1]" in found["a"]


def test_one_bit_of_a_float_tensor_names_it(decoder, manifest, model, tensors):
    norm = tensors["norm"].copy()
    norm[7] = np.nextafter(norm[7], np.float32(2))
    decoder.places["file.norm"] = norm
    assert list(wrong(check_weights(decoder, manifest))) == ["norm"]
    assert "1 of 64 values differ, first [7]" in wrong(check_weights(decoder, manifest, model))["norm"]


def test_two_swapped_tensors_are_named_with_each_other(decoder, manifest, tensors):
    decoder.places |= {"file.a": tensors["b"], "file.b": tensors["a"]}
    found = wrong(check_weights(decoder, manifest))
    assert set(found) == {"a", "b"}
    assert "content of b" in found["a"]
    assert "content of a" in found["b"]


def test_the_same_codes_in_another_range_are_not_the_same_tensor(decoder, manifest, model, tensors):
    decoder.places["file.a"] = replace(tensors["a"], range=IntegerRange(8, -127, 127))
    assert "expected codes [6, 64] in [-8, 7]" in wrong(check_weights(decoder, manifest, model))["a"]


def test_what_cannot_be_decoded_or_is_not_there_is_wrong(decoder, manifest, model):
    decoder.places["file.a"] = Refused("block 3 has the scale NaN.")
    del decoder.places["file.c"]
    found = wrong(check_weights(decoder, manifest))
    assert set(found) == {"a", "c"}
    assert "block 3 has the scale NaN" in found["a"]
    short = replace(manifest, tensors=manifest.tensors[:1])
    assert {"b", "c", "norm"} <= set(wrong(check_weights(decoder, short, model)))


def test_an_edited_manifest_is_caught_and_the_tensor_named(manifest):
    body = json.loads(manifest.to_json())
    body["tensors"][1]["digest"] = body["tensors"][0]["digest"]
    with pytest.raises(EditedManifest) as caught:
        Manifest.from_json(json.dumps(body))
    assert list(wrong(edited_manifest(caught.value))) == ["b"]
    body = json.loads(manifest.to_json())
    body["notes"] = ["trust me"]
    with pytest.raises(EditedManifest) as caught:
        Manifest.from_json(json.dumps(body))
    assert "seal" in wrong(edited_manifest(caught.value))["(manifest)"]


def test_a_manifest_forged_to_fit_forged_weights_does_not_fool_the_compressed_model(decoder, manifest, model, tensors):
    forged = quantized(9)
    decoder.places["file.a"] = forged
    tensor = replace(manifest.tensors[0], digest=forged.digest())
    parts = manifest.parts | {"tensors": manifest.parts["tensors"] | {"a": forged.digest()}}
    lies = Manifest.from_json(replace(manifest, parts=parts, tensors=(tensor, *manifest.tensors[1:])).to_json())
    assert check_weights(decoder, lies).verdict == "exact", "consistent with itself: this is what --compressed is for"
    report = check_weights(decoder, lies, model)
    assert list(wrong(report)) == ["a"]
    assert report.notes


def test_a_rewritten_norm_is_compared_as_it_lies(decoder, manifest, model, tensors):
    added = tensors["norm"] + np.float32(1)
    decoder.places["file.norm"] = added
    norm = replace(manifest.tensors[3], carried_digest=float_digest(added), moves=("add 1",))
    told = replace(manifest, tensors=(*manifest.tensors[:3], norm))
    assert check_weights(decoder, told).verdict == "exact"
    assert check_weights(decoder, told, model, carry=lambda _: told).verdict == "exact"
    decoder.places["file.norm"] = added + np.float32(1)
    assert list(wrong(check_weights(decoder, told))) == ["norm"]


def test_calling_a_tensor_rewritten_hides_nothing(decoder, manifest, model, tensors):
    other = tensors["norm"] * np.float32(3)
    decoder.places |= {"file.norm": other, "file.a": other}
    excuses = {"norm": float_digest(other), "a": float_digest(other)}
    excused = tuple(replace(c, carried_digest=excuses.get(c.name, "")) for c in manifest.tensors)
    lies = replace(manifest, tensors=excused)
    assert "never done to w4g32" in wrong(check_weights(decoder, lies))["a"]
    found = wrong(check_weights(decoder, lies, model, carry=lambda _: manifest))
    assert set(found) == {"a", "norm"}
