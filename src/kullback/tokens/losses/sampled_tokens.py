"""Sampled tokens as a divergence sees them: log ratios and importance weights, checked and masked.

KL(p‖q) with p the first argument of the direction named: "reverse" is KL(π‖π_ref), p = current and
q = reference; "forward" is KL(π_ref‖π), p = reference and q = current. Tokens come from the
behaviour policy μ, so a term carries the weight p/μ: of its own token at level "token", where the
drawn prefixes are taken as they are; of all tokens up to and with its own at level "sequence",
where prefixes are p's as well.

What each token's log-probability is pushed by: ∂ loss / ∂ log π(token), before normalisation.

The gradient of a divergence is `E_μ[Σ_t slope_t · ∇ log π_t]` where, with W the weight p/μ (of the
token, or cumulated at level "sequence"):

- reverse, KL(π‖π_ref): `W_t · log π_t/π_ref,t`, and at level "sequence" besides it what the choice
  of this token leads to, `Σ_{u>t}` of the value terms (Tang and Munos 2025): any *unbiased* terms
  do, and those of k3 or the exact KL scatter far less than those of k1.
- forward, KL(π_ref‖π): `V_t − W_t` where V has π/μ for its last factor. `−W_t` alone is maximum
  likelihood on weighted tokens; V_t, whose `∇ log π` has mean zero, is the control variate that
  makes the slope vanish where the policies agree. Later prefixes are the reference's: they lead
  nowhere.

Reference: MATH 5.8.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kullback.core import ArgumentValueError, describe, message, require, require_type
from kullback.exact import write_log_excess
from kullback.sampled import LogProbs, check_log_probs, looks_odd, why_shapes_differ

from .sequence_sums import check_normalise

__all__ = [
    "DIRECTIONS",
    "LEVELS",
    "Drawn",
    "Request",
    "Sampled",
    "ahead",
    "at_prefixes",
    "check",
    "drawn_from",
    "masked",
    "shifted",
    "slope_of",
]

DIRECTIONS = {"reverse": "KL(policy ‖ reference)", "forward": "KL(reference ‖ policy)"}
LEVELS = ("token", "sequence")
NAMES = ("log_current", "log_reference", "log_behaviour")
_HINTS = dict.fromkeys(
    NAMES,
    "log_softmax of the logits, and of it what the tokens drawn have (gather)",
) | {"exact_kl": "kullback.tokens.kl of both models' logits", "rewards": "rewards.float()"}


@dataclass(frozen=True, eq=False)
class Drawn:
    """log q/p and log-weights of tokens `[batch, length]`, 0 where masked; nothing has a graph.

    log_weight: log p/μ, of the token or of all up to it; None where it is 0 everywhere (p = μ).
    log_step: log π/μ of the token alone; None on-policy.
    log_arrival: log q/μ of the token with p/μ of those before it, the weight times r, which has a
        limit where p is 0; None where nothing needs it.
    truncate: what weights are cut at, None for never.
    vanishing: whether p is 0 at any token.
    logs: log π, log π_ref and, off-policy, log μ, as they were given.
    skipped: how many tokens were left out because a value is no log-probability.
    """

    direction: str
    level: str
    mask: Tensor | None
    log_ratio: Tensor
    log_weight: Tensor | None = None
    log_step: Tensor | None = None
    log_arrival: Tensor | None = None
    truncate: float | None = None
    vanishing: bool = False
    logs: tuple[Tensor, ...] = ()
    skipped: int = 0

    @functools.cached_property
    def weight(self) -> Tensor | None:
        """The weights, so cut; None where they are 1 everywhere."""
        return None if self.log_weight is None else self.cut(self.log_weight.exp())

    @property
    def log_own_weight(self) -> Tensor | None:
        """The log of p/μ of each token alone, whose exponential has mean 1; None where p = μ."""
        if self.log_weight is None or self.level == "token":
            return self.log_weight
        if self.direction == "reverse":
            return self.log_step
        return self.log_weight - shifted(self.log_weight)

    def uncut(self) -> "Drawn":
        """Return the same without truncation."""
        return replace(self, truncate=None)

    def cut(self, weight: Tensor) -> Tensor:
        """Return weights cut at `truncate`, if any."""
        return weight if self.truncate is None else weight.clamp_max(self.truncate)

    def feature(self, column: int) -> Tensor:
        """Return `log r`, `r − 1 − log r` or `½ log² r` of each token, times its weight.

        Where p is 0 the products tend to 0, (q/μ) and 0.
        """
        plain = self.log_ratio
        if column == 1:
            plain = torch.empty_like(self.log_ratio, memory_format=torch.contiguous_format)
            write_log_excess(self.log_ratio.reshape(-1), plain.view(-1))
        elif column == 2:
            plain = (0.5 * self.log_ratio).mul_(self.log_ratio)
        if self.weight is None:
            return plain
        weighted = plain * self.weight
        if not self.vanishing or self.log_arrival is None:
            return weighted
        limit = self.cut(self.log_arrival.exp()) if column == 1 else plain.new_zeros(())
        return torch.where(self.weight == 0, limit, weighted)

    def value_terms(self, form: tuple[Tensor | float, ...]) -> Tensor:
        """Return the terms `form · features`, `[batch, length]`; form: numbers or `[batch, 1]`."""
        total = None
        for column, factor in enumerate(form):
            if isinstance(factor, Tensor) or factor:
                part = self.feature(column)
                part = part if isinstance(factor, float) and factor == 1 else part * factor
                total = part if total is None else total + part
        return torch.zeros_like(self.log_ratio) if total is None else total


def shifted(x: Tensor) -> Tensor:
    """Return x `[batch, length]` one place later, with 0 before: of the tokens up to the last."""
    return torch.nn.functional.pad(x[:, :-1], (1, 0)) if x.shape[-1] else x


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """Log-probabilities `[batch, length]` of sampled tokens, in nats, and the mask, as given."""

    current: Tensor
    reference: Tensor
    behaviour: Tensor | None = None  # None: the current policy drew the tokens
    mask: Tensor | None = None

    @property
    def logs(self) -> tuple[Tensor, ...]:
        """The two or three log-probabilities, in the order of `NAMES`."""
        pair = self.current, self.reference
        return pair if self.behaviour is None else (*pair, self.behaviour)


@dataclass(frozen=True, slots=True)
class Request:
    """What a policy divergence is asked for: options of `policy_kl_loss`, under their names."""

    direction: str = "reverse"
    level: str = "token"
    normalise: str = "sequence"
    truncate: float | None = None
    missing: str = "refuse"
    on_mismatch: str = "warn"

    def check(self, sampled: Sampled) -> None:
        """Require options that are known and fit what is given.

        Errors: `TypeError` and `ValueError` that name the argument.
        """
        check(dict(zip(NAMES, sampled.logs, strict=False)), sampled.mask)
        _one_of(self.direction, "direction", *DIRECTIONS)
        _one_of(self.level, "level", *LEVELS)
        _one_of(self.missing, "missing", "refuse", "skip", "keep")
        if self.truncate is not None:
            self._check_truncate(weighted=sampled.behaviour is not None)
        check_normalise(self.normalise)
        _one_of(self.on_mismatch, "on_mismatch", "warn", "raise", "ignore")
        if self.level == "sequence" and self.normalise not in ("sequence", "batch"):
            words, got = "'sequence' or 'batch' at level 'sequence'", repr(self.normalise)
            hint = "'sequence': a length that the policy itself decides must not divide"
            raise ArgumentValueError(message("normalise", words, got, hint))

    def _check_truncate(self, *, weighted: bool) -> None:
        number = self.truncate
        require_type(number, (int, float), "truncate", "one number, the largest weight")
        good = number is not None and number > 0
        require(good, "truncate", "a positive number, the largest weight", number)
        weighted = weighted or self.direction == "forward"
        hint = "pass log_behaviour, or leave truncate out: on-policy every weight is 1"
        words = "None where draws come from the policy itself"
        require(weighted, "truncate", words, number, hint)


def _one_of(value: object, name: str, *words: str) -> None:
    if not (isinstance(value, str) and value in words):
        expected = ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"
        raise ArgumentValueError(message(name, expected, repr(value)))


def drawn_from(sampled: Sampled, request: Request) -> Drawn:
    """Check values, then detach and mask them; half precision becomes float32.

    Unless missing="keep", log-probabilities are checked as by `check_log_probs`, after a quick look
    says that it is needed. A probability of 0 (−inf) is taken as it is, but for missing="skip";
    where it makes the loss infinite, that is refused. Where types differ, the widest is taken.
    """
    columns = dict(zip(NAMES, sampled.logs, strict=False))
    if request.missing == "keep" or not looks_odd(sampled.logs, sampled.mask):
        checked = LogProbs(columns, sampled.mask, ())
    else:
        allow = () if request.missing == "skip" else ("-inf",)
        checked = check_log_probs(columns, mask=sampled.mask, missing=request.missing, allow=allow)
    found = _drawn(replace(sampled, mask=checked.mask), request)
    return replace(found, skipped=checked.skipped) if checked.skipped else found


def _drawn(sampled: Sampled, request: Request) -> Drawn:
    wide, mask = [log.detach() for log in sampled.logs], sampled.mask
    if not all(log.dtype is torch.float32 for log in wide):
        dtype = functools.reduce(torch.promote_types, [torch.float32, *(x.dtype for x in wide)])
        wide = [log.to(dtype) for log in wide]
    current, reference = wide[:2]
    reverse, off_policy = request.direction == "reverse", len(wide) > 2
    p, q = (current, reference) if reverse else (reference, current)
    log_ratio = q - p
    bits = None if mask is None else _bits(mask, log_ratio.dtype)
    _and(log_ratio, bits)
    found = Drawn(request.direction, request.level, mask, log_ratio, logs=sampled.logs)
    if not off_policy and reverse:
        return found
    base = wide[-1] if off_policy else current
    log_step = _and(current - base, bits) if off_policy else None
    log_weight = log_step if reverse else None
    log_weight = _and(p - base, bits) if log_weight is None else log_weight
    vanishing = log_weight.numel() > 0 and float(log_weight.amin()) == -math.inf
    log_arrival = _and(q - base, bits) if vanishing or not reverse else None
    if request.level == "sequence":
        log_weight = log_weight.cumsum(-1)
        log_arrival = None if log_arrival is None else log_arrival + shifted(log_weight)
    return replace(
        found,
        log_weight=log_weight,
        log_step=log_step,
        log_arrival=log_arrival,
        truncate=request.truncate,
        vanishing=vanishing,
    )


def check(tensors: dict[str, Tensor], mask: Tensor | None) -> None:
    """Check that all are floating `[batch, length]` of one shape, and the mask bool of it too."""
    first = next(iter(tensors.values()))
    for name, value in tensors.items():
        require_type(value, Tensor, name, "pass a torch tensor [batch, length]")
        if value.dim() != 2 or not value.is_floating_point():
            _refuse(name, "a floating-point tensor [batch, length]", value, _HINTS.get(name, ""))
        if value.shape != first.shape:
            expected = f"the shape {list(first.shape)} of the others"
            _refuse(name, expected, value, why_shapes_differ(value.shape, first.shape))
    if mask is not None:
        require_type(mask, Tensor, "mask", "pass a bool tensor [batch, length]")
        if mask.dtype != torch.bool or mask.shape != first.shape:
            expected = f"a bool tensor {list(first.shape)}"
            words = why_shapes_differ(mask.shape, first.shape)
            cast = "" if mask.dtype == torch.bool else "mask.bool()"
            _refuse("mask", expected, mask, words or cast)


def _refuse(name: str, expected: str, got: Tensor, hint: str = "") -> None:
    raise ArgumentValueError(message(name, expected, describe(got), hint))


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return x with 0 where the mask is False, whatever was there, NaN too; as a new tensor."""
    return x if mask is None else _and(x.clone(), _bits(mask, x.dtype))


