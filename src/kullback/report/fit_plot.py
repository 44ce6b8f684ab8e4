"""Pictures of a fit: marginals and pairs of q, with draws of the truth beside them; its trace.

Which to use: `plot_fit` for marginals on the diagonal and pairs below it, with the trace in the
corner that this leaves free; `plot_trace` for the objective alone. Both return SVG text on a white
card, right on light and dark pages. Orange is q, blue the reference.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kullback.core import require

from .figures import BLUE, FAINT, ORANGE, figure_of, svg_of

__all__ = ["plot_fit", "plot_trace"]

_MOST = 6  # entries that are drawn
_DOTS, _BINS, _TAIL = 400, 40, 0.001


def plot_fit(
    draws: Mapping[str, Tensor],
    *,
    reference: Mapping[str, Tensor] | None = None,
    trace: Sequence[float] = (),
    title: str = "",
) -> str:
    """Draw the marginals of up to six parameter entries, and every pair of them, as SVG.

    draws: constrained draws of q, `{name: [n, *shape]}`; reference: draws of the truth under the
    same names, where there are any. trace: the objective by iteration, in nats. title: the verdict.
    Errors: `ArgumentValueError` for no draws, or a reference without one of the names drawn.

    >>> import torch
    >>> plot_fit({"mu": torch.randn(100)}, trace=[-3.0, -1.0]).startswith("<?xml")
    True
    """
    q = _entries(draws)
    require(bool(q), "draws", "at least one parameter that varies", "none")
    p = {} if reference is None else _entries(reference, only=q)
    names = list(q)
    size = len(names)
    side = max(size, 2)
    with figure_of(max(2.3 * side, 6.0), max(2.0 * size, 2.6)) as figure:
        axes = figure.subplots(size, side, squeeze=False)
        for row, name in enumerate(names):
            for column in range(side):
                axis = axes[row, column]
                if column == row:
                    _marginal(axis, q[name], p.get(name))
                    axis.set_title(name, fontsize=10)
                elif column < row:
                    other = names[column]
                    _pair(axis, (q[other], q[name]), (p.get(other), p.get(name)))
                else:
                    axis.set_axis_off()
                axis.tick_params(labelsize=7, colors=FAINT)
        if trace:
            axes[0, side - 1].set_axis_on()
            _trace(axes[0, side - 1], trace)
        if p:
            axes[0, 0].legend(fontsize=7, loc="upper right", handlelength=1.0)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, wrap=True)
        return svg_of(figure)


def plot_trace(trace: Sequence[float]) -> str:
    """Draw the objective against iterations, in nats, as SVG; values that are not finite are gaps.

    Errors: `ArgumentValueError` for an empty trace.

    >>> plot_trace([-9.0, -2.0, -1.0]).startswith("<?xml")
    True
    """
    require(len(trace) > 0, "trace", "at least one value", "none")
    with figure_of(6.0, 3.0) as figure:
        _trace(figure.subplots(), trace)
        return svg_of(figure)


def _entries(
    draws: Mapping[str, Tensor], only: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Flatten parameters to named columns that vary; the first six, or those asked for."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in draws.items():
        columns = value.detach().double().reshape(len(value), -1)
        for place, column in enumerate(columns.unbind(1)):
            index = np.unravel_index(place, tuple(value.shape[1:])) if value.ndim > 1 else ()
            label = f"{name}[{','.join(str(int(i) + 1) for i in index)}]" if index else name
            wanted = len(found) < _MOST if only is None else label in only
            if wanted and (only is not None or float(column.max()) > float(column.min())):
                found[label] = column.numpy()
    for label in only or ():
        require(label in found, "reference", f"draws of {label}", "none", "the names of the fit")
    return found


def _marginal(axis: Any, q: Any, p: Any) -> None:
    both = q if p is None else np.concatenate([q, p])
    low, high = np.quantile(both, [_TAIL, 1 - _TAIL])
    bins = np.linspace(low, high, _BINS + 1)
    if p is not None:
        axis.hist(p, bins, density=True, color=BLUE, alpha=0.3, label="reference")
    axis.hist(q, bins, density=True, histtype="step", color=ORANGE, linewidth=1.6, label="q")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def _pair(axis: Any, q: tuple[Any, Any], p: tuple[Any, Any]) -> None:
    dots = {"markersize": 4, "markeredgewidth": 0, "alpha": 0.5, "rasterized": False}
    for (x, y), color in ((p, BLUE), (q, ORANGE)):
        if x is not None and y is not None:
            axis.plot(_some(x), _some(y), ".", color=color, **dots)


def _some(values: Any) -> Any:
    return values[:: max(1, math.ceil(len(values) / _DOTS))]


def _trace(axis: Any, trace: Sequence[float]) -> None:
    """Draw the objective; the vertical axis follows what comes after the first tenth."""
    values = np.asarray(trace, dtype=float)
    values[~np.isfinite(values)] = np.nan
    axis.plot(values, color=ORANGE, linewidth=1.4)
    late = values[len(values) // 10 :]
    late = late[np.isfinite(late)]
    if len(late) and late.max() > late.min():
        room = 0.1 * (late.max() - late.min())
        axis.set_ylim(late.min() - room, late.max() + room)
    axis.set_title("objective, nats", fontsize=10)
    axis.set_xlabel("iteration", fontsize=8)
