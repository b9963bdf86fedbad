"""Which tensor gets which scheme: by role, with overrides; what cannot be held is refused, or left and recorded."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.compress.assign import assign
from octavo.core.architecture import TensorSpec
from octavo.core.model import Program
from octavo.errors import BadInput, Refused
from octavo.sources.graph import GraphSource

LANGUAGE_MODEL = {
    "embed": TensorSpec((96, 64), "embedding"),
    "q": TensorSpec((64, 64), "matmul"),
    "q.bias": TensorSpec((64,), "other"),
    "down": TensorSpec((64, 160), "matmul"),
    "norm": TensorSpec((64,), "other"),
    "head": TensorSpec((96, 64), "head"),
}
TIED = {name: spec for name, spec in LANGUAGE_MODEL.items() if name != "head"}
NETWORK = {
    "conv": TensorSpec((8, 3, 3, 3), "conv"),
    "conv.bias": TensorSpec((8,), "other"),
    "scale": TensorSpec((), "other"),
    "fc": TensorSpec((10, 72), "matmul"),
}


def source(tensors):
    arrays = {name: np.zeros(spec.shape, np.float32) for name, spec in tensors.items()}
    return GraphSource(Program("graph", {}), tensors, arrays)


def schemes(tensors, scheme, **options):
    assigned = assign(source(tensors), scheme, **options)
    assert [a.name for a in assigned.tensors] == list(tensors)
    assert all((a.shape, a.role) == (tensors[a.name].shape, tensors[a.name].role) for a in assigned.tensors)
    return {a.name: a.scheme for a in assigned.tensors}


def test_weights_get_the_scheme_embedding_and_head_w8_and_the_rest_stays():
    assert schemes(LANGUAGE_MODEL, "w4g32") == {
        "embed": "w8", "q": "w4g32", "q.bias": "fp32", "down": "w4g32", "norm": "fp32", "head": "w8",
    }  # fmt: skip


def test_a_convolution_gets_the_scheme_too():
    assert schemes(NETWORK, "w8") == {"conv": "w8", "conv.bias": "fp32", "scale": "fp32", "fc": "w8"}


@pytest.mark.parametrize("scheme", ["fp16", "fp32"])
def test_a_float_scheme_takes_embedding_and_head_along(scheme):
    found = schemes(LANGUAGE_MODEL, scheme)
    assert [found[name] for name in ("embed", "q", "head")] == [scheme] * 3
    assert found["norm"] == "fp32"


def test_embedding_and_head_can_be_given():
    found = schemes(LANGUAGE_MODEL, "w4g32", embedding="fp16", head="w8g32")
    assert (found["embed"], found["head"], found["q"]) == ("fp16", "w8g32", "w4g32")
    found = schemes(LANGUAGE_MODEL, "w4g32", head="w4g32")
    assert (found["embed"], found["head"]) == ("w8", "w4g32")


@pytest.mark.parametrize(
    "options", [{"embedding": "w4g32"}, {"head": "w4g32"}, {"embedding": "w4g32", "head": "w4g32"}]
)
def test_a_tied_tensor_has_one_scheme_under_either_name(options):
    assert schemes(TIED, "w8", **options)["embed"] == "w4g32"


def test_a_tied_tensor_cannot_have_two_schemes():
    with pytest.raises(BadInput, match=r"one tied tensor: it cannot be both w8 and w4g32\. Give one of"):
        assign(source(TIED), "w8", embedding="w8", head="w4g32")


@pytest.mark.parametrize("options", [{}, {"embedding": "w5"}, {"head": "w5"}])
def test_an_unknown_scheme_is_refused_wherever_it_is_named(options):
    with pytest.raises(BadInput, match=r"Unknown scheme 'w5'\. Nearest: "):
        assign(source(LANGUAGE_MODEL), "w8" if options else "w5", **options)


@pytest.mark.parametrize(
    ("tensors", "scheme", "name", "fits"),
    [
        (LANGUAGE_MODEL, "w4g64", "down", "Groups of 32 divide it"),
        (NETWORK, "w4g32", "conv", "Use w8 or w4"),
        (NETWORK | {"conv": NETWORK["fc"]}, "w8g32", "conv", "No group"),
    ],
    ids=["a group that does not divide", "a convolution", "a row no group divides"],
)
def test_what_a_scheme_cannot_hold_is_refused_by_default_and_recorded_with_allow_skip(tensors, scheme, name, fits):
    with pytest.raises(Refused, match=rf"^{name} .*{fits}.*--allow-skip"):
        assign(source(tensors), scheme)
    assigned = assign(source(tensors), scheme, allow_skip=True)
    assert {a.name: a.scheme for a in assigned.tensors}[name] == "fp32"
    skipped = {item.name: item.reason for item in assigned.skipped}
    assert skipped[name].startswith(f"{name} {list(tensors[name].shape)}: ")
    assert set(skipped) == {a.name for a in assigned.tensors if a.scheme == "fp32" and a.role != "other"}


def test_an_embedding_that_its_own_scheme_cannot_hold_is_refused_too():
    with pytest.raises(Refused, match=r"embed \[96, 64\]: group 128 does not divide 64"):
        assign(source(LANGUAGE_MODEL), "w8", embedding="w4g128")


def test_nothing_is_recorded_as_skipped_when_everything_fits():
    assert assign(source(LANGUAGE_MODEL), "w4g32", allow_skip=True).skipped == ()


def test_tensors_that_stay_keep_the_type_they_came_in(tmp_path):
    pytest.importorskip("transformers")
    from builders import tiny_llama

    from octavo.sources.huggingface import open_huggingface

    model = open_huggingface(tiny_llama(tmp_path / "m", dtype="bfloat16", num_hidden_layers=1))
    assert {(a.role, a.scheme, a.dtype) for a in assign(model, "w4g32").tensors} == {
        ("embedding", "w8", "bf16"), ("matmul", "w4g32", "bf16"), ("other", "bf16", "bf16"), ("head", "w8", "bf16"),
    }  # fmt: skip
