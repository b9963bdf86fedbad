"""What the latency model sees of a network: sixteen amounts, counted from its operators and nothing else.

Every reader's graph is counted by the same rules, so that a table of published architectures and a user's ONNX, TFLite
or exported program speak of the same things:

- a batch norm or a bias behind a convolution or matmul is folded into it, and relu-like clamps into what comes before;
- `x · sigmoid(x)` and the four operators around an `Erf` are one activation, as in formats that have SiLU and GELU;
- reshapes, splits, casts and quantisation are free; transpositions (`permuted`) and copies (`moved`) are not;
- a fused attention operator is its two products and their softmax;
- a recurrent layer is unrolled: every step of it costs STEP operators.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from octavo.core.facts import ModelFacts, OperatorFacts

TERMS: dict[str, str] = {
    "inference": "1: what every inference costs",
    "dense_gmacs": "10⁹ multiply-accumulates of ungrouped convolutions and of products with weights",
    "narrow_gmacs": "10⁹ multiply-accumulates of grouped convolutions, those of depthwise ones counted ten times",
    "mparameters": "10⁶ weights that operators read",
    "conv_melements": "10⁶ elements written by convolutions",
    "depthwise_melements": "10⁶ elements written by depthwise convolutions",
    "matmul_melements": "10⁶ elements written by products with weights",
    "attention_melements": "10⁶ elements written by products of two activations",
    "softmax_melements": "10⁶ elements written by softmax",
    "norm_melements": "10⁶ elements written by layer, group and instance norms",
    "activation_melements": "10⁶ elements written by activations other than relu-like ones",
    "elementwise_melements": "10⁶ elements written by additions, products and lone batch norms",
    "batchnorm_melements": "10⁶ elements written by batch norms that nothing folds (the ones above, once more)",
    "moved_melements": "10⁶ elements copied: concatenations, pads, rolls, resizes, gathers",
    "permuted_melements": "10⁶ elements transposed",
    "hundred_operators": "operators, in hundreds, that are not free; a recurrent step is STEP of them",
}
STEP = 12  # two products, their sum and bias, four gates, five pointwise operators of an LSTM cell
NOTHING_DONE = """
Reshape Squeeze Unsqueeze Flatten Identity Dropout Shape Size Slice Split Expand ConstantOfShape Range Cast CastLike
QuantizeLinear DequantizeLinear DynamicQuantizeLinear
RESHAPE SQUEEZE EXPAND_DIMS SLICE STRIDED_SLICE SPLIT SPLIT_V UNPACK SHAPE FILL RANGE CAST QUANTIZE DEQUANTIZE BITCAST
BROADCAST_TO VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE
view reshape _unsafe_view flatten unflatten squeeze unsqueeze expand expand_as split split_with_sizes chunk slice select
clone contiguous alias detach detach_ dropout dropout_ feature_dropout unbind copy copy_ arange zeros ones full
zeros_like ones_like full_like new_zeros scalar_tensor to _to_copy type_as float view_as reshape_as quantize_per_tensor
dequantize_per_tensor quantize_per_channel dequantize_per_channel lift_fresh_copy
"""
CLAMPS = "Relu Clip RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 relu relu_ relu6 relu6_ hardtanh hardtanh_ clamp clamp_"
FREE = frozenset(NOTHING_DONE.split())
RELU = frozenset(CLAMPS.split())
PERMUTED = frozenset(("Transpose", "TRANSPOSE", "permute", "transpose", "t"))
BATCH_NORM = frozenset(("BatchNormalization", "batch_norm", "_native_batch_norm_legit_no_training"))
ADD = frozenset(("Add", "ADD", "add", "add_"))
SIGMOID = frozenset(("Sigmoid", "HardSigmoid", "LOGISTIC", "sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_"))
ERF = frozenset(("Erf", "erf"))
WEIGHTED = ("conv", "depthwise", "matmul", "recurrent")
ELEMENTS = {
    "conv": "conv_melements", "depthwise": "depthwise_melements", "matmul": "matmul_melements",
    "attention": "attention_melements", "softmax": "softmax_melements", "norm": "norm_melements",
    "activation": "activation_melements", "elementwise": "elementwise_melements", "move": "moved_melements",
    "gather": "moved_melements",
}  # fmt: skip
Features = dict[str, float]
KEPT = 32
_counted: dict[int, tuple[ModelFacts, Features]] = {}  # by identity: hashing facts costs more than counting them


def features(facts: ModelFacts) -> Features:
    """The TERMS of a network at batch 1. Of anything but a network: none."""
    if facts.kind != "network":
        return {}
    known = _counted.get(id(facts))
    if known is None or known[0] is not facts:
        counter = _Counter(facts)
        for operator in facts.operators:
            counter.add(operator)
        if len(_counted) >= KEPT:
            _counted.pop(next(iter(_counted)), None)
        _counted[id(facts)] = known = facts, counter.found
    return dict(known[1])


class _Counter:
    def __init__(self, facts: ModelFacts) -> None:
        self.shape = {edge.name: edge.shape for edge in facts.edges}
        self.weight = {weight.name: weight.shape for weight in facts.weights}
        self.maker: dict[str, OperatorFacts] = {}
        self.read: set[str] = set()
        self.found: Features = dict.fromkeys(TERMS, 0.0) | {"inference": 1.0}

    def add(self, operator: OperatorFacts) -> None:
        if operator.kind in WEIGHTED:
            fresh = {name for name in operator.weights if name not in self.read}
            self.found["mparameters"] += sum(prod(self.weight[name]) for name in fresh) / 1e6
            self.read |= fresh
        if not self._free(operator):
            self._macs(operator)
            self._elements(operator)
        self.maker |= dict.fromkeys(operator.outputs, operator)

    def _free(self, operator: OperatorFacts) -> bool:
        if operator.op in FREE or operator.op in RELU or operator.kind == "other":
            return True
        if operator.op in BATCH_NORM or (operator.op in ADD and len(operator.inputs) == 1 and operator.weights):
            return self._behind_weights(operator)  # a bias, where a weight is all that is added
        if operator.kind == "elementwise" and len(operator.inputs) == 2:
            return self._gates(*operator.inputs)
        return False

    def _behind_weights(self, operator: OperatorFacts) -> bool:
        """Whether a product with weights made its input, seen through what is free."""
        while operator.inputs:
            made = self.maker.get(operator.inputs[0])
            if made is None or made.kind in ("conv", "depthwise", "matmul"):
                return made is not None
            if made.op not in FREE:
                return False
            operator = made
        return False

    def _gates(self, first: str, second: str) -> bool:
        """x · sigmoid(x), either way round."""
        for gate, value in ((first, second), (second, first)):
            made = self.maker.get(gate)
            if made is not None and made.op in SIGMOID and made.inputs[:1] == (value,):
                return True
        return False

    def _macs(self, operator: OperatorFacts) -> None:
        if operator.kind == "depthwise":
            self.found["narrow_gmacs"] += operator.macs / 1e8
        elif operator.kind == "conv" and self._grouped(operator):
            self.found["narrow_gmacs"] += operator.macs / 1e9
        elif operator.kind in ("conv", "matmul"):
            self.found["dense_gmacs"] += operator.macs / 1e9

    def _grouped(self, operator: OperatorFacts) -> bool:
        """Whether a filter sees fewer channels than come in: TFLite's channels are last, the others' second."""
        kernel = next((self.weight[name] for name in operator.weights if len(self.weight[name]) > 2), ())
        given = self.shape.get(operator.inputs[0], ()) if operator.inputs else ()
        if not kernel or len(given) != len(kernel) or "ranspose" in operator.op or "TRANSPOSE" in operator.op:
            return False
        channel = -1 if operator.op.isupper() else 1
        return kernel[channel] < given[channel]

    def _elements(self, operator: OperatorFacts) -> None:
        found, written = self.found, self._size(operator.outputs) / 1e6
        operators = 1.0
        if operator.op in PERMUTED:
            found["permuted_melements"] += written
        elif operator.op in BATCH_NORM:
            found["elementwise_melements"] += written
            found["batchnorm_melements"] += written
        elif operator.kind == "attention" and "attention" in operator.op.lower():
            scores = self._scores(operator) / 1e6
            found["attention_melements"] += written + scores
            found["softmax_melements"] += scores
            operators = 3.0
        elif operator.kind in ELEMENTS:
            found[ELEMENTS[operator.kind]] += written
        elif operator.kind == "recurrent":
            operators += STEP * self._steps(operator)
        found["hundred_operators"] += operators / 100
        if operator.op in ERF:  # x/√2, 1 +, · x, · ½ around it
            found["elementwise_melements"] -= 4 * written
            found["hundred_operators"] -= 0.04

    def _scores(self, operator: OperatorFacts) -> float:
        """Elements of QKᵀ in a fused attention, whose products are 2 · scores · head width."""
        query = self.shape.get(operator.inputs[0], ()) if operator.inputs else ()
        return operator.macs / (2 * query[-1]) if query else 0.0

    def _steps(self, operator: OperatorFacts) -> float:
        """Steps that follow one another, over all directions: products over (batch · weights), of the matrices."""
        matrices = [self.weight[name] for name in operator.weights if len(self.weight[name]) > 1]
        given = self.shape.get(operator.inputs[0], ()) if operator.inputs else ()
        if not matrices or len(given) != 3:
            return 1.0
        directions = matrices[0][0] if len(matrices[0]) == 3 else max(1, len(matrices) // 2)
        return float(_sequence(given, operator.op) * directions)

    def _size(self, edges: Iterable[str]) -> float:
        return float(sum(prod(self.shape.get(name, ())) for name in edges))


def _sequence(given: tuple[int, ...], op: str) -> int:
    """The length of [steps, batch, width] (ONNX) or [batch, steps, width] (batch first, as torch's are mostly used)."""
    return given[0] if op in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM") else given[1]