def _bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return integers as wide as the type, all ones where True and all zeros where False."""
    return mask.to(torch.int64 if dtype == torch.float64 else torch.int32).neg_()


def _and(x: Tensor, bits: Tensor | None) -> Tensor:
    """Set x to 0 in place where the bits are; on a CPU much faster than `masked_fill_`."""
    if bits is not None:
        x.view(bits.dtype).bitwise_and_(bits)
    return x


def slope_of(drawn: Drawn, terms: Tensor, baseline: Tensor | None) -> Tensor:
    """Return the slopes `[batch, length]`, not 0 yet where masked.

    terms: the weighted value terms, or weighted exact KLs, that what lies ahead is summed from.
    baseline: exact KL of each token's distribution, subtracted from the own part; None for 0.
    """
    if drawn.direction == "forward":
        return _forward(drawn)
    own = -drawn.log_ratio if baseline is None else -drawn.log_ratio - baseline
    if drawn.weight is not None:
        own.mul_(drawn.weight)
        if drawn.vanishing:
            own = torch.where(drawn.weight == 0, 0.0, own)  # π log π tends to 0
    return own.add_(ahead(terms)) if drawn.level == "sequence" else own


def ahead(terms: Tensor) -> Tensor:
    """Return `Σ_{u>t} terms_u` over the last axis, `[batch, length]`.

    >>> ahead(torch.tensor([[1.0, 2.0, 4.0]]))
    tensor([[6., 4., 0.]])
    """
    return shifted(terms.flip(-1)).cumsum(-1).flip(-1)


def at_prefixes(drawn: Drawn, exact: Tensor) -> Tensor:
    """Return exact KLs `[batch, length]` times the weights of the prefixes they stand at."""
    if drawn.level == "token" or drawn.log_weight is None:
        return exact
    return exact * drawn.cut(shifted(drawn.log_weight).exp())


def _forward(drawn: Drawn) -> Tensor:
    pull = torch.expm1(-drawn.log_ratio).neg_()
    if drawn.log_arrival is None or drawn.weight is None:
        return pull
    lead = drawn.log_arrival.exp()
    if drawn.truncate is not None:
        return drawn.cut(lead) - drawn.weight
    return torch.where(lead == 0, -drawn.weight, lead * pull)  # the same difference, precise
