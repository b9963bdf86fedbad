"""A worker carries arrays and events, and every way to die in it becomes an ordinary error in the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import BadInput, OctavoError, Refused, WorkerDied, WorkerTimeout
from octavo.workers.local import Worker

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def importable_targets(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def worker():
    with Worker() as worker:
        yield worker


def gone(pid):
    """Whether no process has this number (a zombie counts as a process)."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text() and not our_child(pid):
            return True  # an orphan that init has yet to collect
        time.sleep(0.05)
    return False


def our_child(pid):
    return f"PPid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/status").read_text()


def test_arrays_and_parameters_come_back_as_they_were(worker):
    arrays = {
        "file": np.arange(6, dtype=np.int8).reshape(2, 3),
        "model.layers.0/w": np.random.default_rng(0).standard_normal((700, 1000)).astype(np.float32),
        "f": np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
        "empty": np.empty((0, 4), np.int64),
        "scalar": np.array(7, np.uint32),
        "text": np.array(["ä", "b"]),
    }
    reply = worker.call("worker_targets:echo", {"s": "line\nbreak ☃", "n": None}, arrays)
    assert reply.result == {"s": "line\nbreak ☃", "n": None}
    assert list(reply.arrays) == list(arrays)
    for name, array in arrays.items():
        assert reply.arrays[name].dtype == array.dtype
        assert np.array_equal(reply.arrays[name], array)
    assert worker.call("worker_targets:double", arrays={"x": np.ones(2)}).arrays["x"].tolist() == [2.0, 2.0]


def test_events_arrive_in_order_and_before_the_result(worker):
    seen = []
    reply = worker.call("worker_targets:count", {"n": 500}, on_event=seen.append)
    assert seen == [{"i": i} for i in range(500)]
    assert reply.result == {"n": 500}


def test_a_child_keeps_state_between_calls(worker):
    first = worker.call("worker_targets:keep", {"value": "a model"}).result
    second = worker.call("worker_targets:keep", {"value": "another"}).result
    assert first["pid"] == second["pid"] != os.getpid()
    assert worker.call("worker_targets:kept", {"handle": first["handle"]}).result["value"] == "a model"


def test_an_abort_names_the_signal_and_quotes_its_last_words(worker):
    with pytest.raises(WorkerDied, match=r"(?s)SIGABRT.*worker_targets:abort.*assert\(n > 0\) failed"):
        worker.call("worker_targets:abort")
    assert not worker.alive
    with pytest.raises(WorkerDied, match=r"closed.*SIGABRT"):
        worker.call("worker_targets:echo")


@pytest.mark.parametrize(
    ("target", "params", "says"), [("segfault", {}, "SIGSEGV"), ("leave", {"status": 3}, "status 3")]
)
def test_other_deaths(worker, target, params, says):
    with pytest.raises(WorkerDied, match=says):
        worker.call(f"worker_targets:{target}", params)


