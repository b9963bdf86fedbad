"""Images as input: the classes in their order, the arithmetic as written, damage by name, and never all in memory."""

import tracemalloc
import zipfile

import numpy as np
import pytest

pytest.importorskip("PIL")

from octavo.errors import BadInput
from octavo.verify.data import read_data
from tests.verify.datasets import how, noise, picture, unpacked, zipped

RED, BLUE = (255, 0, 0), (0, 0, 255)
NCHW, NHWC = {"pixels": (1, 3, 8, 6)}, {"pixels": (1, 8, 6, 3)}


def test_class_folders_are_numbered_by_name_wherever_they_lie(tmp_path):
    how(tmp_path)
    files = {"set/dog/b.png": picture(RED), "set/cat/a.png": picture(BLUE), "set/dog/a.PNG": picture(RED)}
    for path in (zipped(tmp_path / "a.zip", files), unpacked(tmp_path / "set", files)):
        data = read_data(path, NHWC)
        assert data.labels.tolist() == [0, 1, 1]
        assert data.inputs["pixels"][:, 0, 0].tolist() == [[0, 0, 255], [255, 0, 0], [255, 0, 0]]
        assert data.notes == ("2 classes, sorted by name: 0 cat, 1 dog.",)


def test_classes_override_the_order_and_whole_numbers_are_the_numbers(tmp_path):
    path = zipped(tmp_path / "a.zip", {f"{name}/a.png": picture() for name in ("cat", "dog")})
    how(tmp_path, 'classes = ["dog", "bird", "cat"]')
    assert read_data(path).labels.tolist() == [2, 0]
    how(tmp_path, 'classes = ["dog", "bird"]')
    with pytest.raises(BadInput, match="folder 'cat' is none of `classes`"):
        read_data(path)
    how(tmp_path)
    numbered = zipped(tmp_path / "b.zip", {f"{n}/a.png": picture() for n in ("10", "2", "0")})
    assert sorted(read_data(numbered).labels.tolist()) == [0, 2, 10]


