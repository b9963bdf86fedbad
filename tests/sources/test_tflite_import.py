"""Whole .tflite files: the real models on their data, layouts, names, and what is refused with which words."""

from __future__ import annotations

import io
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ai_edge_litert.schema_py_generated")

from ai_edge_litert import schema_py_generated as schema  # noqa: E402

import octavo  # noqa: E402
from octavo.api.load import open_source  # noqa: E402
from octavo.errors import BadInput  # noqa: E402
from octavo.sources.tflite.names import short_names  # noqa: E402
from octavo.sources.tflite.open import import_tflite, open_tflite  # noqa: E402
from octavo.sources.torch import load_graph  # noqa: E402
from tests.sources.tflite_cases import Array, Net, Op, f, i, in_litert  # noqa: E402

RESNET = "data/vision/resnet8_cifar10/pretrainedResnet.tflite"
WAKE = "data/vision/vww/vww_96_float.tflite"
SPEECH = "data/audio/kws/kws_ref_model_float32.tflite"
CONV = {"padding": 0, "strideW": 1, "strideH": 1}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small nets spend most of many threads' time on waiting for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(module: Any, array: Array) -> Array:
    with torch.no_grad():
        (found,) = module(torch.from_numpy(array)).values()
    return found.numpy()


def same(path: Path, array: Array) -> None:
    np.testing.assert_allclose(run(import_tflite(path)[0], array), in_litert(path, array)[0], atol=1e-5)


def images(path: Path, count: int) -> tuple[Array, Array]:
    """Images of a zip as 0 to 255, evenly spread over it, and their classes: from labels.csv, else the folders."""
    image = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".png", ".jpg")))
        if "labels.csv" in archive.namelist():
            rows = [line.split(",") for line in archive.read("labels.csv").decode().splitlines()[1:]]
            classes = {row[0]: int(row[1]) for row in rows}
        else:
            folders = sorted({name.split("/")[0] for name in names})
            classes = {name: folders.index(name.split("/")[0]) for name in names}
        names = names[:: len(names) // count][:count]
        pixels = [np.asarray(image.open(io.BytesIO(archive.read(name))).convert("RGB"), np.float32) for name in names]
    return np.stack(pixels)[:, None], np.array([classes[name] for name in names])


def operators(module: Any, example: Any) -> Counter[str]:
    exported = torch.export.export(module, example)
    return Counter(str(node.target).split(".")[1] for node in exported.graph.nodes if node.op == "call_function")


def test_resnet8_is_litert(shared: Path) -> None:
    path = shared / RESNET
    module, example = import_tflite(path)
    pixels, classes = images(shared / "data/vision/cifar10/test_jpeg_5000.zip", 100)
    mine = np.concatenate([run(module, item) for item in pixels])
    theirs = np.concatenate([in_litert(path, item)[0] for item in pixels])
    assert abs(mine - theirs).max() <= 1e-5
    assert (mine.argmax(1) == theirs.argmax(1)).all()
    assert (mine.argmax(1) == classes).mean() >= 0.65
    assert operators(module, example) == Counter(
        conv2d=9, relu=7, add=3, pad=2, permute=1, avg_pool2d=1, reshape=1, linear=1, softmax=1
    )


def test_the_wake_words_are_litert(shared: Path) -> None:
    path = shared / WAKE
    module, example = import_tflite(path)
    pixels, classes = images(shared / "data/vision/vww/coco128_96x96.zip", 128)
    mine = np.concatenate([run(module, item / 255) for item in pixels])
    theirs = np.concatenate([in_litert(path, item / 255)[0] for item in pixels])
    assert abs(mine - theirs).max() <= 1e-5
    assert (mine.argmax(1) == classes).mean() == 0.859375  # the published float accuracy on them
    assert operators(module, example) == Counter(
        conv2d=27, relu=27, pad=5, permute=1, avg_pool2d=1, reshape=1, linear=1, softmax=1
    )


def decoded(path: Path) -> bytes:
    """The file with its int8 weights as the float32 numbers they stand for."""
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    for tensor in model.subgraphs[0].tensors:
        if tensor.type == schema.TensorType.INT8:
            codes = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int8)
            floats = codes.astype(np.float32) * np.float32(tensor.quantization.scale[0])
            model.buffers[tensor.buffer].data = floats.view(np.uint8)
            tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_the_keyword_spotter_with_its_int8_weights_decoded(shared: Path) -> None:
    """The published "float32" file keeps five weights as int8 codes: they are decoded, and that is said."""
    path = shared / SPEECH
    module, example = import_tflite(path)
    with np.load(shared / "data/audio/kws/kws_500.npz") as data:
        sounds, classes = data["x"][:, None], data["y"]
    mine = np.concatenate([run(module, item) for item in sounds])
    assert (mine.argmax(1) == classes).mean() == pytest.approx(0.906, abs=0.0021)
    floats = decoded(path)
    for index in range(0, 500, 25):
        assert abs(mine[index] - in_litert(floats, sounds[index])[0]).max() <= 1e-5
    assert operators(module, example)["permute"] == 1
    (note,) = open_tflite(path).notes
    assert "5 weights were stored as int8 codes" in note
    assert "'functional_1/conv2d/Conv2D'" in note


