"""The child's end: `python -m octavo.workers.child CONFIG` serves requests on stdio until its input ends.

A target is a function `target(params, arrays, emit) -> (result, arrays)`: `params` and `result` are JSON objects,
`arrays` are named numpy arrays, `emit(event)` streams a JSON object to the caller. One child serves many requests in
turn, so a target's module can keep what it has loaded in a dictionary of its own and hand out the keys.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from octavo.errors import BadInput, OctavoError
from octavo.workers import protocol

Emit = Callable[[dict[str, Any]], None]


def main() -> None:
    config = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    requests, replies = private_stdio()
    restrict(config)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=receive, args=(requests, inbox, busy), daemon=True).start()
    while (message := inbox.get()) is not None:
        busy.set()
        try:
            answer(message, replies)
        except BrokenPipeError:
            break
        finally:
            busy.clear()
    sys.stderr.flush()
    # Not a normal exit: native libraries' destructors are known to hang or crash once their threads are gone.
    os._exit(0)


def private_stdio() -> tuple[BinaryIO, BinaryIO]:
    """Move the protocol to private descriptors; whatever a library prints on stdout then goes to stderr."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def restrict(config: dict[str, Any]) -> None:
    """Apply the parent's limits to this process: memory, no core files, death with the parent."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit := config.get("memory_bytes"):
        # DATA counts private writable memory only, so a memory-mapped model file is not charged to the limit.
        # macOS does not enforce it, nor AS: there the limit is a wish.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    parent = config.get("die_with")
    if parent and sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above took hold
            os._exit(1)


def receive(requests: BinaryIO, inbox: queue.SimpleQueue[Any], busy: threading.Event) -> None:
    """Read ahead, so that a vanished parent is noticed in the middle of a long call, on any platform."""
    while True:
        try:
            message = protocol.read(requests)
        except Exception as error:  # a broken frame cannot be answered: say it on stderr and end
            print(f"worker: {error}", file=sys.stderr)
            message = None
        if message is None and busy.is_set():
            if os.getpgid(0) == os.getpid():
                os.killpg(0, signal.SIGKILL)  # with whatever the call has started
            os._exit(1)
        inbox.put(message)
        if message is None:
            return


def answer(message: tuple[dict[str, Any], Any], replies: BinaryIO) -> None:
    """Run one request and write its result or its error."""
    header, arrays = message

    def send(kind: str, fields: dict[str, Any], out: Any = None) -> None:
        replies.write(protocol.pack(kind, fields, out))
        replies.flush()

    try:
        function = resolve(header["target"])
        result, out = function(header["params"], arrays, lambda event: send(protocol.EVENT, {"event": event}))
        send(protocol.RESULT, {"result": result, "peak_rss_bytes": peak_rss_bytes()}, out)
    except BrokenPipeError:
        raise
    except Exception as error:
        send(protocol.ERROR, {**describe(error), "peak_rss_bytes": peak_rss_bytes()})


def describe(error: Exception) -> dict[str, str]:
    """The fields of an error message: an OctavoError keeps its kind and remedy, anything else its traceback."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, OctavoError):
        return {"error": type(error).__name__, "message": error.message, "remedy": error.remedy, "traceback": text}
    return {"error": type(error).__name__, "message": str(error), "remedy": "", "traceback": text}


def resolve(target: str) -> Callable[..., Any]:
    """Import `pkg.module:function`. Raises BadInput when there is no such function; import errors pass through."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise BadInput(f"worker target {target!r} names no function.")
    return function  # type: ignore[no-any-return]


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes.

    Linux: VmHWM, because `ru_maxrss` survives fork and exec there and would report the parent's size.
    """
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
