"""A stateful model on a recording: frame by frame in order of time, each side carrying its own state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.estimate import Proportion, Ratio, finite
from octavo.errors import BadInput, nearest
from octavo.verify.data import Labelled
from octavo.verify.outputs import Arrays, OutputComparison, OutputsReport, named
from octavo.verify.preprocess import Preprocess
from octavo.verify.shapes import shown
from octavo.verify.sound import read_stream

BLOCKS = 30  # of time, the clusters of every interval: neighbouring frames are not independent
LEAST_BLOCK = 8  # frames
THRESHOLD = 0.5
EXAMPLE = "[stream] frame = 512, context = 64"
STEM = 3  # letters that two names must share to belong together


@dataclass(frozen=True, eq=False)
class Stream:
    """Frames float [n, size] in order of time for the input `name`; every other input is state, which starts as zeros.

    `shapes`: all inputs in the model's order. `carries`: {state input: position of the output that it becomes}.
    """

    frames: NDArray[Any]
    name: str
    shapes: dict[str, tuple[int, ...]]
    carries: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    labels: None = None

    def __len__(self) -> int:
        return len(self.frames)

    def part(self, start: int, stop: int | None = None) -> Stream:
        """Frames [start, stop), as a stream that starts afresh."""
        return replace(self, frames=self.frames[start:stop])

    def batches(self, size: int = 1) -> Iterator[Labelled]:
        """Single steps from a fresh state, for timing: a stream has no batches."""
        for frame in self.frames:
            yield Labelled(self.inputs_at(frame, self.fresh()))

    def fresh(self) -> dict[str, NDArray[Any]]:
        """The state before the first frame: zeros."""
        return {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items() if name != self.name}

    def inputs_at(self, frame: NDArray[Any], state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All inputs of one step, in the model's order."""
        return {name: frame.reshape(shape) if name == self.name else state[name] for name, shape in self.shapes.items()}

    def steps(self, run: Callable[[Any], Any]) -> Iterator[tuple[dict[str, NDArray[Any]], Arrays]]:
        """Run through the whole recording: the inputs of each step, state included, and what the model put out besides
        its state. The inputs are what a quantiser calibrates on."""
        state = self.fresh()
        carried = set(self.carries.values())
        for frame in self.frames:
            inputs = self.inputs_at(frame, state)
            outputs = list(named(run(inputs)).items())
            state = {name: np.asarray(outputs[at][1], np.float32) for name, at in self.carries.items()}
            yield inputs, {name: value for at, (name, value) in enumerate(outputs) if at not in carried}


def open_stream(
    path: Path, inputs: Mapping[str, tuple[int, ...]], preprocess: Preprocess, run: Callable[[Any], Any],
    outputs: Sequence[str] = (),
) -> Stream:  # fmt: skip
    """A recording for a model whose other inputs are its state. `run` is called once, to see which output is which
    state: as [stream] state says, else the output of the same shape (and, among several, of the likest name).

    Raises BadInput when the frames fit no input, or an input has no output that it comes from.
    """
    if preprocess.frame is None:
        raise BadInput(f"{path}: a recording is cut into frames; {preprocess.origin} does not say how.", EXAMPLE)
    context = preprocess.context or 0
    size = preprocess.frame + context
    fitting = [name for name, shape in inputs.items() if prod(shape) == size]
    if len(fitting) != 1:
        listing = ", ".join(f"{name} {list(shape)}" for name, shape in inputs.items())
        raise BadInput(
            f"{preprocess.origin}: frames of {preprocess.frame} samples and {context} of context fit "
            f"{'several' if fitting else 'none'} of the model's inputs: {listing}.",
            "Set frame and context under [stream].",
        )
    if free := [name for name, shape in inputs.items() if min(shape, default=0) < 0]:
        raise BadInput(f"The model's input {free[0]} {shown(inputs[free[0]])} has a free size.", "Fix it with --fix.")
    rate = preprocess.sample_rate or 16000
    frames = read_stream(path, preprocess.frame, context, sample_rate=rate)
    stream = Stream(frames, fitting[0], dict(inputs))
    carries = _wire(stream, named(run(stream.inputs_at(frames[0], stream.fresh()))), outputs, preprocess)
    note = f"{len(frames)} frames of {preprocess.frame / rate * 1e3:g} ms from {path.name}, in order of time"
    if carries:
        names = list(outputs) or [str(at) for at in range(max(carries.values()) + 1)]
        note += "; state: " + ", ".join(f"{name} from {names[at]}" for name, at in carries.items())
    return replace(stream, carries=carries, notes=(f"{note}.",))


