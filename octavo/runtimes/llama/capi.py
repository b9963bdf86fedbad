"""llama.cpp's C API through ctypes: the shared library inside the xllamacpp wheel. Run only inside a worker.

llama.cpp passes three structs by value, and their layouts change between builds. So none is declared here: each is
an opaque block, larger than any build's struct, that the library fills with its own defaults; this module changes
only the few fields named in the tables below, and `check_layout` first proves on the running build that each lies
where the table says. A callee reads only its own size, so the surplus does no harm. Offsets: llama.h as of the
build that xllamacpp 2026.10 vendors (x86-64 and aarch64 agree: all fields are naturally aligned).
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from octavo.errors import Missing, OctavoError

BLOCK_BYTES = 512
Block = type("Block", (ctypes.Structure,), {"_fields_": [("words", ctypes.c_uint64 * (BLOCK_BYTES // 8))]})

# field -> (offset, struct code, default that the library must put there)
MODEL_PARAMS: dict[str, tuple[int, str, float]] = {
    "n_gpu_layers": (16, "i", -1),
    "split_mode": (20, "i", 1),
    "load_mode": (24, "i", -1),
    "lazy_mode": (28, "i", 1),
    "main_gpu": (32, "i", 0),
    "vocab_only": (72, "?", False),
    "check_tensors": (73, "?", False),
    "use_extra_bufts": (74, "?", True),
    "no_host": (75, "?", False),
    "no_alloc": (76, "?", False),
}
CONTEXT_PARAMS: dict[str, tuple[int, str, float]] = {
    "n_ctx": (0, "I", 512),
    "n_batch": (4, "I", 2048),
    "n_ubatch": (8, "I", 512),
    "n_seq_max": (12, "I", 1),
    "n_rs_seq": (16, "I", 0),
    "n_outputs_max": (20, "I", 0),
    "n_outputs_max_per_seq": (24, "I", 1),
    "n_threads": (28, "i", 4),
    "n_threads_batch": (32, "i", 4),
    "ctx_type": (36, "i", 0),
    "rope_scaling_type": (40, "i", -1),
    "pooling_type": (44, "i", -1),
    "attention_type": (48, "i", -1),
    "flash_attn_type": (52, "i", -1),
    "rope_freq_base": (56, "f", 0.0),
    "yarn_ext_factor": (64, "f", -1.0),
    "yarn_attn_factor": (68, "f", -1.0),
    "type_k": (104, "i", 1),
    "type_v": (108, "i", 1),
}
STRUCT_BYTES = {"llama_model_default_params": 80, "llama_context_default_params": 168}
# llama_batch: n_tokens i32, then pointers token, embd, pos, n_seq_id, seq_id, logits
BATCH = {"n_tokens": 0, "token": 8, "embd": 16, "pos": 24, "n_seq_id": 32, "seq_id": 40, "logits": 48}

LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
ptr, i32, u32, size, text, flag = (
    ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_bool,
)  # fmt: skip
PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG_CALLBACK, ptr]),
    "llama_model_default_params": (Block, []),
    "llama_context_default_params": (Block, []),
    "llama_model_load_from_file": (ptr, [text, Block]),
    "llama_model_free": (None, [ptr]),
    "llama_init_from_model": (ptr, [ptr, Block]),
    "llama_free": (None, [ptr]),
    "llama_n_ctx": (u32, [ptr]),
    "llama_n_batch": (u32, [ptr]),
    "llama_n_ubatch": (u32, [ptr]),
    "llama_n_seq_max": (u32, [ptr]),
    "llama_n_threads": (i32, [ptr]),
    "llama_n_threads_batch": (i32, [ptr]),
    "llama_model_get_vocab": (ptr, [ptr]),
    "llama_vocab_n_tokens": (i32, [ptr]),
    "llama_vocab_bos": (i32, [ptr]),
    "llama_vocab_type": (ctypes.c_int, [ptr]),
    "llama_model_meta_val_str": (i32, [ptr, text, ptr, size]),
    "llama_tokenize": (i32, [ptr, text, i32, ptr, i32, flag, flag]),
    "llama_detokenize": (i32, [ptr, ptr, i32, ptr, i32, flag, flag]),
    "llama_batch_init": (Block, [i32, i32, i32]),
    "llama_batch_free": (None, [Block]),
    "llama_decode": (i32, [ptr, Block]),
    "llama_get_logits": (ptr, [ptr]),
    "llama_get_logits_ith": (ptr, [ptr, i32]),
    "llama_get_memory": (ptr, [ptr]),
    "llama_memory_clear": (None, [ptr, flag]),
    "llama_memory_seq_rm": (flag, [ptr, i32, i32, i32]),
    "ggml_blck_size": (ctypes.c_int64, [ctypes.c_int]),
    "ggml_row_size": (size, [ctypes.c_int, ctypes.c_int64]),
    "ggml_quantize_requires_imatrix": (flag, [ctypes.c_int]),
    "ggml_quantize_chunk": (size, [ctypes.c_int, ptr, ptr, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ptr]),
}


class LayoutMismatch(OctavoError):
    """The running build's C API is not the one the tables describe; nothing may be passed to it by value."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "Open the model with through='server' to go without the C API.")


