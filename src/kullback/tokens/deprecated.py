"""Old names of what the functions of `kullback.tokens` do with a source: aliases that warn.

`kl_from_hidden` and its like made two `HiddenStates`; the functions of `kullback.tokens.parallel`,
now here, made `Sharded` logits.
"""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from .divergences import functions
from .divergences.functions import Comparison
from .divergences.sources import HiddenStates, Sharded
from .losses import distillation

__all__ = ["compare_from_hidden", "distill_terms_from_hidden", "js_from_hidden", "kl_from_hidden"]

SHARDED = ("compare", "cross_entropy", "entropy", "jeffreys", "js", "kl", "log_prob")
T = TypeVar("T")


def _from_hidden(new: Callable[..., T], first: str = "p", second: str = "q") -> Callable[..., T]:
    """Return the old `NAME_from_hidden` of a function of two sources, called `first` and `second`.

    It takes hidden states, head, hidden states, head, and one `soft_cap` for both sides or a pair.
    """
    places = [f"{side}_{part}" for side in (first, second) for part in ("hidden", "head")]

    def alias(
        *tensors: Tensor,
        soft_cap: float | tuple[float | None, float | None] | None = None,
        memory: int | None = None,
        **options: Any,
    ) -> T:
        sources = "HiddenStates(hidden, head, bias=, softcap=, memory=), HiddenStates(...)"
        old, now = alias.__name__, new.__name__
        text = f"{old} is now {now} of two sources: {now}({sources})"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        given = dict(zip(places, tensors, strict=False))
        given |= {name: options.pop(name) for name in places[len(tensors) :]}
        caps = soft_cap if isinstance(soft_cap, tuple) else (soft_cap, soft_cap)
        sides = [
            HiddenStates(
                given[f"{side}_hidden"],
                given[f"{side}_head"],
                bias=options.pop(f"{side}_bias", None),
                softcap=cap,
                memory=memory,
            )
            for side, cap in zip((first, second), caps, strict=True)
        ]
        return new(*sides, **options)

    alias.__name__ = alias.__qualname__ = f"{new.__name__}_from_hidden"
    alias.__doc__ = f"""Return `{new.__name__}` of two `HiddenStates`; deprecated.

    Args:
        tensors: {", ".join(f"`{place}`" for place in places)}: hidden states `[*batch, width]`
            and head `[vocab, width]` of one side, then of the other.
        soft_cap: `softcap` of both `HiddenStates`, or a pair of one for each; None for none.
        memory: `memory` of both `HiddenStates`.
        options: `{first}_bias` and `{second}_bias`, `[vocab]`, and the options of `{new.__name__}`.

    Returns:
        What `{new.__name__}` returns.
    """
    return alias


def _of_slices(new: Callable[..., T], *sides: str) -> Callable[..., T]:
    """Return the old function of slices of logits, which were called `sides`, in a group."""

    def alias(*given: Tensor, group: Any = None, **options: Any) -> T:
        name, sources = new.__name__, ", ".join(["Sharded(logits, group)"] * len(sides))
        text = f"parallel.{name} is now kullback.tokens.{name}({sources}, ...)"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        logits = [*given[: len(sides)], *(options.pop(side) for side in sides[len(given) :])]
        return new(*(Sharded(x, group) for x in logits), *given[len(sides) :], **options)

    alias.__name__ = alias.__qualname__ = new.__name__
    alias.__doc__ = f"Return `kullback.tokens.{new.__name__}` of `Sharded` logits; deprecated."
    return alias


kl_from_hidden: Callable[..., Tensor] = _from_hidden(functions.kl)
js_from_hidden: Callable[..., Tensor] = _from_hidden(functions.js)
compare_from_hidden: Callable[..., Comparison] = _from_hidden(functions.compare)
distill_terms_from_hidden: Callable[..., Tensor] = _from_hidden(
    distillation.distill_terms, "student", "teacher"
)

_PAIR = ("p_logits", "q_logits")
kl: Callable[..., Tensor] = _of_slices(functions.kl, *_PAIR)
js: Callable[..., Tensor] = _of_slices(functions.js, *_PAIR)
jeffreys: Callable[..., Tensor] = _of_slices(functions.jeffreys, *_PAIR)
cross_entropy: Callable[..., Tensor] = _of_slices(functions.cross_entropy, *_PAIR)
compare: Callable[..., Comparison] = _of_slices(functions.compare, *_PAIR)
entropy: Callable[..., Tensor] = _of_slices(functions.entropy, "logits")
log_prob: Callable[..., Tensor] = _of_slices(functions.log_prob, "logits")
