"""torch modules and exported programs, as open program forms: torch.export's own JSON schema, and named tensors.

Nothing here unpickles. The JSON is checked before torch reads it, because parts of that schema are expressions and
names that torch would evaluate: operators must be tensor operators, expressions arithmetic over sizes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.architecture import Role
from octavo.core.model import Program
from octavo.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

Described = tuple[Program, list[tuple[str, NDArray[np.float32], Role]]]
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
TARGET = re.compile(
    r"torch\.ops\.(aten|quantized_decomposed|torchao)\.\w+\.\w+|_operator\.\w+|math\.\w+|torch\.sym_\w+"
    r"|torch\._sym_sqrt"
)
FORBIDDEN_TARGETS = ("torch.ops.aten.from_file.",)
SYMBOLS = re.compile(  # the words of a size expression: sympy's constructors of numbers, sizes and arithmetic
    r"[suz]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Abs|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv"
    r"|True|False|positive|nonnegative|negative|integer|real|precision|evaluate"
)
PLAIN_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def capture(module: torch.nn.Module, example_inputs: tuple[Any, ...], dynamic_shapes: Any = None) -> ExportedProgram:
    """Export `module` with torch.export. `dynamic_shapes` as there: which sizes may vary.

    Raises BadInput when the module is in training mode, or when torch cannot capture it (with torch's own reason).
    """
    import torch

    if any(part.training for part in module.modules()):
        raise BadInput(f"{type(module).__name__} is in training mode.", "Call its .eval() first.")
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(example_inputs), dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # torch.export raises some twenty kinds, all of them about the user's module
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"torch.export cannot capture {type(module).__name__}: {reason[0]}", "Its forward must be a static graph."
        ) from error


def describe(exported: ExportedProgram) -> Described:
    """The open program form, and [(name, float32 values, role)] of its parameters and buffers.

    Tied parameters appear once; integer and scalar constants are part of the program, since no scheme touches them.
    Raises BadInput for a graph that mutates its state, and for float types other than float32.
    """
    from torch._export.serde import serialize

    mutated = [str(spec.target) for spec in exported.graph_signature.output_specs if spec.kind.name != "USER_OUTPUT"]
    if mutated:
        raise BadInput(f"The graph changes {', '.join(mutated)} as it runs.", "Export it in .eval() mode.")
    artifact = serialize.serialize(
        exported, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
    )
    body = json.loads(artifact.exported_program)
    _forget_where_it_was_made(body)
    roles, used = _roles(exported)
    values = _values(exported)
    program: dict[str, Any] = {"exported": body, "constants": {}, "aliases": {}, "unused": {}}
    tensors: list[tuple[str, NDArray[np.float32], Role]] = []
    kept = {_identity(values[name]): name for name in values if name in used}
    for name, value in values.items():
        same = kept.get(_identity(value))
        if same not in (None, name):
            program["aliases"][name] = same
        elif value.dim() == 0 or not value.is_floating_point():
            program["constants"][name] = _to_json(value)
        elif name not in used:
            program["unused"][name] = list(value.shape)
        elif str(value.dtype) != "torch.float32":
            raise BadInput(
                f"{name} is {value.dtype}.", "Call module.float() before capture: schemes start from float32."
            )
        else:
            tensors.append((name, value.detach().contiguous().numpy(), roles.get(name, "other")))
    checked(program)
    return Program("graph", program), tensors


def rebuild(program: Program, arrays: Mapping[str, NDArray[Any]] | None = None) -> ExportedProgram:
    """The exported program again, with these tensors; without any, its weights are zeros that take no memory.

    Raises BadInput when the program is damaged or asks for anything but tensor arithmetic, or a tensor is missing.
    """
    import torch
    from torch._export.serde import schema, serialize

    body = checked(program.body)
    state: dict[str, torch.Tensor] = {}
    constants: dict[str, torch.Tensor] = {}
    try:
        for name, shape, place in _declared(body["exported"]):
            tensor = _tensor(name, shape, body, arrays)
            if place == "parameter":
                tensor = torch.nn.Parameter(tensor, requires_grad=False)
            (state if place in ("parameter", "buffer") else constants)[name] = tensor
        exported = serialize._dict_to_dataclass(schema.ExportedProgram, body["exported"])  # type: ignore[no-untyped-call]
        return serialize.ExportedProgramDeserializer().deserialize(exported, state, constants)
    except BadInput:
        raise
    except Exception as error:  # torch's reader checks nothing: whatever it trips over, the file is at fault
        raise BadInput(f"The program graph is damaged ({type(error).__name__}: {error}).", "Compress again.") from error


def inputs_of(program: Program) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors that a graph takes, in order; −1 where a size is free."""
    module = program.body["exported"]["graph_module"]
    metas = module["graph"]["tensor_values"]
    given = [spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec]
    names = [argument["as_tensor"]["name"] for argument in given if "as_tensor" in argument]
    return {name: tuple(size.get("as_int", -1) for size in metas[name]["sizes"]) for name in names}


def load_graph(program: Program, tensors: Mapping[str, NDArray[Any]]) -> torch.nn.Module:
    """A module that runs: `rebuild(program, tensors).module()`."""
    return rebuild(program, tensors).module()


def checked(body: dict[str, Any]) -> dict[str, Any]:
    """Return `body` when nothing in it could make torch do more than tensor arithmetic. Raises BadInput."""
    exported = body.get("exported")
    if not isinstance(exported, dict) or set(body) != {"exported", "constants", "aliases", "unused"}:
        raise BadInput("The program graph is damaged: it has not the parts of a graph.", "Compress again.")
    if exported.get("guards_code"):
        raise BadInput("The program graph carries Python code.", "Octavo runs none that comes with a model.")
    for key, value in _walk(exported):
        if key == "target":
            if not TARGET.fullmatch(str(value)) or value.startswith(FORBIDDEN_TARGETS):
                raise BadInput(f"The program graph calls '{value}'.", "Only tensor operators are allowed.")
        elif key == "expr_str" and any(not SYMBOLS.fullmatch(word) for word in re.findall(r"[^\W\d]\w*", str(value))):
            raise BadInput(f"The program graph has the size expression '{value}'.", "Only arithmetic is allowed.")
        elif key in ("in_spec", "out_spec"):
            _check_tree(value)
        elif key in ("as_custom_obj", "as_operator", "custom_obj", "treespec_namedtuple_fields") and value:
            raise BadInput(f"The program graph carries {key}.", "Only tensors and numbers are allowed.")
    return body


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) pair of nested JSON."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item.items()
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _check_tree(text: Any) -> None:
    """How inputs and outputs nest: only plain containers, since others name classes to import."""
    try:
        kinds = [value for key, value in _walk(json.loads(text)) if key == "type"]
    except (TypeError, ValueError) as error:
        raise BadInput(f"The program graph is damaged ({error}).", "Compress again.") from error
    if "__enum__" in text or any(kind not in PLAIN_TREES for kind in kinds):
        raise BadInput(f"The program's inputs or outputs nest in {kinds}.", "Use tuples, lists and dicts.")


