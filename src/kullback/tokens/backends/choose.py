"""Which backend computes: the one named, or the first of `ORDER` that can.

Which to use: `backend="auto"` in every function of this folder; a name to insist on one. A new
backend is a module with the functions that `task` describes and a line in `MODULES`.
"""

import importlib
from typing import Any

from torch import Tensor

from kullback.core import ArgumentValueError, require

from .interface import Task

__all__ = ["MODULES", "ORDER", "choose", "usable"]

MODULES = {
    "reference": "kullback.tokens.backends.reference",
    "chunked": "kullback.tokens.backends.chunked",
    "native": "kullback.tokens.backends.native",
    "triton": "kullback.tokens.backends.triton_backend",
}
ORDER: tuple[str, ...] = ("triton", "native", "chunked")  # what "auto" tries, in this order
MANY = {"native": 1 << 16}  # logits from which "auto" tries it: fewer are not worth compiling for


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
        worth = (each for each in ORDER if p.numel() >= MANY.get(each, 0))
        modules = (importlib.import_module(MODULES[each]) for each in worth)
        return next(module for module in modules if not module.refusal(p, q, task))
    module = importlib.import_module(MODULES[name])
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
    return {
        name: importlib.import_module(module).refusal(p, q, task)
        for name, module in MODULES.items()
    }
