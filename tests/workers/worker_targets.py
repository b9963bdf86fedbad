"""What tests/workers/test_local.py runs in a child: well-behaved targets and ill-behaved ones."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from octavo.errors import Refused

KEPT = {}


def echo(params, arrays, emit):
    return params, arrays


def double(params, arrays, emit):
    return {"n": len(arrays)}, {name: array * 2 for name, array in arrays.items()}


def count(params, arrays, emit):
    for i in range(params["n"]):
        emit({"i": i})
    return {"n": np.int64(params["n"])}, {}


def keep(params, arrays, emit):
    KEPT[len(KEPT)] = params["value"]
    return {"handle": len(KEPT) - 1, "pid": os.getpid()}, {}


def kept(params, arrays, emit):
    return {"value": KEPT[params["handle"]]}, {}


def abort(params, arrays, emit):
    print("assert(n > 0) failed", file=sys.stderr, flush=True)
    os.abort()


def segfault(params, arrays, emit):
    ctypes.string_at(0)


def leave(params, arrays, emit):
    os._exit(params["status"])


def hang(params, arrays, emit):
    if "grandchild" in params:
        process = subprocess.Popen(["sleep", "600"])
        Path(params["grandchild"]).write_text(f"{os.getpid()} {process.pid}")
    emit({"hanging": True})
    time.sleep(600)


def shout(params, arrays, emit):
    os.write(1, b'{"kind": "result", "arrays": [], "bytes": 0}\n')
    print("a vendor's progress bar")
    ctypes.CDLL(None).puts(b"and one from C")
    ctypes.CDLL(None).fflush(None)
    return {"ok": True}, {}


def allocate(params, arrays, emit):
    return {"sum": int(np.ones(params["bytes"], np.uint8)[::4096].sum())}, {}


def refuse(params, arrays, emit):
    raise Refused("w [3, 5]: group 4 does not divide 5.", "Use 5.")


def divide(params, arrays, emit):
    return {"ratio": 1 / params["by"]}, {}


def unsendable(params, arrays, emit):
    return {}, {"o": np.array([None, {}], dtype=object)}


def limits(params, arrays, emit):
    return {"omp": os.environ.get("OMP_NUM_THREADS"), "home": os.environ.get("HOME")}, {}
