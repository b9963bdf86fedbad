"""Reading a GGUF back with gguf-py's own reader: raw blocks into codes and scales, and the moves undone.

Every row block is decoded twice: by our codec into codes and scales, and by gguf-py's `dequantize` into values. The two
must agree bit for bit (scale · code), which makes what is returned the vendor's reading of the file, not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from octavo.runtimes.llama.write import row_blocks


class GgufReadBack:
    """A GGUF opened with gguf-py's reader (memory-mapped). Raises BadInput when it is damaged or no GGUF."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            reader = GGUFReader(path)
            self.fields = {name: field for name, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, MemoryError) as error:
            size = path.stat().st_size if path.is_file() else 0
            raise BadInput(
                f"{path}: gguf-py cannot read it ({type(error).__name__}: {error}); it has {size} bytes.",
                "The file is cut short, damaged or no GGUF; export it again.",
            ) from error

    @property
    def manifest(self) -> Manifest | None:
        """The manifest in the file, None without one. Raises EditedManifest (a BadInput) when it contradicts itself."""
        text = self.value(KEY)
        return None if text is None else Manifest.from_json(str(text))

    def value(self, key: str) -> Any:
        """A metadata value by its key, None when the file has no such key."""
        return self.fields[key].contents() if key in self.fields else None

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """All tensors in the file by their GGUF names."""
        return tuple(self._tensors)

    def tensor(self, carried: Carried) -> TensorValue:
        """Decode one tensor and undo the moves: the compressed model's own orientation, grid and values.

        Raises Refused when what lies there cannot be the tensor described.
        """
        parts = list(self._rows(carried, undo=True))
        if not carried.shape or not isinstance(parts[0], QuantizedTensor):
            return np.concatenate(parts) if len(parts) > 1 else parts[0]  # type: ignore[arg-type,return-value]
        grid = SCHEMES[carried.scheme]
        codes = np.concatenate([part.codes for part in parts])  # type: ignore[union-attr]
        scales = parts[0].scale if grid.granularity == "tensor" else np.concatenate([part.scale for part in parts])  # type: ignore[union-attr]
        return QuantizedTensor(codes, scales, grid.block(carried.shape), parts[0].range)

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

    def stored(self, carried: Carried) -> TensorValue:
        """The values of a float tensor as they lie in the file (Gemma's norm + 1): `carried_digest` is over these."""
        parts = list(self._rows(carried, undo=False))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]  # type: ignore[arg-type,return-value]

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
            if kind in BLOCKS:
                value: TensorValue = BLOCKS[kind].decode(raw)
                ours = value.dequantize()
            else:
                value = ours = decode_floats(raw.view("<u2") if kind == "BF16" else raw, kind)
        if not np.array_equal(np.ascontiguousarray(theirs).view(np.uint32), ours.view(np.uint32)):
            raise Refused(f"{carried.name}: gguf-py decodes these {kind} blocks to other values than scale · code.")
        return value


def _regrouped(value: QuantizedTensor, carried: Carried) -> QuantizedTensor:
    """Back to the scheme's own scales and range. Raises Refused, naming the tensor, when the file does not allow it."""
    grid = SCHEMES[carried.scheme]
    assert grid.range is not None
    try:
        return value.coarsen(grid.block(value.shape)).widen(grid.range)
    except Refused as error:
        raise Refused(f"{carried.name} is no {carried.scheme}: {error.message}") from error
