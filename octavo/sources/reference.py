"""The float original run in torch: what an artifact is compared with.

Language models run in transformers' own implementation, which shares no code with the programs that Octavo exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.core.model import Edge, Program, TensorValue
from octavo.errors import BadInput, Missing

Logits = Callable[[NDArray[np.int64]], NDArray[np.float32]]


class LanguageReference:
    """A causal language model in fp32: ids int64 [n] → logits float32 [n, vocabulary]."""

    def __init__(self, program: Program, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Build the model of a Hugging Face config and give it these tensors, one at a time.

        Raises Missing without transformers, BadInput for tensors that the model does not have.
        """
        try:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise Missing(
                f"The original runs in transformers, which is not installed ({error}).",
                "Install it with `pip install 'octavo[compress]'`.",
            ) from error
        from transformers.initialization import no_init_weights

        body = dict(program.body)
        config = AutoConfig.for_model(body.pop("model_type"), **body)
        with no_init_weights():
            model: Any = AutoModelForCausalLM
            self._model = model.from_config(config, dtype=torch.float32).eval()
        self._model.tie_weights()
        self._load(tensors)

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            logits = self._model(torch.from_numpy(np.asarray(ids, np.int64))[None], use_cache=False).logits[0]
            return np.asarray(logits.float().numpy())

    def _load(self, tensors: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        import torch

        own = self._model.state_dict()
        left = set(own)
        for name, values in tensors:
            if name not in own or tuple(own[name].shape) != values.shape:
                raise BadInput(f"{name} {list(values.shape)} is no tensor of this {self._model.config.model_type}.")
            own[name].copy_(torch.from_numpy(np.ascontiguousarray(values)))
            loaded = own[name].data_ptr()
            left -= {other for other in left if own[other].data_ptr() == loaded}
        if left:
            raise BadInput(f"{len(left)} tensors missing, first {min(left)}.")


class GraphReference:
    """A captured graph in fp32: {input: array} → {output: array}, named in the order of its signature."""

    def __init__(self, program: Program, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        from octavo.sources.torch import load_graph

        self._module = load_graph(program, tensors)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import torch

        with torch.inference_mode():
            found = self._module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        outputs = torch.utils._pytree.tree_leaves(found)
        return {f"output_{index}": value.numpy() for index, value in enumerate(outputs)}


class StaticReference(GraphReference):
    """A static model as it was calibrated: a captured graph with its edges quantised, run in torch."""

    def __init__(self, program: Program, edges: Iterable[Edge], tensors: Mapping[str, TensorValue]) -> None:
        from octavo.sources.qdq import static

        self._module, _ = static(program, edges, tensors)


class Remembered:
    """A reference that keeps what it answered, up to `limit` bytes, for comparing several candidates with it."""

    def __init__(self, run: Callable[[Any], Any], limit: int = 1 << 29) -> None:
        self._run, self._left = run, limit
        self._answers: dict[bytes, Any] = {}

    def __call__(self, inputs: Any) -> Any:
        arrays = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
        digest = blake2b(digest_size=32)  # the inputs themselves may be larger than the answers
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        key = digest.digest()
        if key in self._answers:
            return self._answers[key]
        answer = self._run(inputs)
        parts = answer.values() if isinstance(answer, Mapping) else (answer,)
        size = sum(np.asarray(part).nbytes for part in parts)
        if size <= self._left:
            self._left -= size
            self._answers[key] = answer
        return answer
