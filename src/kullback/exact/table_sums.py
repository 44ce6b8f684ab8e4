"""Reading a probability table: probabilities, log-probabilities or logits become one `Table`.

Which to use: `read` turns a tensor into a checked `Table` (masses and their logs together);
`by_rows` reads tables and applies a function of them row by row, in blocks that stay in the cache
when no gradient is asked for.

The sums behind `tables`, on `Table`s already read: `[n, outcomes]` → `[n]`, in nats.

Which to use: none of these directly; `tables` is the face. `alpha_sum` is the one family that KL
(α = 1), χ² (α = 2), Hellinger (α = ½), Tsallis and Rényi are read from.

Each divergence is a sum of terms ≥ 0 (`p·log(p/q) − p + q` for KL), built from the difference
`q − p` and the log ratio `log q/p`, both without cancellation: a table of probabilities gives
the difference exactly, a table of logs gives the ratio. Rounding below zero is lifted to zero.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kullback.core import (
    ArgumentTypeError,
    ArgumentValueError,
    describe,
    message,
    require,
    require_type,
)

from . import limits

__all__ = [
    "Form",
    "Table",
    "alpha_sum",
    "by_rows",
    "cross_sum",
    "jeffreys_sum",
    "js_sum",
    "read",
    "renyi_sum",
]

Form = Literal["probs", "log_probs", "logits"]


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
    half = torch.finfo(table.dtype).eps > torch.finfo(torch.float32).eps
    table = table.float() if half else table
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
    """Apply `function` to blocks of rows, writing into one result.

    Kept apart and joined at the end, the small results would sit between the freed blocks, and the
    heap would grow by a block each.
    """
    first = tensors[0]
    if first.numel() <= limits.BLOCK_ELEMENTS or first.ndim == 1:
        return function(*tensors)
    step = max(1, limits.BLOCK_ELEMENTS // math.prod(first.shape[1:]))
    result = None
    for start in range(0, first.shape[0], step):
        rows = slice(start, start + step)
        part = _in_blocks(function, tuple(t[rows] if step > 1 else t[start] for t in tensors))
        part = part if step > 1 else part[None]
        result = part.new_empty(first.shape[0], *part.shape[1:]) if result is None else result
        result[rows] = part
    return function(*tensors) if result is None else result


def _check_tensor(table: Tensor, name: str) -> None:
    require_type(table, Tensor, name, "torch.as_tensor(...)")
    if not table.is_floating_point():
        raise ArgumentTypeError(message(name, "a float tensor", describe(table), "table.float()"))
    full = table.ndim >= 1 and table.shape[-1] >= 1
    require(full, name, "a tensor [*batch, outcomes] with outcomes ≥ 1", describe(table))


def _checked_probs(table: Tensor, tolerance: float, *, normalise: bool, name: str) -> Tensor:
    total = table.sum(-1)
    lowest = table.detach().amin(-1)
    missing = bool(lowest.isnan().any())
    hint = "fill or drop missing values" if missing else "form='logits'?"
    _check(lowest >= 0, lowest, name, "masses of at least 0", hint)
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


def cross_sum(p: Table, q: Table) -> Tensor:
    """Return `−Σ p log q`, with 0·log 0 = 0 and +inf where q lacks mass that p has."""
    if q.full:
        return 0 - (p.prob * q.log).sum(-1)
    terms = p.prob * q.log.masked_fill(~q.has, 0)
    return 0 - terms.masked_fill(p.has & ~q.has, -math.inf).sum(-1)


def alpha_sum(p: Table, q: Table, alpha: float) -> Tensor:
    """Return `Σ (p^α q^(1−α) − α p − (1−α) q) / (α − 1)`, or KL at α = 1; every term is ≥ 0.

    With `l = log q/p` and `β = 1 − α` a term is `(q − p) − p·(e^(β l) − 1)/β`, and the fraction
    tends to l as α → 1. For small l it is `p·[(e^l − 1 − l) − (e^(β l) − 1 − β l)/β]`, where the
    two parts that cancel are gone.
    """
    beta = 1.0 - alpha
    live, a, b = _both(p, q)
    log_ratio = _log_ratio(a, b)
    powers = _powers(a, log_ratio, beta) if beta else a.prob * log_ratio
    terms = (_difference(a, b) - powers).clamp(min=0)
    terms = _near_terms(terms, a.prob, log_ratio, beta)
    only_p = math.inf if alpha >= 1 else alpha / beta
    return _with_the_rest(terms, live, p, q, only_p, 1.0).sum(-1)


def _near_terms(terms: Tensor, mass: Tensor, log_ratio: Tensor, beta: float) -> Tensor:
    """Put `p·[(e^l − 1 − l) − (e^(β l) − 1 − β l)/β]` for the terms of small l, by its series."""
    largest = limits.MAX_LOG_RATIO_SERIES[log_ratio.dtype] / max(1.0, abs(beta))
    near = log_ratio.clamp(-largest, largest)
    factors = [(1 - beta ** (n - 1)) / math.factorial(n) for n in (2, 3, 4, 5)]
    series = factors[0] + near * (factors[1] + near * (factors[2] + near * factors[3]))
    return torch.where(near == log_ratio, mass * near * near * series, terms)


def jeffreys_sum(p: Table, q: Table) -> Tensor:
    """Return `Σ (q − p) log(q/p)`, +inf where one table lacks mass that the other has."""
    live, a, b = _both(p, q)
    terms = _difference(a, b) * _log_ratio(a, b)
    return _with_the_rest(terms, live, p, q, math.inf, math.inf).sum(-1)


def js_sum(p: Table, q: Table, weight: float) -> Tensor:
    """Return `w KL(p‖m) + (1−w) KL(q‖m)`, with `log m/p = log1p((1−w)(q − p)/p)` and its like.

    An outcome that only p has adds `−w log w · p`.
    """
    rest = 1.0 - weight
    live, a, b = _both(p, q)
    step = (weight * rest) * _difference(a, b)
    over_p = step - weight * a.prob * torch.log1p(rest * _relative(a, b))
    over_q = step + rest * b.prob * torch.log1p(weight * _relative(b, a))
    terms = (over_p - over_q).clamp(min=0)
    only_p, only_q = -weight * math.log(weight), -rest * math.log(rest)
    return _with_the_rest(terms, live, p, q, only_p, only_q).sum(-1)


def renyi_sum(p: Table, q: Table, alpha: float) -> Tensor:
    """Return the Rényi divergence: through the α-family where tables are close, else in logs."""
    if alpha == 1:
        return alpha_sum(p, q, 1.0)
    live, a, b = _both(p, q)
    missing = p.has & ~q.has
    if alpha == math.inf:
        gaps = -_log_ratio(a, b)
        gaps = gaps if live is None else gaps.masked_fill(~live, -math.inf)
        return gaps.masked_fill(missing, math.inf).amax(-1)
    powers = a.log + (1.0 - alpha) * _log_ratio(a, b)
    powers = powers if live is None else powers.masked_fill(~live, -math.inf)
    powers = powers.masked_fill(missing, math.inf) if alpha > 1 else powers
    excess = (alpha - 1) * alpha_sum(p, q, alpha)
    close = excess.abs() < 0.5
    log_sum = torch.where(close, torch.where(close, excess, 0).log1p(), _log_sum_exp(powers))
    return log_sum / (alpha - 1)


def _both(p: Table, q: Table) -> tuple[Tensor | None, Table, Table]:
    """Return where both tables have mass, and the tables with all other masses set to 1."""
    if p.full and q.full:
        return None, p, q
    live = p.has & q.has
    return live, p.where(live), q.where(live)


def _with_the_rest(
    terms: Tensor, live: Tensor | None, p: Table, q: Table, only_p: float, only_q: float
) -> Tensor:
    """Fill in what one table lacks: `only_p · p` or `only_q · q`; a factor +inf is a constant."""
    if live is None:
        return terms
    rest = torch.where(p.has, _scaled(p.prob, only_p), _scaled(q.prob, only_q))
    return torch.where(live, terms, rest.masked_fill(~p.has & ~q.has, 0))


def _scaled(mass: Tensor, factor: float) -> Tensor:
    return mass * factor if math.isfinite(factor) else torch.full_like(mass, factor)


def _log_ratio(p: Table, q: Table) -> Tensor:
    """Return `log q/p`; from masses as `±log1p(|q − p| / min(p, q))`, exact where p ≈ q.

    At q = p, `fmin` gives its gradient to p and `relu` has none, so that first and second
    derivatives are those of the side q ≥ p. (`torch.where` would do; it is ten times slower.)
    """
    if not p.by_mass:
        return q.log - p.log
    steps = (q.prob - p.prob) / torch.fmin(p.prob, q.prob).clamp(min=_tiny(p.prob))
    return torch.log1p(steps.clamp(min=0)) - torch.log1p(torch.relu(-steps))


def _difference(p: Table, q: Table) -> Tensor:
    """Return `q − p`; from logs as `p·(q/p − 1)` where q ≤ p and `q·(1 − p/q)` where q > p."""
    if p.by_mass:
        return q.prob - p.prob
    log_ratio = q.log - p.log
    down = p.prob * torch.expm1(log_ratio.clamp(max=0))
    return down - q.prob * torch.expm1(-torch.relu(log_ratio))


def _relative(p: Table, q: Table) -> Tensor:
    """Return `q/p − 1`, held below overflow (a mass p that small adds nothing that shows)."""
    if p.by_mass:
        return (q.prob - p.prob) / p.prob.clamp(min=_tiny(p.prob))
    return torch.expm1((q.log - p.log).clamp(max=-math.log(_tiny(p.log))))


def _powers(p: Table, log_ratio: Tensor, beta: float) -> Tensor:
    """Return `(p^α q^β − p) / β`; an overflow is +inf (or −inf), a constant."""
    scaled = beta * log_ratio
    near = p.prob * torch.expm1(scaled.clamp(-1, 1))
    powers = p.log + scaled
    over = powers > math.log(torch.finfo(powers.dtype).max)
    powers = powers.masked_fill(over, 0).exp().masked_fill(over, math.inf)
    return torch.where(scaled.abs() <= 1, near, powers - p.prob) / beta


def _log_sum_exp(powers: Tensor) -> Tensor:
    """Return logsumexp over the last axis whose gradient is 0, not NaN, where it is ±inf."""
    over = (powers == math.inf).any(-1)
    none = (powers == -math.inf).all(-1)
    finite = powers.masked_fill((over | none)[..., None], 0).logsumexp(-1)
    return finite.masked_fill(over, math.inf).masked_fill(none, -math.inf)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