def _forget_where_it_was_made(body: dict[str, Any]) -> None:
    """Drop source lines and paths: they are nobody's business, and would make equal programs differ."""
    body["guards_code"] = []
    for key, value in _walk(body):
        if key == "nodes":
            for node in value:
                node["metadata"] = {}


def _declared(exported: dict[str, Any]) -> Iterator[tuple[str, list[int], str]]:
    """(name, shape, place) of every tensor the graph takes besides its inputs."""
    metas = exported["graph_module"]["graph"]["tensor_values"]
    for spec in exported["graph_module"]["signature"]["input_specs"]:
        for kind, key in (("parameter",) * 2, ("buffer",) * 2, ("tensor_constant",) * 2):
            if kind in spec:
                entry = spec[kind]
                shape = [size["as_int"] for size in metas[entry["arg"]["name"]]["sizes"]]
                place = "constant" if kind == "tensor_constant" or entry.get("persistent") is False else kind
                yield entry[f"{key}_name"], shape, place


def _tensor(
    name: str, shape: list[int], body: dict[str, Any], arrays: Mapping[str, NDArray[Any]] | None
) -> torch.Tensor:
    import torch

    name = body["aliases"].get(name, name)
    if name in body["constants"]:
        return _from_json(body["constants"][name])
    if arrays is None or name in body["unused"]:
        return torch.zeros(1).expand(shape)
    if name not in arrays or list(arrays[name].shape) != shape:
        found = f"has shape {list(arrays[name].shape)}" if name in arrays else "is missing"
        raise BadInput(f"{name} {found}; the program needs {shape}.")
    return torch.from_numpy(np.ascontiguousarray(arrays[name], np.float32))


def _values(exported: ExportedProgram) -> dict[str, torch.Tensor]:
    """Every tensor the graph takes besides its inputs, by name, in the order of its signature."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            continue
        value = exported.state_dict.get(str(spec.target), exported.constants.get(str(spec.target)))
        if not isinstance(value, torch.Tensor):
            raise BadInput(f"The graph holds {spec.target}, a {type(value).__name__}.", "Only tensors can be carried.")
        found[str(spec.target)] = value
    return found


def _roles(exported: ExportedProgram) -> tuple[dict[str, Role], set[str]]:
    """What each tensor does, and which are used at all; one that does several things is `other`, except that an
    embedding may also be a linear layer's weight (tied)."""
    targets = {spec.arg.name: str(spec.target) for spec in exported.graph_signature.input_specs if spec.target}
    roles: dict[str, Role] = {}
    used: set[str] = set()
    for node in exported.graph.nodes:
        if node.op != "placeholder" or node.name not in targets or not node.users:
            continue
        name = targets[node.name]
        used.add(name)
        found = {_role_in(user, node) for user in node.users}
        roles[name] = found.pop() if len(found) == 1 else "embedding" if found == {"embedding", "matmul"} else "other"
    return roles, used


def _role_in(user: Any, node: Any) -> Role:
    """What `user` does with the tensor `node`; `other` unless axis 0 is surely the output channel."""
    parts = str(user.target).split(".")
    operator = parts[1] if len(parts) > 1 else ""
    arguments = list(user.args)
    if operator == "linear" and arguments[1] is node and arguments[0] is not node:
        return "matmul"
    if operator in CONVOLUTIONS and arguments[1] is node and not (operator == "convolution" and arguments[6]):
        return "conv"
    if operator == "embedding" and arguments[0] is node:
        return "embedding"
    if operator == "t" or (operator in ("transpose", "permute") and len(node.meta["val"].shape) == 2):
        multiplied = [str(other.target).split(".")[1] for other in user.users if other.args[-1] is user]
        if multiplied and len(multiplied) == len(user.users) and set(multiplied) <= {"mm", "addmm", "matmul"}:
            return "matmul"
    return "other"


def _identity(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
    """Equal for two names of the same values."""
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype)


def _to_json(tensor: torch.Tensor) -> dict[str, Any]:
    array = tensor.detach().contiguous().numpy()
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.newbyteorder("<").str, "shape": list(array.shape), "data": data}


def _from_json(item: dict[str, Any]) -> torch.Tensor:
    import torch

    flat = np.frombuffer(base64.b64decode(item["data"]), np.dtype(item["dtype"])).copy()
    return torch.from_numpy(flat).reshape(item["shape"])
