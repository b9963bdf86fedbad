"""The weights of real files, tampered with on disk and read by the vendor's reader: caught, and the tensor named."""

import numpy as np
import pytest
from models import model_of, random_codes

from octavo.core.architecture import decoder_spec
from octavo.core.manifest import EditedManifest
from octavo.runtimes.base import no_progress
from octavo.runtimes.llamacpp import LlamaCpp
from octavo.verify.weights import check_weights, edited_manifest

pytest.importorskip("gguf")

CONFIG = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA = CONFIG | {
    "model_type": "gemma2",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 32,
    "tie_word_embeddings": True,
}
Q, K = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk")


def made(config):
    random = np.random.default_rng(0)
    specs = decoder_spec(config).tensors()
    values = {
        name: random.normal(0, 1, spec.shape).astype(np.float32)
        if spec.role == "other"
        else random_codes(spec.shape, "w4g32", seed)
        for seed, (name, spec) in enumerate(specs.items())
    }
    return model_of(config, values, schemes=dict.fromkeys(values, "w4g32"))


@pytest.fixture
def artifact(tmp_path):
    def write(config=CONFIG):
        model, path = made(config), tmp_path / "m.gguf"
        LlamaCpp().lower(model, LlamaCpp().carry(model), path, lambda: None, no_progress)
        return model, path

    return write


def checked(path, model=None):
    """What `verify` does: the manifest that the file carries, the vendor's reader."""
    back = LlamaCpp().read_back(path)
    try:
        return check_weights(back, back.manifest, model, carry=LlamaCpp().carry)
    except EditedManifest as error:
        return edited_manifest(error)
    finally:
        back.close()


def span(path, name):
    """Where a tensor's bytes lie in the file, from gguf-py's reader."""
    from gguf import GGUFReader

    back = LlamaCpp().read_back(path)
    at = next(carried.at[0] for carried in back.manifest.tensors if carried.name == name)
    tensor = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == at)
    return int(tensor.data_offset), int(tensor.n_bytes)


def edit(path, *changes):
    data = bytearray(path.read_bytes())
    for at, new in changes:
        data[at : at + len(new)] = new
    path.write_bytes(data)


def names(report):
    return [item["name"] for item in report.verdict["wrong"]]


def test_an_untouched_file_is_exact_by_either_record(artifact):
    model, path = artifact()
    assert checked(path).verdict == checked(path, model).verdict == "exact"
    assert checked(path).digest == model.digest


@pytest.mark.parametrize("offset", [0, 1, 2, -1], ids=["scale, low", "scale, high", "first codes", "last codes"])
@pytest.mark.parametrize("with_model", [False, True])
def test_a_changed_byte_names_the_tensor(artifact, offset, with_model):
    model, path = artifact()
    start, size = span(path, Q)
    at = start + offset % size
    edit(path, (at, bytes([path.read_bytes()[at] ^ 1])))
    assert names(checked(path, model if with_model else None)) == [Q]


def test_swapped_tensors_name_each_other(artifact):
    _, path = artifact()
    (q, size), (k, _) = span(path, Q), span(path, K)
    data = path.read_bytes()
    edit(path, (q, data[k : k + size]), (k, data[q : q + size]))
    reasons = {item["name"]: item["reason"] for item in checked(path).verdict["wrong"]}
    assert set(reasons) == {Q, K}
    assert K in reasons[Q]
    assert Q in reasons[K]


def test_an_edited_manifest_names_the_tensor(artifact):
    model, path = artifact()
    data, digest = path.read_bytes(), model.record(Q).digest.encode()
    other = model.record(K).digest.encode()
    first = data.index(digest)
    edit(path, (first, other))
    assert names(checked(path)) == [Q]


def test_gemmas_rewritten_norms_are_exact_and_guarded(artifact):
    model, path = artifact(GEMMA)
    assert checked(path).verdict == checked(path, model).verdict == "exact"
    start, _ = span(path, "model.norm.weight")
    edit(path, (start, bytes([path.read_bytes()[start] ^ 1])))
    assert names(checked(path)) == names(checked(path, model)) == ["model.norm.weight"]
