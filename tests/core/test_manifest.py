"""An artifact's account of itself: it survives JSON unchanged, and an edit anywhere is noticed and named."""

from __future__ import annotations

import json

import pytest

from octavo.core.manifest import Carried, EditedManifest, Manifest, manifest_for
from octavo.core.model import CompressedModel, Edge, Program, State, TensorRecord
from octavo.errors import BadInput


@pytest.fixture
def model():
    tensors = (
        TensorRecord("model.embed_tokens.weight", (96, 32), "embedding", "w8", "e" * 64),
        TensorRecord("layers.0.weight", (32, 64), "matmul", "w4g32", "a" * 64),
        TensorRecord("norm.weight", (32,), "other", "bf16", "b" * 64),
    )
    return CompressedModel(
        Program("huggingface", {"model_type": "llama"}),
        tensors,
        reader=None,
        edges=(Edge("x", 0.1, 3, "int8"),),
        state=(State("cache", (1, -1), "float32"),),
        assets={"tokenizer.json": b"{}"},
    )


@pytest.fixture
def manifest(model):
    carried = tuple(
        Carried(r.name, r.shape, r.role, r.scheme, r.digest, "Q4_0", (f"blk.{r.name}", "second"), ("permute",), "why é")
        for r in model.tensors
    )
    return manifest_for(
        model, "llamacpp", carried, notes=("a note",), program="1.2", extra={"tokenizer": "none", "n": [1]}
    )


def test_a_manifest_survives_json(manifest, model):
    text = manifest.to_json()
    assert "\n" not in text
    back = Manifest.from_json(text)
    assert back == manifest
    assert back.digest == model.digest
    assert back.to_json() == text


def edited(manifest, change, sealed=False):
    body = json.loads(manifest.to_json())
    change(body)
    if sealed:
        from octavo.core.manifest import _seal

        body["seal"] = _seal(body)
    return json.dumps(body)


def other_tensor_digest(body):
    body["tensors"][1]["digest"] = "0" * 64


def other_part(body):
    body["parts"]["tensors"]["layers.0.weight"] = "0" * 64


def swapped(body):
    first, second = body["tensors"][:2]
    first["digest"], second["digest"] = second["digest"], first["digest"]


@pytest.mark.parametrize("sealed", [False, True], ids=["seal kept", "seal redone"])
@pytest.mark.parametrize(
    ("change", "names"),
    [
        (other_tensor_digest, ["layers.0.weight"]),
        (other_part, ["layers.0.weight"]),
        (swapped, ["model.embed_tokens.weight", "layers.0.weight"]),
        (lambda body: body["tensors"][2].update(name="norm.wait"), ["norm.wait"]),
        (lambda body: body["parts"]["tensors"].pop("norm.weight"), ["norm.weight"]),
    ],
    ids=["tensor digest", "part", "swapped", "renamed", "dropped"],
)
def test_an_edited_tensor_digest_names_the_tensor(manifest, change, names, sealed):
    with pytest.raises(EditedManifest, match=f"tensor {names[0]} does not agree") as caught:
        Manifest.from_json(edited(manifest, change, sealed))
    assert list(caught.value.names) == names


@pytest.mark.parametrize("sealed", [False, True], ids=["seal kept", "seal redone"])
@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(digest="0" * 64),
        lambda body: body["parts"].update(program="0" * 64),
        lambda body: body["parts"]["edges"][0].update(scale=0.2),
        lambda body: body["parts"]["assets"].update({"tokenizer.json": "0" * 64}),
    ],
    ids=["digest", "program", "edge", "asset"],
)
def test_an_edited_model_digest_is_named(manifest, change, sealed):
    with pytest.raises(EditedManifest, match="model digest does not agree"):
        Manifest.from_json(edited(manifest, change, sealed))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(runtime="litert"),
        lambda body: body["tensors"][0].update(scheme="w4"),
        lambda body: body["tensors"][0].update(stored_as="Q8_0"),
        lambda body: body["tensors"][0].update(at=["elsewhere"]),
        lambda body: body["tensors"][0].update(moves=[]),
        lambda body: body["tensors"][0].update(shape=[32, 96]),
        lambda body: body["tensors"].pop(),
        lambda body: body.update(notes=[]),
        lambda body: body["extra"].update(tokenizer="bpe"),
        lambda body: body.update(colour="red"),
        lambda body: body.update(seal="0" * 64),
    ],
)
def test_any_other_edit_breaks_the_seal(manifest, change):
    with pytest.raises(EditedManifest, match="seal does not agree"):
        Manifest.from_json(edited(manifest, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("seal"),
        lambda body: body.pop("parts"),
        lambda body: body["parts"].pop("tensors"),
        lambda body: body["parts"].update(tensors=[]),
        lambda body: body.update(parts=None),
        lambda body: body.update(tensors=[1]),
        lambda body: body["tensors"][0].pop("at"),
        lambda body: body["tensors"][0].update(colour="red"),
        lambda body: body.update(format="octavo.manifest/9"),
    ],
)
def test_a_damaged_manifest_is_bad_input_and_no_crash(manifest, change):
    with pytest.raises(BadInput, match=r"damaged|this Octavo reads"):
        Manifest.from_json(edited(manifest, change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 100_000])
def test_text_that_is_no_manifest_is_bad_input(text):
    with pytest.raises(BadInput, match="manifest is damaged"):
        Manifest.from_json(text)