@cache
def library() -> Any:
    """Load the library, declare the functions and prove the struct layout, once per process.

    Raises Missing when xllamacpp is not installed or cannot be loaded, LayoutMismatch when it exports no such C API
    or the self-test fails.
    """
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("llama.cpp needs the package xllamacpp.", "Install it: pip install 'octavo[llama]'.")
    folder = Path(next(iter(spec.submodule_search_locations)))
    shared = sorted(path for path in folder.glob("xllamacpp*") if path.suffix in {".so", ".pyd", ".dylib"})
    if not shared:
        raise Missing(f"{folder} holds no shared library.", "Reinstall xllamacpp.")
    try:
        lib = ctypes.CDLL(str(shared[0]))
    except OSError as error:
        raise Missing(f"{shared[0].name} cannot be loaded: {error}.", "Reinstall xllamacpp.") from None
    for name, (result, arguments) in PROTOTYPES.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise LayoutMismatch(f"{shared[0].name} does not export {name}.") from None
        function.restype, function.argtypes = result, arguments
    check_layout(lib)
    lib.llama_backend_init()
    return lib


def check_layout(lib: Any) -> None:
    """Prove on this build that every field of the tables lies at its offset. Raises LayoutMismatch.

    Defaults are distinct enough to tell neighbours apart; where the calling convention allows, the size that the
    library writes is measured too; a fresh batch must have the pointers that llama_batch_init promises. What is
    then changed in a context is read back by `native.Model` through llama.cpp's own accessors.
    """
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise LayoutMismatch("the llama.cpp struct tables are for 64-bit machines.")
    for function, table in (
        ("llama_model_default_params", MODEL_PARAMS),
        ("llama_context_default_params", CONTEXT_PARAMS),
    ):
        block = getattr(lib, function)()
        wrong = [
            f"{name} at byte {offset} is {got}, expected {default}"
            for name, (offset, code, default) in table.items()
            if (got := get(block, offset, code)) != default
        ]
        if wrong:
            raise LayoutMismatch(f"{function}: {'; '.join(wrong[:3])} ({len(wrong)} fields differ).")
        written = bytes_written(lib, function)
        if written is not None and written != STRUCT_BYTES[function]:
            raise LayoutMismatch(f"{function} returns {written} bytes, expected {STRUCT_BYTES[function]}.")
    with batch_of(lib, 7) as block:
        filled = {name: bool(get(block, BATCH[name], "Q")) for name in BATCH if name != "n_tokens"}
        if filled != {**dict.fromkeys(filled, True), "embd": False} or get(block, 0, "i") != 0:
            raise LayoutMismatch(f"llama_batch_init(7) has these pointers set: {filled}.")
        rows = (ctypes.c_uint64 * 8).from_address(get(block, BATCH["seq_id"], "Q"))
        if not all(rows[:7]) or rows[7]:
            raise LayoutMismatch("llama_batch_init(7) does not end its seq_id list with a null after 7 entries.")


def bytes_written(lib: Any, function: str) -> int | None:
    """How many bytes a function that returns a large struct writes; None where that cannot be seen.

    On x86-64 the caller passes the address of the result as a hidden first argument, so calling it as
    `void *f(void *)` on a marked block shows its extent. A trailing run equal to the marker would be missed, so two
    markers are tried. aarch64 passes the address in x8, out of ctypes' reach.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return None
    plain = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(ctypes.cast(getattr(lib, function), ptr).value or 0)
    extent = 0
    for marker in (0xA5, 0x5A):
        buffer = (ctypes.c_uint8 * BLOCK_BYTES)(*[marker] * BLOCK_BYTES)
        plain(ctypes.addressof(buffer))
        extent = max(extent, max((i + 1 for i, byte in enumerate(buffer) if byte != marker), default=0))
    return -(-extent // 8) * 8  # the struct's alignment: trailing padding may stay unwritten


def get(block: Any, offset: int, code: str) -> Any:
    return struct.unpack_from("=" + code, bytes(block), offset)[0]


def put(block: Any, table: dict[str, tuple[int, str, float]], **values: float) -> None:
    """Set fields of an opaque block by name, through the checked table."""
    for name, value in values.items():
        offset, code, _ = table[name]
        struct.pack_into("=" + code, (ctypes.c_uint8 * BLOCK_BYTES).from_buffer(block), offset, value)


@contextmanager
def batch_of(lib: Any, capacity: int) -> Iterator[Any]:
    """A llama_batch for up to `capacity` tokens of one sequence, freed at the end."""
    block = lib.llama_batch_init(capacity, 0, 1)
    try:
        yield block
    finally:
        lib.llama_batch_free(block)