def test_an_idle_child_that_was_killed_is_noticed(worker):
    pid = worker.call("worker_targets:keep", {"value": 1}).result["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        worker.call("worker_targets:echo")


def test_a_hang_is_cut_off_with_all_it_started(worker, tmp_path):
    note = tmp_path / "pids"
    start = time.monotonic()
    with pytest.raises(WorkerTimeout, match="within 1 s"):
        worker.call("worker_targets:hang", {"grandchild": str(note)}, timeout=1)
    assert time.monotonic() - start < 4
    child, grandchild = map(int, note.read_text().split())
    assert gone(child)
    assert gone(grandchild)


def test_a_child_that_no_longer_reads_is_cut_off_too(worker):
    os.kill(worker.call("worker_targets:keep", {"value": 1}).result["pid"], signal.SIGSTOP)
    with pytest.raises(WorkerTimeout):
        worker.call("worker_targets:echo", arrays={"big": np.zeros(4 << 20, np.uint8)}, timeout=0.5)


def test_vendor_prints_do_not_corrupt_the_protocol(worker):
    assert worker.call("worker_targets:shout").result == {"ok": True}
    assert worker.call("worker_targets:echo", {"n": 1}).result == {"n": 1}
    worker.close()
    assert "a vendor's progress bar" in worker.stderr
    assert "and one from C" in worker.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_DATA")
def test_the_memory_limit_is_an_ordinary_error():
    with Worker(memory_bytes=512 << 20) as worker:
        assert worker.call("worker_targets:allocate", {"bytes": 64 << 20}).result["sum"] == (64 << 20) // 4096
        with pytest.raises(OctavoError, match=f"out of memory.*{512 << 20}"):
            worker.call("worker_targets:allocate", {"bytes": 1 << 30})
        assert worker.call("worker_targets:echo", {"n": 1}).result == {"n": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_the_childs_own_and_not_inherited(worker):
    ballast = np.ones(400 << 20, np.uint8)
    with Worker() as fresh:
        small = fresh.call("worker_targets:echo").peak_rss_bytes
        large = fresh.call("worker_targets:allocate", {"bytes": 200 << 20}).peak_rss_bytes
        assert fresh.peak_rss_bytes == large
    assert ballast[0]
    assert small < 150 << 20
    assert large - small + (1 << 20) >= 200 << 20
    assert large < 350 << 20


def test_errors_keep_their_kind(worker):
    with pytest.raises(Refused) as caught:
        worker.call("worker_targets:refuse")
    assert caught.value.message == "w [3, 5]: group 4 does not divide 5."
    assert caught.value.remedy == "Use 5."
    with pytest.raises(OctavoError, match="ZeroDivisionError: division by zero") as caught:
        worker.call("worker_targets:divide", {"by": 0})
    assert "worker_targets.py" in caught.value.__notes__[0]
    with pytest.raises(OctavoError, match="No module named 'no_such_module'"):
        worker.call("no_such_module:f")
    with pytest.raises(BadInput, match="names no function"):
        worker.call("worker_targets:nothing")
    assert worker.call("worker_targets:echo", {"n": 1}).result == {"n": 1}


def test_what_cannot_travel_without_a_pickle_is_refused_on_both_sides(worker):
    with pytest.raises(BadInput, match="array 'o' of type object"):
        worker.call("worker_targets:echo", arrays={"o": np.array([{}], dtype=object)})
    with pytest.raises(BadInput, match="array 'o' of type object"):
        worker.call("worker_targets:unsendable")
    assert worker.call("worker_targets:echo").result == {}


def test_environment_and_threads():
    with Worker(threads=3, env={"HOME": None}) as worker:
        assert worker.call("worker_targets:limits").result == {"omp": "3", "home": None}


def test_an_exception_in_the_event_callback_stops_the_child(worker):
    pid = worker.call("worker_targets:keep", {"value": 1}).result["pid"]
    with pytest.raises(KeyError):
        worker.call("worker_targets:hang", on_event=lambda event: event["no such key"])
    assert gone(pid)
    assert not worker.alive


@pytest.mark.parametrize("error", [BrokenPipeError, EOFError, TimeoutError])
def test_the_callbacks_own_errors_are_not_taken_for_the_childs(worker, error):
    def fail(event):
        raise error("standard output is closed")

    with pytest.raises(error, match="standard output is closed"):
        worker.call("worker_targets:count", {"n": 1}, on_event=fail)


def test_a_flood_of_events_does_not_outrun_the_deadline(worker):
    with pytest.raises(WorkerTimeout):
        worker.call("worker_targets:count", {"n": 10**9}, timeout=0.5)


PARENT = """
import sys, threading
sys.path.insert(0, {here!r})
from octavo.workers.local import Worker
def start():
    global worker
    worker = Worker()
start() if {main!r} else [thread := threading.Thread(target=start), thread.start(), thread.join()]
try:
    worker.call("worker_targets:hang", {{"grandchild": {note!r}}}, on_event=lambda e: print("hanging", flush=True))
except KeyboardInterrupt:
    print("interrupted, alive:", worker.alive, flush=True)
"""


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "other thread"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_the_child_goes_with_its_parent(tmp_path, number, main):
    note = tmp_path / "pids"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(here=HERE, note=str(note), main=main)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "hanging\n"
    parent.send_signal(number)
    rest, _ = parent.communicate(timeout=10)
    assert rest == ("interrupted, alive: False\n" if number == signal.SIGINT else "")
    child, grandchild = map(int, note.read_text().split())
    assert gone(child)
    if number == signal.SIGKILL and main:
        os.kill(grandchild, signal.SIGKILL)  # nobody was left to do it: the kernel killed the child at once
    else:
        assert gone(grandchild)
