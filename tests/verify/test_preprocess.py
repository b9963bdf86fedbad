"""preprocess.toml: what is written is what is done; a slip of the pen is named."""

import pytest

from octavo.errors import BadInput
from octavo.verify.preprocess import find_preprocess, read_preprocess, require_preprocess


def read(tmp_path, text):
    path = tmp_path / "preprocess.toml"
    path.write_text(text, "utf-8")
    return read_preprocess(path)


def test_the_published_recipe_of_imagenet_is_read(shared):
    found = read_preprocess(shared / "data/vision/imagenet/preprocess.toml")
    assert (found.resize_shorter, found.center_crop, found.layout) == (256, (224, 224), "nchw")
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.interpolation == "bilinear"


def test_defaults_change_nothing(tmp_path):
    found = read(tmp_path, "")
    assert (found.color, found.scale, found.mean, found.std, found.layout) == ("rgb", 1.0, (0.0,), (1.0,), None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resise = [8, 8]", r"preprocess.toml: unknown key 'resise'. Nearest: resize"),
        ("[streem]\nframe = 3", "unknown key 'streem'. Nearest: stream"),
        ("[stream]\nframes = 3", "unknown key 'stream.frames'. Nearest: frame"),
        ("[stream]\ncontext = 3", "stream.context is given without stream.frame"),
        ('color = "rbg"', "color 'rbg' is not known. Nearest: .*rgb"),
        ('layout = "nhcw"', "layout 'nhcw' is not known"),
        ('dtype = "float64"', "dtype 'float64' is not known"),
        ("scale = '1/255'", r"scale = '1/255': expected a finite number"),
        ("scale = nan", "expected a finite number"),
        ("mean = [0.5, 0.5]", "mean has 2 numbers; give 3, one per channel of 'rgb'"),
        ('color = "gray"\nmean = [0.1, 0.2, 0.3]', "mean has 3 numbers; give 1"),
        ("std = [1.0, 0.0, 1.0]", "divides by zero"),
        ("center_crop = [224]", r"center_crop = \[224\]: expected \[height, width\]"),
        ("center_crop = [0, 4]", "whole number from 1"),
        ("resize = [60000, 60000]", "at most"),
        ("resize = [4, 4]\nresize_shorter = 4", "both given"),
        ('classes = ["cat", "dog", "cat"]', "names 'cat' twice"),
        ("classes = [1, 2]", "list of names"),
        ("scale = ", "no TOML"),
    ],
)
def test_a_slip_is_named(tmp_path, text, says):
    with pytest.raises(BadInput, match=says):
        read(tmp_path, text)


def test_found_in_the_folder_or_beside_the_data_unless_given(tmp_path):
    data = tmp_path / "images"
    data.mkdir()
    with pytest.raises(BadInput, match=r"no preprocess.toml beside it .* --preprocess F; for example: scale = 2"):
        require_preprocess(data, None, "scale = 2")
    (tmp_path / "preprocess.toml").write_text("scale = 2")
    assert find_preprocess(data, None).scale == 2
    assert find_preprocess(tmp_path / "images.zip", None).scale == 2
    (data / "preprocess.toml").write_text("scale = 3")
    assert find_preprocess(data, None).scale == 3
    (tmp_path / "other.toml").write_text("scale = 4")
    assert find_preprocess(data, tmp_path / "other.toml").scale == 4
    with pytest.raises(BadInput, match="No such file"):
        find_preprocess(data, tmp_path / "absent.toml")
