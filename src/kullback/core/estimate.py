"""`Estimate`: a number that came from draws, with its error bar, unit and bias.

`two_sided`: the quantile of Student's t that an interval needs when the error is itself estimated.

Every sampled number in kullback is one of these. It is never clipped and NaN is never filtered
away. Nothing here imports torch: values may be floats or tensors of shape `[*batch]`.

Which to use: `Estimate.from_terms` turns per-draw terms into an estimate of their mean; `+`, `-`,
`*`, `/` combine *independent* estimates (for paired quantities subtract the terms first, then
call `from_terms`); `bits()` and `nats()` change the unit.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

from .errors import require, require_type
from .limits import LISTED_VALUES, NEGLIGIBLE_SKEWNESS, PRINTED_DECIMALS, PRINTED_MAGNITUDE

__all__ = ["Bias", "Estimate", "json_value", "short_values", "two_sided"]


def two_sided(level: float, freedom: int) -> float:
    """Return t with `P(|T| ≤ t) = level`, T of Student's law with `freedom` ≥ 1 degrees.

    One and two degrees in closed form, more by the series in 1/freedom: within 0.2 % at a level of
    0.95, 1 % at 0.99, and rapidly better with more degrees.
    Reference: Abramowitz and Stegun (1964), "Handbook of Mathematical Functions", 26.7.5.

    Args:
        level: The probability, 0 < level < 1.
        freedom: Degrees of freedom, ≥ 1.

    Returns:
        t > 0.

    Example:
        >>> round(two_sided(0.95, 9), 3), round(two_sided(0.95, 10_000), 3)
        (2.262, 1.96)
    """
    if freedom == 1:
        return math.tan(math.pi * level / 2)
    if freedom == 2:
        return level * math.sqrt(2 / (1 - level**2))
    z = NormalDist().inv_cdf(0.5 + level / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** order for order, term in enumerate(terms))


Bias = Literal["none", "low", "high", "unknown"]

_FLIPPED: dict[Bias, Bias] = {"none": "none", "low": "high", "high": "low", "unknown": "unknown"}
_NATS_PER = {"nats": 1.0, "bits": math.log(2.0)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A sampled value ± its standard error: `value = quantity + bias + error`, `error ~ (0, se²)`.

    Sums and differences add errors in quadrature, which is right for independent estimates only.
    An infinite value has an infinite standard error; NaN stays NaN in both.

    Args:
        value: float, or tensor `[*batch]`, in `unit`.
        standard_error: As `value`.
        draws: How many independent terms the value is a mean of.
        unit: "nats", "bits", "nats/token", "" for a pure number, ….
        bias: The direction in which the expectation differs from the quantity named: "none",
            "low", "high" or "unknown".
        why: The reason for the bias, in words.
        warnings: What makes the error bar itself doubtful, in words; empty when nothing does.
        k_hat: The Pareto shape of the heaviest tail among the terms, where one was fitted: from 1/2
            upwards their variance is infinite and the error bar means nothing. float or `[*batch]`.
        where: Which of the batch the warnings are about, bool `[*batch]`; None for all of it.
        how: What was averaged, in words, where there was a choice: "best λ = 0.582".
        no_error: Why no standard error can be given, in words; it is NaN then (`without_error`).
        rounding: The rounding floor, in `unit`: how far the value may be off because the inputs
            were rounded to their dtype. More samples do not lower it. float or `[*batch]`, 0 where
            unknown.
        skewness: Of the error, `E[error³]/se³`, used by `interval`, whose longer side is then that
            of the tail. float or `[*batch]`, 0 for a symmetric error.

    Example:
        >>> elbo = Estimate(-89.423, 0.1134, draws=10_000)
        >>> print(elbo)
        -89.42 ± 0.11 nats
        >>> print((elbo - Estimate(-90.0, 0.2, draws=10_000)).bits())
        0.83 ± 0.33 bits
    """

    value: Any
    standard_error: Any
    draws: int
    unit: str = "nats"
    bias: Bias = "none"
    why: str = ""
    warnings: tuple[str, ...] = ()
    k_hat: Any = None
    where: Any = None
    how: str = ""
    no_error: str = ""
    rounding: Any = 0.0
    skewness: Any = 0.0

    @property
    def warned(self) -> Any:
        """Say whether a warning applies: a bool, or for a batch always a bool array `[*batch]`.

        Example:
            >>> Estimate(1.0, 0.1, draws=9).warned, Estimate(1.0, 0.1, draws=9).warn("few").warned
            (False, True)
        """
        if not getattr(self.value, "ndim", 0):
            return bool(self.warnings)
        if self.warnings and self.where is not None:
            return self.where
        everywhere = (self.value == self.value) | (self.value != self.value)  # NaN as well
        return everywhere if self.warnings else ~everywhere

    @property
    def brief(self) -> str:
        """Give value, error, unit and bias in one line, as `str` does, but not the warnings.

        Example:
            >>> Estimate(1.0, 0.125, draws=9, bias="low").warn("few").brief
            '1.00 ± 0.12 nats, biased low'
        """
        ending = f" {self.unit}" if self.unit else ""
        biased = "" if self.bias == "none" else f", biased {self.bias}"
        biased = ", bias unknown" if self.bias == "unknown" else biased
        number = _rounded(self.value, self.standard_error, self.no_error)
        return f"{number}{ending}{biased}{self._floor()}"

    @classmethod
    def from_terms(
        cls, terms: Any, *, unit: str = "nats", bias: Bias = "none", why: str = ""
    ) -> "Estimate":
        """Estimate a mean from independent terms: `mean ± sd / √n` over the last axis.

        The variance has `n - 1` below. Infinite terms give an infinite value with an infinite
        error; NaN terms give NaN.

        Args:
            terms: Tensor or NumPy array `[*batch, draws]`, draws ≥ 2.
            unit: Of the terms.
            bias: As in `Estimate`.
            why: The reason for the bias.

        Returns:
            The estimate, of shape `[*batch]`.

        Raises:
            ArgumentValueError: A single number, or fewer than two draws.

        Example:
            >>> import torch
            >>> print(Estimate.from_terms(torch.tensor([1.0, 2.0, 3.0])))
            2.00 ± 0.58 nats
        """
        require(terms.ndim >= 1, "terms", "an array [*batch, draws]", "a single number")
        draws = int(terms.shape[-1])
        require(draws >= 2, "terms", "at least 2 draws on the last axis", draws)
        value = terms.mean(-1)
        squares = (terms - value[..., None]) ** 2
        error = (squares.sum(-1) / (draws * (draws - 1))) ** 0.5
        if value.ndim == 0:
            value, error = float(value), float(error)
            error = math.inf if math.isinf(value) else error
        else:
            error[abs(value) == math.inf] = math.inf
        return cls(value, error, draws, unit, bias, why)

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """Give the confidence interval `value ± (t·standard_error + rounding)`, t of Student's law.

        The law has `draws − 1` degrees of freedom, since the error was itself estimated: 2.26 and
        not 1.96 errors at 10 draws. Where the error is skewed, each side reaches at least as far
        as Hall's interval does, which takes the skewness out of t to first order. It covers the
        *expectation*; a bias, when there is one, comes on top. NaN on both sides where there is no
        standard error (`no_error` says why).
        Reference: Hall (1992), "On the removal of skewness by transformation", JRSS B 54.

        Args:
            level: The probability with which it covers the expectation, 0 < level < 1.

        Returns:
            The lower and the upper end, floats or `[*batch]`.

        Raises:
            ArgumentValueError: A level outside 0 to 1.

        Example:
            >>> low, high = Estimate(0.0, 1.0, draws=100).interval()
            >>> round(high, 2)
            1.98
            >>> low, high = Estimate(0.0, 1.0, draws=100, skewness=0.3).interval()
            >>> round(low, 2), round(high, 2)
            (-1.98, 2.7)
        """
        require(0.0 < level < 1.0, "level", "a number strictly between 0 and 1", level)
        t = two_sided(level, max(self.draws - 1, 1))
        below, above = (t + _beyond(t, sign * self.skewness) for sign in (-1.0, 1.0))
        low = self.value - (below * self.standard_error + self.rounding)
        return low, self.value + (above * self.standard_error + self.rounding)

    def bits(self) -> "Estimate":
        """Return the same estimate in bits: nats / ln 2."""
        return self._in("bits")

    def nats(self) -> "Estimate":
        """Return the same estimate in nats: bits · ln 2."""
        return self._in("nats")

    def per(self, count: float, name: str) -> "Estimate":
        """Divide by a count of something and name it in the unit: `nats` → `nats/name`.

        Args:
            count: How many, positive.
            name: Of what: "dim", "token".

        Returns:
            The estimate of the ratio.

        Raises:
            ArgumentValueError: A count that is not positive.

        Example:
            >>> print(Estimate(-64.0, 2.0, draws=9, unit="bits").per(16, "dim"))
            -4.00 ± 0.12 bits/dim
        """
        require(count > 0, "count", "a positive number", count)
        return replace(self / count, unit=f"{self.unit}/{name}")

    def warn(self, *warnings: str, where: Any = None) -> "Estimate":
        """Return the same estimate with warnings added, each once, in order.

        Args:
            warnings: Sentences.
            where: bool tensor `[*batch]`, the part of a batch they are about; None for all of it.

        Returns:
            The estimate with its earlier warnings and these.
        """
        both = tuple(dict.fromkeys((*self.warnings, *warnings)))
        if not warnings:
            return self
        return replace(self, warnings=both, where=_either(self, warnings, where))

    def without_error(self, reason: str, *, where: Any = None) -> "Estimate":
        """Return the same value without a standard error (NaN), for a reason said in words.

        For a value whose error bar would be wrong: an assumption of the estimator does not hold.

        Args:
            reason: Why, in words.
            where: bool tensor `[*batch]`, the part of a batch it is about; None for all of it.

        Returns:
            The estimate, whose standard error is NaN there.

        Raises:
            ArgumentValueError: An empty reason.

        Example:
            >>> print(Estimate(0.52, 0.01, draws=9).without_error("the variance is infinite"))
            0.52 nats
              no error bar: the variance is infinite
        """
        require(bool(reason), "reason", "why there is no standard error, in words", repr(reason))
        none = self.standard_error * math.nan
        if where is not None:
            none = none.where(where, self.standard_error)
        return replace(self, standard_error=none, no_error=_joined(self.no_error, reason))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; tensors become nested lists, infinities strings."""
        return {
            "value": _plain(self.value),
            "standard_error": _plain(self.standard_error),
            "draws": self.draws,
            "unit": self.unit,
            "bias": self.bias,
            "why": self.why,
            "warnings": list(self.warnings),
            "k_hat": None if self.k_hat is None else _plain(self.k_hat),
            "where": None if self.where is None else self.where.tolist(),
            "how": self.how,
            "no_error": self.no_error,
            "rounding": _plain(self.rounding),
            "skewness": _plain(self.skewness),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Estimate":
        """Rebuild a scalar estimate from `to_dict`.

        Example:
            >>> e = Estimate(1.0, 0.5, draws=4, bias="low", why="a bound")
            >>> Estimate.from_dict(e.to_dict()) == e
            True
        """
        value, error = float(fields["value"]), float(fields["standard_error"])
        rest = {k: fields[k] for k in ("draws", "unit", "bias", "why")}
        rest |= {k: fields.get(k, "") for k in ("how", "no_error")}
        rest |= {k: float(fields.get(k, 0.0)) for k in ("rounding", "skewness")}
        k_hat = None if fields.get("k_hat") is None else float(fields["k_hat"])
        return cls(value, error, **rest, warnings=tuple(fields["warnings"]), k_hat=k_hat)

    def __add__(self, other: "Estimate | float") -> "Estimate":
        if not isinstance(other, Estimate):
            return replace(self, value=self.value + other)
        same = self.unit == other.unit
        require(same, "unit", f"both in {self.unit!r}", repr(other.unit), "use .nats() or .bits()")
        return Estimate(
            self.value + other.value,
            (self.standard_error**2 + other.standard_error**2) ** 0.5,
            min(self.draws, other.draws),
            self.unit,
            _joint(self.bias, other.bias),
            _joined(self.why, other.why),
            tuple(dict.fromkeys(self.warnings + other.warnings)),
            _larger(self.k_hat, other.k_hat),
            _either(self, other.warnings, other.where),
            _joined(self.how, other.how),
            _joined(self.no_error, other.no_error),
            self.rounding + other.rounding,
            _skewness(self, other),
        )

    __radd__ = __add__

    def __neg__(self) -> "Estimate":
        return self * -1.0

    def __sub__(self, other: "Estimate | float") -> "Estimate":
        return self + (-other)

    def __rsub__(self, other: float) -> "Estimate":
        return -self + other

    def __mul__(self, factor: float) -> "Estimate":
        require_type(factor, (int, float), "factor", "scale by a plain number")
        bias = _FLIPPED[self.bias] if factor < 0 else self.bias
        scaled = {
            name: getattr(self, name) * abs(factor) for name in ("standard_error", "rounding")
        }
        scaled["skewness"] = self.skewness * math.copysign(1.0, factor)
        return replace(self, value=self.value * factor, bias=bias, **scaled)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Estimate":
        require_type(divisor, (int, float), "divisor", "scale by a plain number")
        return self * (1.0 / divisor)

    def __str__(self) -> str:
        reasons = [f"  no error bar: {self.no_error}"] if self.no_error else []
        warnings = [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join([self.brief, *reasons, *warnings])

    def _floor(self) -> str:
        """Write the rounding floor where it is at least a twentieth of the standard error."""
        single = not getattr(self.rounding, "ndim", 0)
        if not single or not self.rounding or self.rounding < 0.05 * self.standard_error:
            return ""
        return f" (rounding of the inputs: up to {float(self.rounding):.1g})"

    def _in(self, unit: str) -> "Estimate":
        base, _, per = self.unit.partition("/")
        require(base in _NATS_PER, "unit", "nats or bits", repr(self.unit))
        factor = _NATS_PER[base] / _NATS_PER[unit]
        return replace(self * factor, unit=f"{unit}/{per}" if per else unit)


def _beyond(t: float, skewness: Any) -> Any:
    """Return by how much Hall's quantile exceeds Student's on the side of the tail, at least 0.

    Hall's is `3/g · (1 − (1 − g (t + g/6))^(1/3))`, the transformation of t solved for t.
    """
    skewed = abs(skewness) > NEGLIGIBLE_SKEWNESS
    g = skewness * skewed + 1.0 * (1 - skewed * 1)
    inside = 1.0 - g * (t + g / 6)
    root = ((inside > 0) * 1 - (inside < 0) * 1) * abs(inside) ** (1 / 3)
    beyond = 3.0 / g * (1.0 - root) - t
    return beyond * (skewed & (beyond > 0))


def _skewness(a: Estimate, b: Estimate) -> Any:
    """Return the skewness of a sum of independent errors: third cumulants add, as variances do."""
    if not any(getattr(each.skewness, "ndim", 0) or each.skewness for each in (a, b)):
        return 0.0
    cubes = a.skewness * a.standard_error**3 + b.skewness * b.standard_error**3
    whole = (a.standard_error**2 + b.standard_error**2) ** 1.5
    return cubes / (whole + (whole == 0))


def _joint(a: Bias, b: Bias) -> Bias:
    if "none" in (a, b):
        return b if a == "none" else a
    return a if a == b else "unknown"


def _joined(a: str, b: str) -> str:
    return "; ".join(dict.fromkeys(words for words in (a, b) if words))


def _larger(a: Any, b: Any) -> Any:
    """Return the heavier of two tails, which is that of a sum; NaN (unknown) stays NaN."""
    if a is None or b is None:
        return b if a is None else a
    if hasattr(a, "maximum"):
        return a.maximum(b if hasattr(b, "maximum") else a.new_tensor(b))
    if hasattr(b, "maximum"):
        return _larger(b, a)
    return b if a < b or math.isnan(b) else a


def _either(self: Estimate, warnings: tuple[str, ...], where: Any) -> Any:
    """Join the parts of a batch that two lots of warnings are about; None is all of it."""
    if not self.warnings:
        return where if warnings else None
    if not warnings:
        return self.where
    return None if self.where is None or where is None else self.where | where


def _rounded(value: Any, error: Any, no_error: str) -> str:
    """Round a pair so that the error keeps two significant digits; no `±` without an error."""
    if no_error and isinstance(value, int | float):
        return f"{value:.6g}"
    if getattr(value, "ndim", 0):
        return _rounded_batch(value, error, no_error)
    if not isinstance(value, int | float):
        return _rounded(float(value), float(error), no_error)
    if not (math.isfinite(value) and math.isfinite(error)) or error == 0:
        return f"{value:.6g} ± {error:.2g}"
    error = float(f"{error:.1e}")  # two significant digits, also where rounding carries over
    places = 1 - math.floor(math.log10(error))
    if places > PRINTED_DECIMALS or abs(value) >= PRINTED_MAGNITUDE:
        return f"{value:.6g} ± {error:.2g}"
    places = max(0, places)
    return f"{value:.{places}f} ± {error:.{places}f}"


def _rounded_batch(value: Any, error: Any, no_error: str) -> str:
    """Write `[value ± error, …]`; of a larger batch the range of the values and of the errors."""
    if value.ndim == 1 and len(value) <= LISTED_VALUES:
        errors = error.tolist() if getattr(error, "ndim", 0) else [float(error)] * len(value)
        each = [
            _rounded(number, bar, no_error if math.isnan(bar) else "")
            for number, bar in zip(value.tolist(), errors, strict=True)
        ]
        return f"[{', '.join(each)}]"
    known = error[error == error] if getattr(error, "ndim", 0) else value[:0]
    if not math.prod(known.shape):
        return short_values(value)
    return f"{short_values(value)}, ± {float(known.min()):.2g} to {float(known.max()):.2g}"


def short_values(values: Any, form: str = ".6g") -> str:
    """Write numbers in a few characters, however many there are.

    Args:
        values: A number, or a tensor or NumPy array of any shape.
        form: How one number is formatted.

    Returns:
        The number; up to six of them in brackets; the shape, the least and the most of more.

    Example:
        >>> import numpy as np
        >>> short_values(np.array([0.5, 0.25])), short_values(np.arange(100.0))
        ('[0.5, 0.25]', '[100] values from 0 to 99')
    """
    values = values.detach() if hasattr(values, "detach") else values
    if not getattr(values, "ndim", 0):
        return f"{float(values):{form}}"
    shape = list(values.shape)
    if len(shape) == 1 and shape[0] <= LISTED_VALUES:
        return f"[{', '.join(f'{value:{form}}' for value in values.tolist())}]"
    if 0 in shape:
        return f"{shape} values"
    return f"{shape} values from {float(values.min()):{form}} to {float(values.max()):{form}}"


def json_value(value: Any) -> Any:
    """Turn numbers, tensors and arrays into what JSON can hold without loss of meaning.

    Args:
        value: A number, a string, None, a tensor, an array, or dictionaries, lists, tuples of them.

    Returns:
        The same, with lists for tensors, arrays and tuples, and "inf", "-inf", "nan" as strings.

    Example:
        >>> json_value({"kl": (0.5, math.inf)})
        {'kl': [0.5, 'inf']}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    return json_value(value if hasattr(value, "tolist") else float(value))