def test_what_file_managers_leave_is_no_data(tmp_path):
    how(tmp_path)
    files = {
        "__MACOSX/cat/._a.png": b"junk", "cat/.DS_Store": b"junk", "cat/a.png": picture(), "cat/._a.png": b"junk",
        "dog/a.png": picture(), "dog/notes.md": "text",
    }  # fmt: skip
    data = read_data(zipped(tmp_path / "a.zip", files))
    assert len(data) == 2
    assert data.notes[0] == "1 files of other kinds in a.zip were left out."


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("file,label\nb.png,7\na.png,3\n", [7, 3]),
        ("b.png,7\na.png,3\n", [7, 3]),
        ("7,b.png\n3,a.png\n", [7, 3]),
        ("\ufefffile;label;name\nb.png;1;x\na.png;0;y\n", [1, 0]),
        ("id,path,other,class\n9,b.png,4,5\n9,a.png,4,6\n", [5, 6]),
        ("file,person,area\r\nb.png,1,0.2\r\na.png,0,0.1\r\n", [1, 0]),
        ("file,label\nb.png,tench\na.png,owl\n", [1, 0]),
        ('file,label\n"b.png","owl, great"\na.png,"a, ant"\n', [1, 0]),
    ],
)
def test_a_table_labels_the_files_in_its_order(tmp_path, table, labels):
    how(tmp_path)
    path = zipped(tmp_path / "a.zip", {"in/labels.csv": table, "in/a.png": picture(RED), "in/b.png": picture(BLUE)})
    data = read_data(path, NHWC)
    assert data.labels.tolist() == labels
    assert data.inputs["pixels"][0, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("table", "toml", "says"),
    [
        ("file,label\nc.png,1\n", "", r"row 2 lists 'c.png', which is not there. Nearest: "),
        ("file,label\na.png,1\na.png,2\n", "", "row 3 labels 'a.png' a second time"),
        ("file,label\na.png\n", "", "row 2 has 1 columns"),
        ("file,label\n", "", "no rows"),
        ("file\na.png\n", "", "expected two columns"),
        (
            "file,label\na.png,cta\n",
            'classes = ["cat", "dog"]',
            "label 'cta' of a.png is none of `classes`. Nearest: cat",
        ),
        ("file,label\na.png,5\n", 'classes = ["cat", "dog"]', "label 5 of a.png: `classes` has 2 names"),
        (b"\xff\xfe\x00", "", "no table"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, table, toml, says):
    how(tmp_path, toml)
    path = zipped(tmp_path / "a.zip", {"labels.csv": table, "a.png": picture(), "b.png": picture()})
    with pytest.raises(BadInput, match=says):
        read_data(path)


def test_unlisted_files_and_files_without_classes_are_said(tmp_path):
    how(tmp_path)
    path = zipped(tmp_path / "a.zip", {"labels.csv": "a.png,1", "a.png": picture(), "b.png": picture()})
    assert "1 files that labels.csv does not list were left out." in read_data(path).notes
    bare = zipped(tmp_path / "b.zip", {"a.png": picture(), "b.png": picture()})
    assert read_data(bare).labels is None
    mixed = zipped(tmp_path / "c.zip", {"train/cat/a.png": picture(), "test/cat/a.png": picture()})
    with pytest.raises(BadInput, match="several places: 'test/…', 'train/…'"):
        read_data(mixed)


def test_the_arithmetic_is_the_one_written_down(tmp_path):
    """Resize of the shorter side, centre crop, scale, mean, std: against Pillow and float64 by hand."""
    import io

    from PIL import Image

    raw = noise(0, (40, 30))
    how(tmp_path, "resize_shorter = 20\ncenter_crop = [16, 12]\nscale = 0.1\nmean = [1, 2, 3]\nstd = [2, 4, 8]")
    path = zipped(tmp_path / "a.zip", {"a/a.png": raw})
    found = read_data(path, {"x": (1, 3, 16, 12)}).inputs["x"][0]
    image = Image.open(io.BytesIO(raw)).resize((20, 26), Image.Resampling.BILINEAR).crop((4, 5, 16, 21))
    wanted = (np.asarray(image, np.float64) * 0.1 - [1, 2, 3]) / [2, 4, 8]
    assert found.dtype == np.float32
    assert abs(found - wanted.transpose(2, 0, 1)).max() < 1e-5


def test_colours(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a/a.png": picture((200, 100, 0))})
    for color, wanted in (("rgb", [200, 100, 0]), ("bgr", [0, 100, 200]), ("gray", [118])):
        how(tmp_path, f'color = "{color}"\nlayout = "nhwc"')
        assert read_data(path).inputs["x"][0, 0, 0].tolist() == wanted
    how(tmp_path, 'color = "gray"\ndtype = "int8"\nmean = 128')
    found = read_data(path, {"x": (1, 8, 6)}).inputs["x"]
    assert (found.shape, found.dtype, found.max()) == ((1, 8, 6), np.int8, -10)


def test_the_models_layout_wins_where_only_it_fits_and_it_is_said(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a/a.png": noise(1)})
    how(tmp_path, 'layout = "nhwc"')
    turned, straight = read_data(path, NCHW), read_data(path, NHWC)
    assert np.array_equal(turned.inputs["pixels"].transpose(0, 2, 3, 1), straight.inputs["pixels"])
    assert "laid out nchw, as the model takes them [batch, 3, 8, 6]" in turned.notes[-1]
    assert "laid out" not in straight.notes[-1]
    how(tmp_path)
    assert read_data(path, NCHW).inputs["pixels"].shape == (1, 3, 8, 6)
    assert read_data(path, {"x": (-1, 3, -1, -1)}).inputs["x"].shape == (1, 3, 8, 6)
    with pytest.raises(
        BadInput, match=r"8×6 pixels of 3 channels; the model's input is \[batch, 3, 9, 6\].*center_crop"
    ):
        read_data(path, {"x": (1, 3, 9, 6)})
    square = zipped(tmp_path / "b.zip", {"a/a.png": noise(1, (3, 3))})
    with pytest.raises(BadInput, match="fits several"):
        read_data(square, {"x": (1, 3, 3, 3)})
    with pytest.raises(BadInput, match=r"2 inputs \(a, b\), and images feed one"):
        read_data(path, {"a": (1, 3), "b": (1, 3)})


def test_sizes_that_do_not_go_together_are_named(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a/a.png": picture(), "a/b.png": picture(size=(9, 6))})
    how(tmp_path)
    with pytest.raises(BadInput, match=r"a/a.png is 8×6 and a/b.png 9×6"):
        read_data(path)
    how(tmp_path, "center_crop = [9, 6]")
    with pytest.raises(BadInput, match=r"a/a.png has 8×6 pixels .* cuts out 9×6"):
        read_data(path)


def test_damage_is_named(tmp_path):
    how(tmp_path)
    for name, raw, says in (
        ("a/empty.png", b"", "a/empty.png is no image"),
        ("a/text.jpg", b"hello", "a/text.jpg is no image"),
        ("a/cut.jpg", noise(0, (64, 64), "JPEG")[:1500], "a/cut.jpg is damaged"),
        ("a/cut.png", noise(0, (64, 64))[:1500], "a/cut.png is damaged"),
    ):
        with pytest.raises(BadInput, match=says):
            _ = read_data(unpacked(tmp_path / name.replace("/", "-"), {name: raw})).inputs
    with pytest.raises(BadInput, match=r"cannot be read as \.zip"):
        read_data(unpacked(tmp_path, {"half.zip": b"PK\x03\x04 no zip"}) / "half.zip")
    whole = zipped(tmp_path / "flip.zip", {"a/a.png": noise(0, (64, 64))}).read_bytes()
    (tmp_path / "flip.zip").write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    with pytest.raises(BadInput, match=r"a/a.png is damaged \(Bad CRC"):
        read_data(tmp_path / "flip.zip")


def test_a_hostile_zip_is_refused(tmp_path):
    how(tmp_path)
    for name in ("../a.png", "/a.png", "a/../../b.png", "..\\a.png", "C:/a.png"):
        with pytest.raises(BadInput, match="a path outside of itself"):
            read_data(zipped(tmp_path / "a.zip", {name: picture()}))
    bomb = zipped(tmp_path / "b.zip", {"a/a.png": b"\0" * (1 << 24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(BadInput, match=r"a/a.png unpacks from [\d,]+ to 16,777,216 bytes"):
        read_data(bomb)
    large = zipped(tmp_path / "c.zip", {"a/a.png": picture(0, (9000, 9000))})
    with pytest.raises(BadInput, match="9000×9000 pixels; at most"):
        read_data(large)
    png = bytearray(picture())
    png[16:24] = (60000).to_bytes(4, "big") * 2  # the header's word alone
    with pytest.raises(BadInput, match=r"a/a.png (is too large|is no image)"):
        read_data(zipped(tmp_path / "e.zip", {"a/a.png": bytes(png)}))
    table = zipped(tmp_path / "d.zip", {"labels.csv": "../../etc/passwd,1\n", "a.png": picture()})
    with pytest.raises(BadInput, match=r"no rows|not there"):
        read_data(table)


def test_data_of_other_kinds(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_data(tmp_path / "absent.zip")
    with pytest.raises(BadInput, match=r"data is \.npz, \.zip, \.txt, or a folder"):
        read_data(unpacked(tmp_path, {"a.csv": "1"}) / "a.csv")
    with pytest.raises(BadInput, match=r"no preprocess\.toml beside it"):
        read_data(zipped(tmp_path / "a.zip", {"a/a.png": picture()}))
    how(tmp_path)
    with pytest.raises(BadInput, match=r"no file with one of \.jpg"):
        read_data(zipped(tmp_path / "a.zip", {"a/a.txt": "text"}))


def test_a_draw_is_seeded_and_taking_decodes_nothing(tmp_path):
    how(tmp_path)
    data = read_data(zipped(tmp_path / "a.zip", {f"{i % 3}/{i}.png": noise(i) for i in range(20)}), NCHW)
    drawn = read_data(tmp_path / "a.zip", NCHW, limit=5, seed=1)
    assert len(drawn) == 5
    assert np.array_equal(drawn.inputs["pixels"], read_data(tmp_path / "a.zip", NCHW, limit=5, seed=1).inputs["pixels"])
    part = data.take(np.array([3, 1]))
    assert np.array_equal(part.inputs["pixels"], data.inputs["pixels"][[3, 1]])
    assert part.labels.tolist() == data.labels[[3, 1]].tolist()
    batches = list(data.batches(8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert np.array_equal(np.concatenate([batch.inputs["pixels"] for batch in batches]), data.inputs["pixels"])


def test_many_images_are_never_all_in_memory(tmp_path):
    """100 images of 512×512 are 315 MB as floats; what is kept between passes is bounded."""
    how(tmp_path, "scale = 0.0039")
    raw = picture(RED, (512, 512))
    data = read_data(zipped(tmp_path / "a.zip", {f"a/{i}.png": raw for i in range(100)}), {"x": (1, 3, 512, 512)})
    tracemalloc.start()
    total = sum(float(part.inputs["x"][0, 0, 0, 0]) for _ in range(2) for part in data.batches(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == pytest.approx(200 * 255 * 0.0039, rel=1e-5)
    assert peak < 100e6


@pytest.mark.parametrize(
    ("data", "shape", "count", "note"),
    [
        ("cifar10/train_png_200.zip", (1, 32, 32, 3), 200, "0 airplane, 1 automobile, 2 bird"),
        ("vww/coco128_96x96.zip", (1, 96, 96, 3), 128, "column 2 (person)"),
        ("imagenet/images_500.zip", (1, 3, 224, 224), 500, "column 2 (label)"),
    ],
)
def test_the_published_sets_are_read(shared, data, shape, count, note):
    found = read_data(shared / "data/vision" / data, {"x": shape})
    assert len(found) == count
    assert any(note in text for text in found.notes)
    assert next(found.batches(2)).inputs["x"].shape == (2, *shape[1:])


@pytest.mark.parametrize(
    ("model", "data", "right"),
    [
        ("resnet8_cifar10/pretrainedResnet.tflite", "cifar10/train_png_200.zip", 0.90),
        ("vww/vww_96_float.tflite", "vww/coco128_96x96.zip", 0.8594),
    ],
)
def test_published_accuracies_come_out_in_litert(shared, model, data, right):
    """The order of the classes and the scale of the pixels are the models' own."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(shared / "data/vision" / model))
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = read_data(shared / "data/vision" / data, {"x": tuple(taken["shape"])})
    hits = 0
    for part in found.batches(1):
        interpreter.set_tensor(taken["index"], part.inputs["x"])
        interpreter.invoke()
        hits += int(interpreter.get_tensor(given["index"]).argmax() == part.labels[0])
    assert hits / len(found) == pytest.approx(right, abs=1e-4)


def test_published_accuracy_comes_out_in_onnxruntime(shared):
    """SqueezeNet is right on 59.4 % of all 500; a hundred of them, for time, lie within four standard deviations."""
    import onnxruntime

    path = shared / "data/vision/squeezenet1.1/squeezenet1.1_fp32.onnx"
    session = onnxruntime.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    data = read_data(shared / "data/vision/imagenet/images_500.zip", {name: (1, 3, 224, 224)}, limit=100)
    hits = [int(session.run(None, part.inputs)[0].argmax() == part.labels[0]) for part in data.batches(1)]
    assert sum(hits) / len(hits) == pytest.approx(0.594, abs=0.18)