def test_roles_and_names_for_compression(shared: Path) -> None:
    source = open_source(shared / SPEECH)
    roles = Counter(spec.role for spec in source.tensors.values())
    assert (roles["conv"], roles["matmul"]) == (9, 1)
    assert source.tensors["functional_1/depthwise_conv2d/depthwise"].shape == (64, 1, 3, 3)
    assert source.tensors["functional_1/depthwise_conv2d/BiasAdd"].shape == (64,)
    assert all(";" not in name for name in source.tensors)
    program = load_graph(source.program, source.arrays)  # type: ignore[attr-defined]
    sound = f(1, 49, 10, 1)
    np.testing.assert_array_equal(run(program, sound), run(import_tflite(shared / SPEECH)[0], sound))


def test_a_short_name_is_taken_only_where_it_is_unique() -> None:
    fused = "a/bn/Fused;a/conv/BiasAdd/ReadVariableOp/resource;a/conv/BiasAdd;a/other/Conv2D;a/conv/Conv2D"
    assert short_names([(fused, 4), (fused, 1), ("plain", 1)]) == ["a/conv/Conv2D", "a/conv/BiasAdd", "plain"]
    assert short_names([(fused, 4), ("a/conv/Conv2D", 4)]) == [fused, "a/conv/Conv2D"]


