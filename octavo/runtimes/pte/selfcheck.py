"""Does ExecuTorch work here? A net of one addition, lowered to XNNPACK, loaded and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from octavo.errors import OctavoError
from octavo.workers.local import Worker

SECONDS = 180  # a cold start of a slow disk, no more


def check() -> str:
    """Run `one_addition` in a worker, since a broken build may abort. Returns what is wrong, nothing if all is well."""
    try:
        with Worker(threads=1) as worker:
            reply = worker.call("octavo.runtimes.pte.selfcheck:one_addition", timeout=SECONDS)
    except OctavoError as error:
        return f"It cannot lower and run an addition: {error.message.splitlines()[0]}"
    found = reply.arrays["y"].tolist()
    if not reply.result["delegated"]:
        return "XNNPACK is not among the runtime's backends."
    return "" if found == [3.0, 5.0] else f"An addition gives {found}, not [3.0, 5.0]."


def one_addition(
    params: dict[str, Any], arrays: dict[str, NDArray[Any]], emit: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A worker's target: [1, 2] + [2, 3] on XNNPACK. Returns y float32 [2]."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib as runtime

    class Sum(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    given = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])
    edge = to_edge_transform_and_lower(torch.export.export(Sum().eval(), given), partitioner=[XnnpackPartitioner()])
    program = edge.to_executorch().buffer  # the runtime reads from it, and does not keep it alive
    module = runtime._load_for_executorch_from_buffer(program)
    delegated = "XnnpackBackend" in runtime._get_registered_backend_names()
    return {"delegated": delegated}, {"y": module.forward(given)[0].numpy()}
