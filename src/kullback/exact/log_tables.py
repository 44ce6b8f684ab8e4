"""Reading a probability table: probabilities, log-probabilities or logits become one `Table`.

Which to use: `read` turns a tensor into a checked `Table` (masses and their logs together);
`by_rows` reads tables and applies a function of them row by row, in blocks that stay in the cache
when no gradient is asked for.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, ArgumentValueError, require, require_type
from kullback.core.checks import describe, message

__all__ = ["Form", "Table", "by_rows", "read"]

Form = Literal["probs", "log_probs", "logits"]
BLOCK = 1 << 18  # elements of one block: a float32 array of that size is one megabyte


class Table:
    """Masses `[*batch, outcomes]` and their natural logs, of which one was given.

    A mass may underflow to 0 while its log is finite: `has` asks the one that was given. `full`
    says that every outcome has mass; `by_mass`, that masses were given.
    """

    def __init__(self, given: Tensor, *, by_mass: bool) -> None:
        self.given, self.by_mass = given, by_mass

    @cached_property
    def prob(self) -> Tensor:
        """The masses, ≥ 0."""
        return self.given if self.by_mass else self.given.exp()

    @cached_property
    def log(self) -> Tensor:
        """The logs, −inf where there is no mass; the gradient there is 0."""
        if not self.by_mass:
            return self.given
        if self.full or not self.given.requires_grad:
            return self.given.log()
        return self.given.masked_fill(~self.has, 1).log().masked_fill(~self.has, -math.inf)

    @cached_property
    def has(self) -> Tensor:
        """Where there is mass."""
        return self.given > (0.0 if self.by_mass else -math.inf)

    @cached_property
    def full(self) -> bool:
        """Whether there is mass everywhere."""
        lowest = self.given.detach().amin(-1)
        return bool((lowest > (0.0 if self.by_mass else -math.inf)).all())

    def where(self, live: Tensor) -> "Table":
        """Return the table with mass 1 outside `live`, so that nothing there can be NaN."""
        other = 1.0 if self.by_mass else 0.0
        return Table(self.given.masked_fill(~live, other), by_mass=self.by_mass)


def read(table: Tensor, *, form: Form = "probs", normalise: bool = False, name: str = "p") -> Table:
    """Turn a tensor `[*batch, outcomes]` into a `Table` whose last axis sums to 1.

    form: "probs" (masses ≥ 0), "log_probs" (natural logs, −inf for none), or "logits" (always
    normalised here, by softmax). normalise: divide by the sum instead of refusing one that is off.
    The sum may be off by `√eps` of the tensor's own dtype (3e-4 in float32, 0.09 in bfloat16), in
    float64 by 1e-6, since many such tables were float32 once. Half precision is widened to
    float32. Zero masses get zero gradient.
    Raises `ArgumentTypeError` unless a float tensor; `ArgumentValueError` for an unknown form, no
    outcomes, a negative or NaN mass, a row without mass or with infinite mass, a sum that is off.

    >>> read(torch.tensor([2.0, 1.0, 1.0]), normalise=True).prob
    tensor([0.5000, 0.2500, 0.2500])
    >>> read(torch.tensor([0.5, 0.4]))
    Traceback (most recent call last):
        ...
    kullback.core.errors.ArgumentValueError: p: expected rows of probs that sum to 1 within ...
    """
    _check_tensor(table, name)
    forms = ("probs", "log_probs", "logits")
    require(form in forms, "form", " or ".join(map(repr, forms)), repr(form))
    tolerance = max(torch.finfo(table.dtype).eps ** 0.5, 1e-6)
    table = table.float() if torch.finfo(table.dtype).bits < 32 else table
    if form == "probs":
        prob = _checked_probs(table, tolerance, normalise=normalise, name=name)
        return Table(prob, by_mass=True)
    top = table.detach().amax(-1)
    _check(torch.isfinite(top), top, name, "some mass in every row, none infinite or NaN")
    if form == "logits" or normalise:
        table = table.log_softmax(-1)
    else:
        _check_sum(table.detach().exp().sum(-1), tolerance, name, form)
    return Table(table, by_mass=False)


def by_rows(
    function: Callable[..., Tensor], *, form: Form, normalise: bool, **tables: Tensor
) -> Tensor:
    """Read the named tables, broadcast over leading axes, and apply `function` to the `Table`s.

    tables: `[*batch, outcomes]`, the same outcomes. `function` maps tables `[n, outcomes]` to
    `[n]` (or `[n, outcomes]`). Without gradients it runs over blocks of rows, so that no temporary
    is larger than a block or a row.

    >>> by_rows(lambda p: p.prob.amax(-1), form="logits", normalise=False, p=torch.zeros(2, 4))
    tensor([0.2500, 0.2500])
    """
    for name, table in tables.items():
        _check_tensor(table, name)
    sizes = {name: table.shape[-1] for name, table in tables.items()}
    require(len(set(sizes.values())) == 1, " and ".join(sizes), "the same outcomes", sizes)

    def apply(*rows: Tensor) -> Tensor:
        pairs = zip(tables, rows, strict=True)
        return function(*(read(r, form=form, normalise=normalise, name=n) for n, r in pairs))

    wide = torch.broadcast_tensors(*tables.values())  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled() and any(table.requires_grad for table in wide):
        return apply(*wide)
    return _in_blocks(apply, wide)


def _in_blocks(function: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    first = tensors[0]
    if first.numel() <= BLOCK or first.ndim == 1:
        return function(*tensors)
    step = max(1, BLOCK // math.prod(first.shape[1:]))
    starts = range(0, first.shape[0], step)
    if step == 1 and first.ndim > 2:
        return torch.stack([_in_blocks(function, tuple(t[i] for t in tensors)) for i in starts])
    return torch.cat([function(*(t[i : i + step] for t in tensors)) for i in starts])


def _check_tensor(table: Tensor, name: str) -> None:
    require_type(table, Tensor, name, "torch.as_tensor(...)")
    if not table.is_floating_point():
        raise ArgumentTypeError(message(name, "a float tensor", describe(table), "table.float()"))
    full = table.ndim >= 1 and table.shape[-1] >= 1
    require(full, name, "a tensor [*batch, outcomes] with outcomes ≥ 1", describe(table))


def _checked_probs(table: Tensor, tolerance: float, *, normalise: bool, name: str) -> Tensor:
    total = table.sum(-1)
    lowest = table.detach().amin(-1)
    _check(lowest >= 0, lowest, name, "masses of at least 0", "form='logits'?")
    if not normalise:
        _check_sum(total.detach(), tolerance, name, "probs")
        return table
    good = torch.isfinite(total) & (total > 0)
    _check(good, total.detach(), name, "rows with a finite, positive sum")
    return table / total[..., None]


def _check_sum(total: Tensor, tolerance: float, name: str, form: str) -> None:
    expected = f"rows of {form} that sum to 1 within {tolerance:.1e}"
    hint = "normalise=True, or say form='probs', 'log_probs' or 'logits'"
    _check((total - 1).abs() <= tolerance, total, name, expected, hint)


def _check(good: Tensor, shown: Tensor, name: str, expected: str, hint: str = "") -> None:
    """Require that every row is good; the message shows the first that is not."""
    if bool(good.all()):
        return
    raise ArgumentValueError(message(name, expected, f"{shown[~good][0].item():.9g}", hint))