def test_a_tflite_goes_to_onnxruntime(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    octavo.compress(shared / SPEECH, scheme="w8", out=tmp_path / "folded")
    record = octavo.export(tmp_path / "folded", runtime="onnxruntime", out=tmp_path / "m.onnx")
    assert record.weights == "exact"


def conv_net(*after: Op, outputs: list[str], **stored: Array) -> Net:
    ops = [Op("CONV_2D", ["x", "w", "b"], ["h"], CONV), *after]
    return Net(ops, {"x": f(1, 4, 3, 2)}, {"w": f(5, 3, 3, 2), "b": f(5), **stored}, outputs)


def count_permutes(path: Path) -> int:
    return operators(*import_tflite(path))["permute"]


def test_a_flattened_map_turns_the_weight_not_the_map(tmp_path: Path) -> None:
    flatten = Op("RESHAPE", ["h", "shape"], ["flat"], {})
    dense = Op("FULLY_CONNECTED", ["flat", "dense", ""], ["y"], {})
    net = conv_net(flatten, dense, outputs=["y"], shape=i(1, -1), dense=f(3, 60))
    path = net.save(tmp_path)
    np.testing.assert_allclose(
        run(import_tflite(path)[0], net.given["x"]), in_litert(path, net.given["x"])[0], atol=1e-5
    )
    assert count_permutes(path) == 1
    net.outputs = ["y", "flat"]  # whoever else reads it gets the file's order
    found = import_tflite(net.save(tmp_path))[0](torch.from_numpy(net.given["x"]))
    np.testing.assert_allclose(found["flat"].numpy(), in_litert(path.read_bytes(), net.given["x"])[1], atol=1e-5)


def test_a_map_goes_into_a_fully_connected_layer_as_it_is(tmp_path: Path) -> None:
    net = conv_net(Op("FULLY_CONNECTED", ["h", "dense", ""], ["y"], {}), outputs=["y"], dense=f(3, 60))
    path = net.save(tmp_path)
    np.testing.assert_allclose(
        run(import_tflite(path)[0], net.given["x"]), in_litert(path, net.given["x"])[0], atol=1e-5
    )
    assert count_permutes(path) == 1


def test_even_padding_becomes_the_convolutions_own(tmp_path: Path) -> None:
    pads = np.array([[0, 0], [1, 1], [2, 2], [0, 0]], np.int32)
    ops = [Op("PAD", ["x", "pads"], ["p"], {}), Op("CONV_2D", ["p", "w", "b"], ["y"], {**CONV, "padding": 1})]
    net = Net(ops, {"x": f(1, 6, 5, 2)}, {"pads": pads, "w": f(4, 3, 3, 2), "b": f(4)}, ["y"])
    path = net.save(tmp_path)
    module, example = import_tflite(path)
    np.testing.assert_allclose(run(module, net.given["x"]), in_litert(path, net.given["x"])[0], atol=1e-5)
    assert operators(module, example) == Counter(permute=2, conv2d=1)


def test_what_was_preprocessed_is_turned_once(tmp_path: Path) -> None:
    ops = [Op("MUL", ["x", "scale"], ["m"], {}), Op("CONV_2D", ["m", "w", "b"], ["h"], CONV)]
    ops += [Op("ADD", ["h", "m"], ["s"], {}), Op("MEAN", ["s", "axes"], ["y"], {"keepDims": False}, "Reducer")]
    stored = {"scale": f(2), "w": f(2, 3, 3, 2), "b": f(2), "axes": i(1, 2)}
    net = Net(ops, {"x": f(1, 6, 5, 2)}, stored, ["y"])
    path = net.save(tmp_path)
    np.testing.assert_allclose(
        run(import_tflite(path)[0], net.given["x"]), in_litert(path, net.given["x"])[0], atol=1e-5
    )
    assert count_permutes(path) == 1


def test_a_flatten_that_computes_its_shape(tmp_path: Path) -> None:
    """SHAPE, STRIDED_SLICE, PACK, RESHAPE: as Keras writes it for a free batch."""
    ops = [
        Op("SHAPE", ["h"], ["s"], {"outType": 2}),
        Op("STRIDED_SLICE", ["s", "zero", "one", "one"], ["n"], {"shrinkAxisMask": 1}),
        Op("PACK", ["n", "rest"], ["shape"], {"valuesCount": 2}),
        Op("RESHAPE", ["h", "shape"], ["y"], {}),
    ]
    net = conv_net(*ops, outputs=["y"], zero=i(0), one=i(1), rest=np.array(60, np.int32))
    net.kinds, net.free_batch = {"s": 2, "n": 2, "shape": 2}, True
    path = net.save(tmp_path)
    np.testing.assert_allclose(
        run(import_tflite(path)[0], net.given["x"]), in_litert(path, net.given["x"])[0], atol=1e-5
    )


def test_half_precision_weights_are_widened_exactly(tmp_path: Path) -> None:
    weight = f(4, 6).astype(np.float16)
    ops = [Op("DEQUANTIZE", ["w"], ["wide"], {}), Op("FULLY_CONNECTED", ["x", "wide", ""], ["y"], {})]
    path = Net(ops, {"x": f(1, 6)}, {"w": weight}, ["y"]).save(tmp_path)
    source = open_tflite(path)
    np.testing.assert_array_equal(source.arrays["w"], weight.astype(np.float32))
    assert source.tensors["w"].role == "matmul"


def test_codes_per_channel_are_decoded_along_their_axis(tmp_path: Path) -> None:
    codes = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    net = Net([Op("FULLY_CONNECTED", ["x", "w", ""], ["y"], {})], {"x": f(1, 6)}, {"w": codes}, ["y"])
    net.scales = {"w": ([0.5, 0.25, 2.0, 1.0], 0)}
    path = tmp_path / "m.tflite"
    path.write_bytes(net.bytes({"y": [1, 4]}))
    source = open_tflite(path)
    np.testing.assert_array_equal(source.arrays["w"], codes * np.array([[0.5], [0.25], [2], [1]], np.float32))
    assert "1 weights were stored as int8 codes" in source.notes[0]


def test_a_signature_names_inputs_and_outputs(tmp_path: Path) -> None:
    net = conv_net(outputs=["h"])
    net.signature = {"x": "image", "h": "features"}
    module, example = import_tflite(net.save(tmp_path))
    assert list(module(*example)) == ["features"]
    exported = torch.export.export(module, example)
    assert [spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"] == [
        "image"
    ]


def test_a_finished_int8_file_is_refused(shared: Path) -> None:
    with pytest.raises(BadInput, match=r"quantised already: 14 of its values, first 'input_1', and 10 of its weights"):
        open_source(shared / "data/audio/kws/kws_ref_model.tflite")


def free_size(net: Net) -> bytes:
    """The net's file with a free height."""
    import flatbuffers

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(net.bytes(), 0))
    model.subgraphs[0].tensors[0].shapeSignature = [-1, -1, 3, 2]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_what_is_not_imported_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"

    def refused(content: bytes, words: str) -> None:
        path.write_bytes(content)
        with pytest.raises(BadInput, match=words):
            import_tflite(path)

    unknown = Op("RESIZE_CUBIC", ["h"], ["y"], {}, version=3)
    refused(
        conv_net(unknown, outputs=["y"]).bytes({"y": [1]}),
        r"Operator 1 \(RESIZE_CUBIC, version 3\).*not imported.*RESIZE_",
    )
    refused(
        conv_net(outputs=["h"]).bytes({"h": [1, 4, 3, 6]}), r"result is \[1, 4, 3, 5\], the file says \[1, 4, 3, 6\]"
    )
    refused(free_size(conv_net(outputs=["h"])), r"'x' \[-1, -1, 3, 2\] has free sizes")
    refused(conv_net(outputs=["b"]).bytes({}), "'b' depends on no input")
    tanh = Net([Op("ADD", ["x", "x"], ["y"], {"fusedActivationFunction": 4})], {"x": f(2)}, {}, ["y"])
    refused(tanh.bytes({}), r"\(ADD, version 1\): its fused activation is number 4")
    refused(b"not a model", "not a .tflite, or damaged")


def test_damage_is_bad_input_or_harmless(shared: Path, tmp_path: Path) -> None:
    """Cut short and bit-flipped, in the tables rather than in the weights: nothing but BadInput comes of it."""
    small = conv_net(Op("SOFTMAX", ["h"], ["y"], {"beta": 1.0}), outputs=["y"]).bytes()
    whole = (shared / SPEECH).read_bytes()
    path, draw = tmp_path / "d.tflite", random.Random(0)
    for number in range(500):
        original = whole if number % 5 == 0 else small
        cut = bytearray(original[: draw.randrange(len(original))] if number % 3 == 0 else original)
        for _ in range(draw.randrange(1, 6)):
            if cut:
                cut[draw.randrange(len(cut))] ^= 1 << draw.randrange(8)
        path.write_bytes(cut)
        try:
            import_tflite(path)
        except BadInput:
            continue
