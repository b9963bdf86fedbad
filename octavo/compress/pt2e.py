"""The same rules as a quantiser for torchao's prepare_pt2e and convert_pt2e, for those who work there.

module = torch.export.export(net, example).module()
prepared = prepare_pt2e(module, OctavoQuantizer())
...                                     # run calibration samples through `prepared`
converted = convert_pt2e(prepared)
"""

from __future__ import annotations

from functools import cache
from typing import Any

from octavo.compress.annotate import Group, Plan, annotate
from octavo.compress.nodes import CONVOLUTIONS, operator
from octavo.compress.observers import LEVELS, Histogram, grid, observer
from octavo.errors import Missing


def octavo_quantizer(target: str = "common", dtype: str = "int8", how: str = "mse") -> Any:
    """A torchao Quantizer over the table of `target`: symmetric int8 weights per output channel (`compress.codes`),
    activations of `dtype` by the observer `how`. Raises Missing without torchao."""
    return _classes()[0](target, dtype, how)


@cache
def _classes() -> tuple[Any, Any, Any]:
    try:
        import torchao.quantization.pt2e.quantizer as base
        from torchao.quantization.pt2e.observer import ObserverBase
        from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY as KEY
    except ImportError as error:
        raise Missing("prepare_pt2e is torchao's, which is not installed.", "pip install 'octavo[compress]'") from error
    import torch

    class ActivationObserver(ObserverBase):  # type: ignore[misc]
        """Counts values and chooses their grid as `calibrate` does."""

        def __init__(self, dtype: torch.dtype, kind: str = "int8", how: str = "mse", **_: Any) -> None:
            super().__init__(dtype=dtype)
            self.kind, self.how, self.seen = kind, how, Histogram()
            self.quant_min, self.quant_max = LEVELS[kind]
            self.qscheme, self.ch_axis = torch.per_tensor_affine, -1
            self.eps = torch.finfo(torch.float32).eps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add(x.detach().float().contiguous().numpy())
            return x

        def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            chosen = observer(self.how)(self.seen, self.kind)
            return torch.tensor([chosen.scale], dtype=torch.float64), torch.tensor([chosen.zero_point])

    class WeightObserver(ObserverBase):  # type: ignore[misc]
        """Finds the scales that `compress.codes` finds."""

        def __init__(self, dtype: torch.dtype, **_: Any) -> None:
            super().__init__(dtype=dtype)
            self.quant_min, self.quant_max = -127, 127
            self.qscheme, self.ch_axis = torch.per_channel_symmetric, 0
            self.eps = torch.finfo(torch.float32).eps
            self.scale = torch.ones(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            from octavo.compress.codes import code

            self.scale = torch.from_numpy(code("weight", x.detach().numpy(), "w8a8").scale.reshape(-1).copy())
            return x

        def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return self.scale, torch.zeros(self.scale.numel(), dtype=torch.int64)

    class OctavoQuantizer(base.Quantizer):  # type: ignore[misc]
        """`annotate`'s plan, written on the nodes as torchao wants it."""

        def __init__(self, target: str, dtype: str, how: str) -> None:
            self.target, self.dtype, self.how = target, dtype, how

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            own, biases = _weights(model.graph)
            plan = annotate(model.graph, self.target, self.dtype, weights={*own, *biases})
            specs = _Specs(base, plan, ActivationObserver, self.how)
            weight = base.QuantizationSpec(torch.int8, WeightObserver, -127, 127, torch.per_channel_symmetric, 0)
            nodes = {node.name: node for node in model.graph.nodes}
            for name in plan.names:
                nodes[name].meta[KEY] = base.QuantizationAnnotation(output_qspec=specs.of(name, nodes), _annotated=True)
            for name, user in own.items():
                held = nodes[user].meta.setdefault(KEY, base.QuantizationAnnotation(_annotated=True))
                held.input_qspec_map[nodes[name]] = weight
            for node in nodes.values():
                held = node.meta.get(KEY)
                for item in node.all_input_nodes if held is not None else ():
                    if item.name in plan.names:
                        held.input_qspec_map[item] = base.SharedQuantizationSpec(item)
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """The plan is valid by construction."""

    return OctavoQuantizer, ActivationObserver, WeightObserver


class _Specs:
    """One specification per group: the first member's own, the others share it."""

    def __init__(self, base: Any, plan: Plan, watcher: Any, how: str) -> None:
        self.base, self.plan, self.watcher, self.how = base, plan, watcher, how
        self.group = {name: group for group in plan.groups for name in group.names}

    def of(self, name: str, nodes: dict[str, Any]) -> Any:
        import torch

        group: Group = self.group[name]
        kind = getattr(torch, self.plan.dtype)
        low, high = LEVELS[self.plan.dtype]
        if group.fixed is not None:
            scale, zero = group.fixed
            return self.base.FixedQParamsQuantizationSpec(kind, scale, zero, low, high, torch.per_tensor_affine)
        if name != group.names[0]:
            return self.base.SharedQuantizationSpec(nodes[group.names[0]])
        made = self.watcher.with_args(kind=self.plan.dtype, how=self.how)
        return self.base.QuantizationSpec(kind, made, low, high, torch.per_tensor_affine)


def _weights(graph: Any) -> tuple[dict[str, str], set[str]]:
    """({weight's node: the layer that reads it}, biases) of a module's graph, where parameters are attributes."""
    own: dict[str, str] = {}
    biases: set[str] = set()
    for node in graph.nodes:
        name = operator(node)
        if name != "linear" and name not in CONVOLUTIONS:
            continue
        weight = node.args[1]
        if weight.op == "get_attr":
            own[weight.name] = node.name
            bias = node.args[2] if len(node.args) > 2 else None
            biases |= {bias.name} if bias is not None else set()
    return own, biases


def range_of(low: float, high: float, dtype: str = "int8") -> tuple[float, int]:
    """(scale, zero point) that covers [low, high], as all of Octavo's observers make them."""
    made = grid(low, high, dtype)
    return made.scale, made.zero_point
