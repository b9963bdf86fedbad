"""A worker process on this machine: call functions in it, and turn its death into an ordinary error."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from octavo import errors
from octavo.errors import OctavoError, WorkerDied, WorkerTimeout
from octavo.workers import protocol

STDERR_LINES = 20
GRACE_SECONDS = 5.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Reply:
    """What a call brought back: the target's JSON result and arrays, and the child's largest resident set so far."""

    result: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    peak_rss_bytes: int


class Worker:
    """A child process that serves calls in turn, in a session of its own; a context manager.

    `memory_bytes` limits the child's private writable memory (RLIMIT_DATA: heap and anonymous mappings; mapped model
    files and shared libraries are not counted; Linux only). `threads` sets the usual thread-count variables of numeric
    libraries. `env` adds or replaces environment variables (None removes one). The child imports from the parent's
    `sys.path`. Calls from several threads take turns.
    """

    def __init__(
        self,
        *,
        memory_bytes: int | None = None,
        threads: int | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.peak_rss_bytes = 0
        self._ended = ""
        self._turn = threading.Lock()
        # The kernel ties death to the *thread* that started the child, so only the main thread asks for it; a parent
        # that dies elsewhere is noticed by the child when its input ends.
        main_thread = threading.current_thread() is threading.main_thread()
        config = {"memory_bytes": memory_bytes, "die_with": os.getpid() if main_thread else None}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "octavo.workers.child", json.dumps(config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=_environment(threads, env or {}), start_new_session=True, bufsize=0,
        )  # fmt: skip
        self._tail: deque[str] = deque(maxlen=STDERR_LINES)
        self._reader = threading.Thread(target=_drain, args=(self._process.stderr, self._tail), daemon=True)
        self._reader.start()
        self._pipe = _Pipe(self._process)
        self._finalizer = weakref.finalize(self, _kill, self._process)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the child can take another call."""
        if not self._ended and self._process.poll() is not None:
            self._end("it died between calls")  # at once: its group must be signalled before the number is used again
        return not self._ended

    @property
    def stderr(self) -> str:
        """The last lines the child wrote to its standard error (and whatever was printed on its standard output)."""
        return "\n".join(self._tail)

    def call(
        self,
        target: str,
        params: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        timeout: float | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Reply:
        """Run `pkg.module:function` in the child and wait for its result; `timeout` in seconds covers the whole call.

        Raises the OctavoError that the target raised (same kind), OctavoError for any other exception in it (its
        traceback as a note), WorkerTimeout, WorkerDied. After the last two, after Ctrl-C and after an exception
        from `on_event`, the child and all it started are gone; later calls raise WorkerDied.
        """
        message = protocol.pack(protocol.REQUEST, {"target": target, "params": dict(params or {})}, arrays)
        with self._turn:
            if self._ended:
                raise WorkerDied(f"the worker for {target} is closed: {self._ended}.")
            try:
                return self._exchange(target, message, timeout, on_event)
            except _Answered as answered:
                raise answered.error from None
            except _Late:
                self._end(f"it was killed after {timeout:g} s in {target}")
                raise WorkerTimeout(
                    f"{target} did not answer within {timeout:g} s; its process was killed.{self._quote()}"
                ) from None
            except _Gone:
                raise self._died(target) from None
            except BaseException as error:  # Ctrl-C above all: never leave a child computing for nobody
                self._end(f"it was stopped by {type(error).__name__} during {target}")
                raise

    def close(self) -> None:
        """End the child: ask first, then kill. Never raises, may be called twice."""
        if not self._ended:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
            self._end("close() was called")

    def _exchange(
        self, target: str, message: bytes, timeout: float | None, on_event: Callable[[dict[str, Any]], None] | None
    ) -> Reply:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._pipe.send(message, deadline)
        while True:
            header, arrays = self._pipe.receive(deadline)
            if header["kind"] == protocol.EVENT:
                if on_event is not None:
                    on_event(header["event"])
                continue
            self.peak_rss_bytes = max(self.peak_rss_bytes, int(header["peak_rss_bytes"]))
            if header["kind"] == protocol.ERROR:
                raise _Answered(_error_of(target, header, self.memory_bytes))
            return Reply(header["result"], arrays, header["peak_rss_bytes"])

    def _died(self, target: str) -> WorkerDied:
        """The error for a child that closed its pipe without answering."""
        try:
            code = self._process.wait(GRACE_SECONDS)
            how = _signal_name(-code) if code < 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            how = "a closed pipe"
        self._end(f"it died of {how}")
        limit = f" Its memory limit was {self.memory_bytes} bytes." if self.memory_bytes else ""
        return WorkerDied(f"the worker died of {how} while running {target}.{limit}{self._quote()}")

    def _quote(self) -> str:
        return f"\nIts last words were:\n{self.stderr}" if self._tail else ""

    def _end(self, why: str) -> None:
        self._ended = why
        self._finalizer()
        self._reader.join(1.0)
        self._pipe.close()


class _Answered(Exception):
    """Carries an error that the child reported: the child itself is well and takes the next call."""

    def __init__(self, error: OctavoError) -> None:
        super().__init__(str(error))
        self.error = error


class _Gone(Exception):
    """The child closed its end. Not BrokenPipeError: an `on_event` that prints to a closed pipe raises that one."""


class _Late(Exception):
    """The deadline of a call has passed."""


class _Pipe:
    """The two pipes to a child, with a deadline on every wait, also for writing to one that has stopped reading."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._buffer = bytearray()

    def send(self, message: bytes, deadline: float | None) -> None:
        view = memoryview(message)
        while view:
            _wait(self._stdin.fileno(), selectors.EVENT_WRITE, deadline)
            try:
                view = view[os.write(self._stdin.fileno(), view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _Gone from None

    def receive(self, deadline: float | None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """One message. Raises _Gone when the child closed the pipe, _Late at the deadline."""
        _check(deadline)  # also for a child whose events come so fast that nothing ever waits
        end = self._buffer.find(b"\n")
        while end < 0:
            have = len(self._buffer)
            self._more(1 << 16, deadline)
            end = self._buffer.find(b"\n", have)
        header = protocol.header_of(bytes(self._buffer[:end]))
        del self._buffer[: end + 1]
        while len(self._buffer) < header["bytes"]:
            self._more(header["bytes"] - len(self._buffer), deadline)
        with memoryview(self._buffer) as view:
            body = bytes(view[: header["bytes"]])
        del self._buffer[: header["bytes"]]
        return header, protocol.arrays_of(header, body)

    def _more(self, size: int, deadline: float | None) -> None:
        _wait(self._stdout.fileno(), selectors.EVENT_READ, deadline)
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._stdout.fileno(), min(max(size, 1 << 16), 1 << 20))
            if not chunk:
                raise _Gone
            self._buffer += chunk

    def close(self) -> None:
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                stream.close()


def _wait(descriptor: int, event: int, deadline: float | None) -> None:
    remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, event)
        if not selector.select(remaining):
            _check(deadline)


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise _Late


def _environment(threads: int | None, extra: Mapping[str, str | None]) -> dict[str, str]:
    package_parent = str(Path(errors.__file__).resolve().parent.parent)
    paths = [package_parent, *(path for path in sys.path if path and path != package_parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        env.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    env.update({key: value for key, value in extra.items() if value is not None})
    return {key: value for key, value in env.items() if extra.get(key, "") is not None}


def _drain(stream: Any, tail: deque[str]) -> None:
    """Keep the pipe empty (a full one would stop the child) and remember the last lines."""
    with stream:
        for line in iter(stream.readline, b""):
            tail.append(line.decode(errors="replace").rstrip("\n"))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's process group and collect the child, so that neither it nor a zombie stays."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _error_of(target: str, header: Mapping[str, Any], memory_bytes: int | None) -> OctavoError:
    """The exception for an error message: an OctavoError of the same kind, with the child's traceback as a note."""
    kind = getattr(errors, header["error"], None)
    if isinstance(kind, type) and issubclass(kind, OctavoError):
        error = kind(header["message"], header["remedy"])
    elif header["error"] == "MemoryError" and memory_bytes:
        error = OctavoError(f"{target} ran out of memory: its limit was {memory_bytes} bytes.", "Raise the limit.")
    else:
        error = OctavoError(f"{target} failed: {header['error']}: {header['message']}", header["remedy"])
    error.add_note(header["traceback"])
    return error
