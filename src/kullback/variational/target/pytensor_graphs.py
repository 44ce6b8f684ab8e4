"""Graphs of PyTensor for one point, rewritten so that many points are evaluated in few calls.

`batched` is the function to call: a graph of one point vectorised over the rows of a matrix.
`switched` lets a point outside a parameter's bounds have log density −inf; `constants` finds the
numbers of a graph that are not finite.

PyTensor vectorises an operation that has no form for a batch by a loop in Python over its rows.
`Split` and `Alloc` are in the gradient of nearly every model: as slices and as an elementwise
operation they need no loop (64 points of a Gaussian random walk of 30 steps: 6.4 to 0.9 ms,
`benchmarks/pymc_graphs.py`). Two of its own rewrites are made before, since they are for one point.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...core import import_extra

__all__ = ["batched", "constants", "mode", "switched"]

OF_ONE_POINT = "slogdet_specialization", "batched_vector_b_solve_to_matrix_b_solve"


def switched(log_p: Any) -> Any:
    """Put a switch to −inf in the place of PyMC's checks of parameters, in a graph of one point."""
    switch = import_extra("pymc.logprob.utils", "pymc").local_check_parameter_to_ninf_switch
    return _rewritten([log_p], switch)[0]


def batched(outputs: Sequence[Any], flat: Any, size: int) -> tuple[Any, list[Any]]:
    """Vectorise a graph of one point, whose vector `flat` has `size` entries.

    Returns the matrix of points `[n, size]` and the outputs `[n, *shape]`.
    """
    tensor = import_extra("pytensor.tensor", "pymc")
    linalg = import_extra("pytensor.tensor.rewriting.linalg", "pymc")
    kept = [getattr(linalg, name) for name in OF_ONE_POINT if hasattr(linalg, name)]
    outputs = _rewritten(outputs, *kept)
    outputs = _rewritten(outputs, _slices(outputs, flat, size), _fills(flat))
    points = tensor.matrix("z", dtype=flat.dtype)
    vectorised = import_extra("pytensor.graph.replace", "pymc").vectorize_graph
    return points, vectorised(outputs, {flat: points})


def mode() -> Any:
    """PyTensor's mode without rewrites that fail on a batch."""
    modes = import_extra("pytensor.compile.mode", "pymc")
    return modes.get_default_mode().excluding(*OF_ONE_POINT)


def _rewritten(outputs: Sequence[Any], *rewriters: Any) -> list[Any]:
    """Apply rewriters of nodes everywhere, one after the other."""
    rewriting = import_extra("pytensor.graph.rewriting.basic", "pymc")
    function_graph = import_extra("pytensor.graph.fg", "pymc").FunctionGraph
    graph = function_graph(outputs=[*outputs], clone=False)
    for rewriter in rewriters:
        rewriting.dfs_rewriter(rewriter).rewrite(graph)
    return [*graph.outputs]


def _rewriter(of: Sequence[Any], change: Callable[[Any], Any]) -> Any:
    decorate = import_extra("pytensor.graph.rewriting.basic", "pymc").node_rewriter
    return decorate([*of])(lambda _graph, node: change(node))


def _slices(outputs: Sequence[Any], flat: Any, size: int) -> Any:
    """`Split` as slices; axis and sizes are the same for every point, and are computed once."""
    pytensor = import_extra("pytensor", "pymc")
    split = import_extra("pytensor.tensor.basic", "pymc").Split
    owners = {one.owner for output in outputs for one in _ancestors(output)}
    nodes = [node for node in owners if node is not None and isinstance(node.op, split)]
    asked = [part for node in nodes for part in node.inputs[1:]]
    computed = pytensor.function([flat], asked, mode="FAST_COMPILE", on_unused_input="ignore")
    found = computed(np.zeros(size, dtype=flat.dtype))
    known = dict(zip(nodes, zip(found[::2], found[1::2], strict=True), strict=True))

    def change(node: Any) -> list[Any]:
        x, (axis, sizes) = node.inputs[0], known[node]
        before = (slice(None),) * (int(axis) % x.type.ndim)
        ends = np.cumsum(sizes).tolist()
        return [x[(*before, slice(i, j))] for i, j in zip([0, *ends[:-1]], ends, strict=True)]

    return _rewriter([split], change)


def _fills(flat: Any) -> Any:
    """`Alloc` of what depends on the point, as the second of two arrays."""
    tensor = import_extra("pytensor.tensor", "pymc")
    alloc = import_extra("pytensor.tensor.basic", "pymc").Alloc

    def change(node: Any) -> list[Any] | None:
        value, *shape = node.inputs
        depends = any(one is flat for one in _ancestors(value))
        return [tensor.second(tensor.zeros(shape), value)] if depends else None

    return _rewriter([alloc], change)


def _ancestors(value: Any) -> Iterator[Any]:
    """Go through a variable and all that it is computed from, each once."""
    seen: set[Any] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        yield one
        waiting += one.owner.inputs if one.owner is not None else []


def constants(graph: Any) -> dict[str, Any]:
    """Return constant arrays of a graph of PyTensor that are not finite; they have no names."""
    found: dict[str, Any] = {}
    for one in _ancestors(graph):
        array = np.asarray(getattr(one, "data", 0.0))
        if array.ndim and array.dtype.kind == "f" and not np.isfinite(array).all():
            found.setdefault(f"an array of shape {list(array.shape)}, at ", array)
    return found
