"""Reading a GGUF back with gguf-py's own reader: raw blocks into codes and scales, and the moves undone.

Every row block is decoded twice: by our codec into codes and scales, and by gguf-py's `dequantize` into values. The two
must agree bit for bit (scale · code), which makes what is returned the vendor's reading of the file, not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.grid import pack
from octavo.core.manifest import KEY, Carried, Manifest
from octavo.core.model import TensorValue
from octavo.core.scheme import SCHEMES
from octavo.core.tensor import FloatDigest, QuantizedTensor, TensorDigest
from octavo.errors import BadInput, Refused
from octavo.runtimes.llama.blocks import BLOCKS, decode_floats
from octavo.runtimes.llama.names import heads_interleaved, interleaved_rows
from octavo.runtimes.llama.program import check_program
from octavo.runtimes.llama.write import row_blocks


class GgufReadBack:
    """A GGUF opened with gguf-py's reader (memory-mapped). Raises BadInput when it is damaged or no GGUF."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = _bounded_reader()(path)
            self.fields = dict(reader.fields)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, RecursionError) as error:
            size = path.stat().st_size if path.is_file() else 0
            raise BadInput(
                f"{path}: gguf-py cannot read it ({type(error).__name__}: {error}); it has {size} bytes.",
                "The file is cut short, damaged or no GGUF; export it again.",
            ) from error

    @property
    def manifest(self) -> Manifest | None:
        """The manifest in the file, None without one.

        Raises EditedManifest (a BadInput) when it contradicts itself, or the file's metadata or tensors are others.
        """
        text = self.value(KEY)
        if text is None:
            return None
        manifest = Manifest.from_json(str(text))
        check_program(manifest, self.fields, self._tensors)
        return manifest

    def value(self, key: str) -> Any:
        """A metadata value by its key, None when the file has no such key. Raises BadInput when it is no text."""
        if key not in self.fields:
            return None
        try:
            return self.fields[key].contents()
        except ValueError as error:
            raise BadInput(f"{self.path}: its metadata '{key}' is damaged ({error}).", "Export it again.") from error

    def listing(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Every tensor of the file: (GGUF name, shape, type)."""
        return [
            (name, tuple(int(n) for n in reversed(t.shape.tolist())), t.tensor_type.name)
            for name, t in self._tensors.items()
        ]

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """All tensors in the file by their GGUF names."""
        return tuple(self._tensors)

    def tensor(self, carried: Carried) -> TensorValue:
        """Decode one tensor and undo the moves: the compressed model's own orientation, grid and values.

        Raises Refused when what lies there cannot be the tensor described.
        """
        return _joined(self._rows(carried, undo=True), carried)

    def digest(self, carried: Carried) -> str:
        """The digest of `tensor(carried)`, without holding more than a row block. Raises Refused like `tensor`."""
        grid = SCHEMES.get(carried.scheme)
        if grid is None or grid.range is None:
            floats = FloatDigest(carried.shape)
            for part in self._rows(carried, undo=True):
                floats.update(part)  # type: ignore[arg-type]
            return floats.hexdigest()
        digest = TensorDigest(carried.shape, grid.block(carried.shape), grid.range)
        for at, part in enumerate(self._rows(carried, undo=True)):
            assert isinstance(part, QuantizedTensor)
            digest.codes(pack(part.codes, grid.range.bits))
            if at == 0 or grid.granularity != "tensor":
                digest.scales(part.scale)
        return digest.hexdigest()

    def stored(self, carried: Carried) -> NDArray[np.float32]:
        """A float tensor as it lies in the file, no move undone (Gemma's norm + 1): `carried_digest` is over this."""
        if carried.scheme not in ("fp32", "fp16", "bf16"):
            raise Refused(f"{carried.name} is {carried.scheme}: only floats lie in the file as values of their own.")
        return np.asarray(_joined(self._rows(carried, undo=False), carried))

    def close(self) -> None:
        """Let go of the mapped file."""
        self._tensors, self.fields = {}, {}

    def _rows(self, carried: Carried, *, undo: bool) -> Iterator[TensorValue]:
        """The tensor in row blocks, its moves undone or not."""
        data = self._raw(carried)
        heads = heads_interleaved(carried.moves)
        seen: NDArray[np.float32] | None = None
        for start, stop in row_blocks(carried.shape, heads):
            value = self._decoded(np.ascontiguousarray(data[start:stop]), carried)
            if not undo:
                yield value
                continue
            if heads:
                inverse = np.argsort(interleaved_rows(stop - start, heads * (stop - start) // carried.shape[0]))
                value = value.take_rows(inverse) if isinstance(value, QuantizedTensor) else value[inverse]
            if isinstance(value, QuantizedTensor):
                value = _regrouped(value, carried)
                if SCHEMES[carried.scheme].granularity == "tensor":
                    if seen is not None and not np.array_equal(seen, value.scale):
                        raise Refused(f"{carried.name}: it has several scales, {carried.scheme} has one.")
                    seen = value.scale
            elif "plus_one" in carried.moves:
                value = value - np.float32(1)
            yield value

    def _raw(self, carried: Carried) -> NDArray[Any]:
        """The mapped tensor [rows, …]. Raises Refused when it is missing or has another type or shape."""
        found = self._tensors.get(carried.at[0])
        where = f"{carried.name} (as {carried.at[0]})"
        if found is None:
            raise Refused(f"{where}: the file has no such tensor.", "Export the model again.")
        shape = tuple(int(n) for n in reversed(found.shape.tolist()))
        kind = found.tensor_type.name
        if (kind, shape) != (carried.stored_as, carried.shape):
            raise Refused(
                f"{where}: the file has {kind} {list(shape)}, the manifest says {carried.stored_as} "
                f"{list(carried.shape)}.",
                "Export the model again.",
            )
        data: NDArray[Any] = found.data
        return data

    def _decoded(self, raw: NDArray[Any], carried: Carried) -> TensorValue:
        """A row block by our codec, held against gguf-py's own dequantisation."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = carried.stored_as
        with np.errstate(invalid="ignore", over="ignore"):
            theirs = dequantize(raw, GGMLQuantizationType[kind])
            value: TensorValue
            if kind in BLOCKS:
                value = BLOCKS[kind].decode(raw)
                ours = value.dequantize()
            else:
                value = ours = decode_floats(raw.view("<u2") if kind == "BF16" else raw, kind)
        if not np.array_equal(np.ascontiguousarray(theirs).view(np.uint32), ours.view(np.uint32)):
            raise Refused(f"{carried.name}: gguf-py decodes these {kind} blocks to other values than scale · code.")
        return value


@cache
def _bounded_reader() -> type[Any]:
    """gguf-py's reader, made to stop at the end of the file: it would go on there, for as long as a length says."""
    from gguf import GGUFReader, GGUFValueType

    class BoundedReader(GGUFReader):
        _plain: NDArray[np.uint8] | None = None

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
            kind = np.dtype(dtype)
            size = kind.itemsize * int(count)
            self._within(int(offset), size)
            if self._plain is None:  # slices of a memmap cost three times those of a plain array on the same pages
                self._plain = np.asarray(self.data)
            found: NDArray[Any] = self._plain[offset : offset + size].view(kind)
            order = self.byte_order if override_order is None else override_order
            return found if order == "I" else found.view(kind.newbyteorder(order))

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            item, length = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
            scalar = self.gguf_scalar_to_np.get(GGUFValueType(item))
            self._within(orig_offs + 12, length * (np.dtype(scalar).itemsize if scalar else 8))
            if item != GGUFValueType.STRING or self.byte_order != "I" or not length:
                return super()._get_field_parts(orig_offs, raw_type)
            return self._strings(orig_offs, length)

        def _strings(self, start: int, length: int) -> Any:
            """What the parent makes of an array of strings (a vocabulary), ten times quicker."""
            parts, at = [self._get(start, np.uint32), self._get(start + 4, np.uint64)], start + 12
            plain = self._plain
            assert plain is not None
            for _ in range(length):
                self._within(at, 8)
                size = plain[at : at + 8].view(np.uint64)
                end = at + 8 + int(size[0])
                self._within(at + 8, int(size[0]))
                parts += (size, plain[at + 8 : end])
                at = end
            kinds = [GGUFValueType.ARRAY, GGUFValueType.STRING]
            return at - start, parts, list(range(3, len(parts), 2)), kinds

        def _within(self, offset: int, nbytes: int) -> None:
            if offset + nbytes > len(self.data):
                raise ValueError(f"what begins at byte {offset} has {nbytes} bytes")

    return BoundedReader


def _joined(parts: Iterator[TensorValue], carried: Carried) -> TensorValue:
    """Row blocks as one tensor, filled as they come."""
    floats = np.empty(0, np.float32)
    codes, scales, start = np.empty(0, np.int8), [], 0
    last: TensorValue = floats
    for last in parts:
        stop = start + last.shape[0]
        if isinstance(last, QuantizedTensor):
            codes = codes if start else np.empty(carried.shape, np.int8)
            codes[start:stop] = last.codes
            scales.append(last.scale)
        else:
            floats = floats if start else np.empty(carried.shape, np.float32)
            floats[start:stop] = last
        start = stop
    if not isinstance(last, QuantizedTensor):
        return floats
    grid = SCHEMES[carried.scheme]
    scale = scales[0] if grid.granularity == "tensor" else np.concatenate(scales)
    return QuantizedTensor(codes, scale, grid.block(carried.shape), last.range)


def _regrouped(value: QuantizedTensor, carried: Carried) -> QuantizedTensor:
    """Back to the scheme's own scales and range. Raises Refused, naming the tensor, when the file does not allow it."""
    grid = SCHEMES[carried.scheme]
    assert grid.range is not None
    try:
        return value.coarsen(grid.block(value.shape)).widen(grid.range)
    except Refused as error:
        raise Refused(f"{carried.name} is no {carried.scheme}: {error.message}") from error
