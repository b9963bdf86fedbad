"""Images as a model's input: a folder or zip of class folders, or of images with a labels.csv."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, Missing
from octavo.verify.files import Files
from octavo.verify.labels import Listing
from octavo.verify.lazy import Keep, Lazy, chosen
from octavo.verify.preprocess import MOST_PIXELS, Preprocess
from octavo.verify.shapes import fits, only_input, shown

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
EXAMPLE = 'color = "rgb", resize_shorter = 256, center_crop = [224, 224], scale = 0.00392157, layout = "nchw".'
DEEP = ("I", "F", "I;16", "I;16B", "I;16L")  # Pillow's modes of more than 8 bits per channel


def read_images(
    files: Files,
    listing: Listing,
    inputs: Mapping[str, tuple[int, ...]] | None,
    preprocess: Preprocess,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Lazy:
    """Images for a model's only input, decoded when they are asked for; every header is looked at now.

    Raises BadInput for a damaged or oversized image (by name), and for pixels that do not fit the input's shape.
    Raises Missing without Pillow.
    """
    name, shape = only_input(inputs, "images")
    listing = listing.pick(chosen(len(listing.names), limit, seed))
    sizes = [_size(files, item) for item in listing.names]
    layout, notes = _layout(files.path, preprocess, shape, _seen(preprocess, sizes[0]))
    _same_size(files.path, preprocess, sizes, listing.names)
    pixels = Keep(lambda number: _pixels(files, listing.names[number], preprocess))

    def decode(number: int) -> NDArray[Any]:
        return normalise(pixels(number), preprocess, layout)

    return Lazy(
        name, decode, lambda number: files.read(listing.names[number]), np.arange(len(listing.names)), listing.labels,
        (*listing.notes, *notes),
    )  # fmt: skip


def normalise(pixels: NDArray[np.uint8], preprocess: Preprocess, layout: str) -> NDArray[Any]:
    """uint8 [height, width, channels] → (pixel · scale − mean) / std, in `layout` and the type asked for."""
    scale = np.float32(preprocess.scale) / np.asarray(preprocess.std, np.float32)
    shift = np.asarray(preprocess.mean, np.float32) / np.asarray(preprocess.std, np.float32)
    values = pixels.astype(np.float32)
    if preprocess.scale != 1.0 or preprocess.std != (1.0,) * len(preprocess.std):
        values *= scale
    if shift.any():
        values -= shift
    if preprocess.dtype in ("uint8", "int8"):
        bounds = np.iinfo(preprocess.dtype)
        values = np.clip(np.rint(values), bounds.min, bounds.max)
    values = values.astype(preprocess.dtype, copy=False)
    if layout == "nchw":
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
    return values[..., 0] if layout == "nhw" else values


def _open(files: Files, name: str) -> Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise Missing(
            f"Images are decoded by Pillow, which is not installed ({error}).", "Install it: pip install pillow"
        ) from error
    where = f"{files.path}: {name}"
    raw = files.read(name)
    try:
        image = Image.open(io.BytesIO(raw))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise BadInput(f"{where} is no image that can be read ({error}).", "Take it out, or make it again.") from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"{where} is too large: {error}") from error
    if image.width * image.height > MOST_PIXELS:
        raise BadInput(f"{where} has {image.width}×{image.height} pixels; at most {MOST_PIXELS:,} are read.")
    if image.mode in DEEP:
        raise BadInput(f"{where} has more than 8 bits per channel ({image.mode}).", "Convert it, or give an .npz.")
    return image


def _size(files: Files, name: str) -> tuple[int, int]:
    """(height, width), from the header alone."""
    image = _open(files, name)
    return image.height, image.width


def _pixels(files: Files, name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
    """uint8 [height, width, channels], resized and cropped."""
    from PIL import Image

    image = _open(files, name)
    try:
        image = image.convert("L" if preprocess.color == "gray" else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadInput(f"{files.path}: {name} is damaged ({error}).", "Take it out, or make it again.") from error
    target = _resized(preprocess, (image.height, image.width))
    if target != (image.height, image.width):
        image = image.resize((target[1], target[0]), Image.Resampling[preprocess.interpolation.upper()])
    if preprocess.center_crop is not None:
        height, width = preprocess.center_crop
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(pixels[..., ::-1] if preprocess.color == "bgr" else pixels)


def _resized(preprocess: Preprocess, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after resizing, before cropping."""
    if preprocess.resize is not None:
        return preprocess.resize
    if preprocess.resize_shorter is None:
        return size
    height, width = size
    short = preprocess.resize_shorter
    return (short, int(width * short / height)) if height <= width else (int(height * short / width), short)


def _seen(preprocess: Preprocess, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) as the model sees it."""
    return preprocess.center_crop or _resized(preprocess, size)


def _same_size(path: Path, preprocess: Preprocess, sizes: list[tuple[int, int]], names: tuple[str, ...]) -> None:
    """Every image must have one size in the end, and none may be smaller than what is cut out of it."""
    first = _seen(preprocess, sizes[0])
    for size, name in zip(sizes, names, strict=True):
        resized, (height, width) = _resized(preprocess, size), _seen(preprocess, size)
        if height > resized[0] or width > resized[1]:
            raise BadInput(
                f"{path}: {name} has {resized[0]}×{resized[1]} pixels (height × width); center_crop cuts out "
                f"{height}×{width}.",
                f"Give resize or resize_shorter in {preprocess.origin}.",
            )
        if resized[0] * resized[1] > MOST_PIXELS:
            raise BadInput(f"{path}: {name} would be resized to {resized[0]}×{resized[1]} pixels.")
        if (height, width) != first:
            raise BadInput(
                f"{path}: {names[0]} is {first[0]}×{first[1]} and {name} {height}×{width} (height × width).",
                f"Bring them to one size in {preprocess.origin}: resize, or resize_shorter and center_crop.",
            )


def _layout(
    path: Path, preprocess: Preprocess, shape: tuple[int, ...] | None, seen: tuple[int, int]
) -> tuple[str, tuple[str, ...]]:
    """The layout that fits the model's input: the declared one if it does, else the other, with a note."""
    channels = preprocess.channels
    forms = {"nchw": (channels, *seen), "nhwc": (*seen, channels)} | ({"nhw": seen} if channels == 1 else {})
    declared = preprocess.layout
    if shape is None:
        return declared or "nchw", ()
    fitting = [form for form, size in forms.items() if fits((1, *size), shape)]
    if not fitting:
        raise BadInput(
            f"{path}: images become {seen[0]}×{seen[1]} pixels of {channels} channels; "
            f"the model's input is {shown(shape)}.",
            f"Set resize, center_crop or color in {preprocess.origin} so that they fit.",
        )
    if declared in fitting:
        return str(declared), ()
    if declared is None and len(fitting) > 1:
        raise BadInput(f"{preprocess.origin}: no layout, and the input {shown(shape)} fits several.", 'layout = "nchw"')
    note = f"Images are laid out {fitting[0]}, as the model takes them {shown(shape)}"
    return fitting[0], (f"{note}; {preprocess.origin} says {declared}.",) if declared else ()
