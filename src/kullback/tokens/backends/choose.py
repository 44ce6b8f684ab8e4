"""Which backend computes: the one named, or the first of `ORDER` that can.

Which to use: `backend="auto"` in every function of this folder; a name to insist on one. A new
backend is a module with the functions that `task` describes and a line in `MODULES`.
"""

import importlib
import os
from functools import cache
from typing import Any

from torch import Tensor

from kullback.core import ArgumentValueError, require
from kullback.tokens import limits

from .interface import Task

__all__ = ["MODULES", "ORDER", "choose", "direct", "usable"]

MODULES = {
    "reference": "kullback.tokens.backends.reference",
    "chunked": "kullback.tokens.backends.chunked",
    "native": "kullback.tokens.backends.native",
    "triton": "kullback.tokens.backends.triton_backend",
}
ORDER: tuple[str, ...] = ("triton", "native", "chunked")  # what "auto" tries, in this order


def choose(name: str, p: Tensor, q: Tensor | None, task: Task) -> Any:
    """Return the module of the backend `name`, or for "auto" the first that does not refuse.

    Raises `ArgumentValueError` for an unknown name, and with the reason when the named backend
    refuses.

    >>> import torch
    >>> choose("reference", torch.zeros(1, 2), None, Task(("entropy",))).__name__
    'kullback.tokens.backends.reference'
    """
    known = ("auto", *MODULES)
    require(name in known, "backend", " or ".join(map(repr, known)), repr(name))
    if name == "auto":
        modules = (_module(each) for each in ORDER)
        return next(m for m in modules if _worth(m, p) and not m.refusal(p, q, task))
    module = _module(name)
    reason = module.refusal(p, q, task)
    if reason:
        raise ArgumentValueError(f"backend: {name!r} cannot be used here: {reason}. Try: 'auto'")
    return module


def usable(p: Tensor, q: Tensor | None = None, *, task: Task | None = None) -> dict[str, str]:
    """Return, for every backend, "" when it can work on these logits, else why it cannot.

    Args:
        p: Logits `[*batch, vocab]`.
        q: Logits of the other side, or None where only p is measured.
        task: What is to be computed; if None, the entropy of p, or KL(p‖q) with q.

    Returns:
        A dictionary of the backends' names: "", or the reason in words.

    Example:
        >>> import torch
        >>> usable(torch.zeros(1, 2))["reference"]
        ''
    """
    task = task or Task(("entropy",) if q is None else ("kl",))
    return {name: _module(name).refusal(p, q, task) for name in MODULES}


_KL = Task(("kl",))


def direct(name: str, p: Tensor, q: Tensor) -> Any:
    """Return the module of `choose` that offers `kl` and `kl_slopes`, or None: for plain calls.

    `native` is asked only where it need not be compiled first.
    """
    native = _module("native")
    if name != "chunked" and native.ready() and not native.refusal(p, q, _KL):
        return None if _interpreted() else native
    if name == "native" or p.device.type != "cpu" or q.device.type != "cpu" or _interpreted():
        return None
    module = _module("chunked") if name == "chunked" else choose(name, p, q, _KL)
    return module if module is _module("chunked") else None


@cache
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _module(name: str) -> Any:
    return importlib.import_module(MODULES[name])


def _worth(module: Any, p: Tensor) -> bool:
    """Say whether "auto" tries it: few logits are not worth compiling for."""
    ready = getattr(module, "ready", None)
    return ready is None or p.numel() >= limits.COMPILED_FROM or bool(ready())
