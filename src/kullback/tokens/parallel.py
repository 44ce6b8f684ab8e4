"""Old names of what the functions of `kullback.tokens` do with `Sharded`: aliases that warn."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .divergences import functions
from .divergences.functions import Comparison
from .divergences.sources import Sharded

__all__ = ["compare", "cross_entropy", "entropy", "jeffreys", "js", "kl", "log_prob"]


def kl(p_logits: Tensor, q_logits: Tensor, *, group: Any = None, **options: Any) -> Tensor:
    """Return `tokens.kl(Sharded(p_logits, group), Sharded(q_logits, group))`; deprecated."""
    found: Tensor = _of(functions.kl, (p_logits, q_logits), group, options)
    return found


def js(p_logits: Tensor, q_logits: Tensor, *, group: Any = None, **options: Any) -> Tensor:
    """Return `tokens.js(Sharded(p_logits, group), Sharded(q_logits, group))`; deprecated."""
    found: Tensor = _of(functions.js, (p_logits, q_logits), group, options)
    return found


def jeffreys(p_logits: Tensor, q_logits: Tensor, *, group: Any = None, **options: Any) -> Tensor:
    """Return `tokens.jeffreys(Sharded(p_logits, group), Sharded(q_logits, group))`; deprecated."""
    found: Tensor = _of(functions.jeffreys, (p_logits, q_logits), group, options)
    return found


def cross_entropy(
    p_logits: Tensor, q_logits: Tensor, *, group: Any = None, **options: Any
) -> Tensor:
    """Return `tokens.cross_entropy` of two `Sharded(logits, group)`; deprecated."""
    found: Tensor = _of(functions.cross_entropy, (p_logits, q_logits), group, options)
    return found


def compare(p_logits: Tensor, q_logits: Tensor, *, group: Any = None, **options: Any) -> Comparison:
    """Return `tokens.compare(Sharded(p_logits, group), Sharded(q_logits, group))`; deprecated."""
    found: Comparison = _of(functions.compare, (p_logits, q_logits), group, options)
    return found


def entropy(logits: Tensor, *, group: Any = None, **options: Any) -> Tensor:
    """Return `tokens.entropy(Sharded(logits, group))`; deprecated."""
    found: Tensor = _of(functions.entropy, (logits,), group, options)
    return found


def log_prob(logits: Tensor, ids: Tensor, *, group: Any = None, **options: Any) -> Tensor:
    """Return `tokens.log_prob(Sharded(logits, group), ids)`; deprecated."""
    found: Tensor = _of(functions.log_prob, (logits,), group, {"ids": ids} | options)
    return found


def _of(
    function: Callable[..., Any], logits: tuple[Tensor, ...], group: Any, options: dict[str, Any]
) -> Any:
    name = function.__name__
    given = ", ".join(["Sharded(logits, group)"] * len(logits))
    text = f"parallel.{name} is now kullback.tokens.{name}({given}, ...)"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return function(*(Sharded(x, group) for x in logits), **options)