def compare_stream(
    reference: Callable[[Any], Any], candidate: Callable[[Any], Any], stream: Stream, *, confidence: float = 0.95
) -> OutputsReport:
    """Both sides over the whole recording, each with its own state; blocks of time are the clusters.

    Where an output is one number in [0, 1] per frame, `agreement` is that of the decisions at 0.5, and `extra` has how
    often each side decided.
    """
    comparison, decisions = OutputComparison("values"), Decisions()
    block = max(LEAST_BLOCK, len(stream) // BLOCKS)
    sides = zip(stream.steps(reference), stream.steps(candidate), strict=True)
    for number, ((_, right), (_, found)) in enumerate(sides):
        comparison.add(right, found, number // block)
        decisions.add(right, found, number // block)
    report = comparison.report(confidence)
    extra = decisions.as_dict(confidence) | {"block_frames": block}
    return replace(report, agreement=decisions.agreement(confidence), extra={"decisions": extra} if decisions else {})


class Decisions:
    """Frames in which the two sides decide alike; false when the outputs are no probabilities."""

    def __init__(self) -> None:
        self._same, self._float, self._artifact = Proportion(), Proportion(), Proportion()
        self._shift = Ratio()
        self._any = True
        self._frames = 0

    def __bool__(self) -> bool:
        return self._any and self._frames > 0

    def add(self, right: Arrays, found: Arrays, cluster: int) -> None:
        if not self._any or len(right) != 1:
            self._any = False
            return
        r, a = (float(np.ravel(next(iter(side.values())))[0]) for side in (right, found))
        if next(iter(right.values())).size != 1 or not 0 <= r <= 1:
            self._any = False
            return
        self._frames += 1
        self._same.add(cluster, int((r > THRESHOLD) == (a > THRESHOLD)), 1)
        self._float.add(cluster, int(r > THRESHOLD), 1)
        self._artifact.add(cluster, int(a > THRESHOLD), 1)
        self._shift.add(cluster, abs(r - a))

    def agreement(self, confidence: float) -> Any:
        return self._same.estimate(confidence) if self else None

    def as_dict(self, confidence: float) -> dict[str, Any]:
        if not self:
            return {}
        return {
            "threshold": THRESHOLD, "frames": self._frames,
            "float": finite(self._float.estimate(confidence).value),
            "artifact": finite(self._artifact.estimate(confidence).value),
            "mean_difference": finite(self._shift.value),
        }  # fmt: skip


def _wire(stream: Stream, found: Arrays, names: Sequence[str], preprocess: Preprocess) -> dict[str, int]:
    """{state input: position of its output}. Raises BadInput where the rule does not decide."""
    outputs = list(found.values())
    known = list(names) if len(names) == len(outputs) else list(found)
    carries: dict[str, int] = {}
    for name, shape in stream.shapes.items():
        if name == stream.name:
            continue
        if name in preprocess.state:
            said = preprocess.state[name]
            if said not in known:
                raise BadInput(f"{preprocess.origin}: no output '{said}' for the state {name}.", nearest(said, known))
            carries[name] = known.index(said)
        else:
            alike = [at for at, value in enumerate(outputs) if value.shape == shape and at not in carries.values()]
            near = [at for at in alike if _akin(name, known[at])]
            alike = near if len(alike) > 1 and near else alike
            if len(alike) != 1:
                raise BadInput(
                    f"The model's input {name} {list(shape)} is no frame, and "
                    f"{'several outputs' if alike else 'no output'} could be the state that it carries: "
                    f"{', '.join(f'{n} {list(v.shape)}' for n, v in zip(known, outputs, strict=True))}.",
                    f'Say which in {preprocess.origin}: [stream] state = {{{name} = "OUTPUT"}}',
                )
            carries[name] = alike[0]
    unknown = [name for name in preprocess.state if name not in stream.shapes or name == stream.name]
    if unknown:
        raise BadInput(f"{preprocess.origin}: no state input '{unknown[0]}'.", nearest(unknown[0], stream.shapes))
    return carries


def _akin(one: str, other: str) -> bool:
    """Whether two names share their beginning or their end: state and stateN, h_in and h_out, prev_h and next_h."""
    a, b = (name.lower().replace("_in", "").replace("_out", "").replace("present", "past") for name in (one, other))
    stem = min(STEM, len(a), len(b))
    return a[:stem] == b[:stem] or a[-stem:] == b[-stem:]
