"""What tests/bench opens in a fresh process: an ONNX file in ONNX Runtime itself, here or in a worker of its own."""

import numpy as np

from octavo.errors import BadInput
from octavo.workers.local import Worker


class OnnxSession:
    def __init__(self, path, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def step(self, inputs, state=None):
        names = [item.name for item in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True)), state

    def close(self):
        self.session = None


def onnx(path, *, threads=None):
    if not path.exists():
        raise BadInput(f"{path}: no such file.")
    return OnnxSession(path, threads)


class Elsewhere:
    """A session that lives in a worker, as llama.cpp's does."""

    def __init__(self, path, threads):
        self.worker = Worker(threads=threads)
        self.worker.call("bench_openers:load", {"path": str(path), "threads": threads})

    def step(self, inputs, state=None):
        return self.worker.call("bench_openers:run", {}, inputs).arrays, state

    def close(self):
        self.worker.close()


def elsewhere(path, *, threads=None):
    return Elsewhere(path, threads)


LOADED = {}


def load(params, arrays, emit):
    from pathlib import Path

    LOADED["session"] = onnx(Path(params["path"]), threads=params["threads"])
    return {}, {}


def run(params, arrays, emit):
    return {}, {name: np.asarray(value) for name, value in LOADED["session"].step(arrays)[0].items()}
