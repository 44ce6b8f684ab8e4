"""Worlds so small that everything that can happen in them is listed, with its probability.

A world has a vocabulary of V tokens and sequences of T of them. A policy is a table of logits, one
row for every prefix (nothing shared between rows), so that any model's gradient is a linear image
of the gradient in these tables: two losses whose tables agree agree for every model.

Which to use:

- `worlds` for the set that the audit goes through, `build` for one;
- `Caller(loss, …)` and its `enumerate(world)` for the gradient of every batch with its probability;
  what the loss is passed is decided by the names of its parameters;
- `gradient_of` for whether a field is a gradient at all: that of a function has a symmetric matrix
  of second derivatives (`asymmetry`). On-policy the behaviour policy moves along, off-policy it is
  held;
- `response` for how hard one token is pushed, by how far apart policy and reference are at it: a
  range of zeros is a clamp that switches the divergence off.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kullback.core import ArgumentTypeError, ArgumentValueError, describe, message, require
from kullback.tokens import limits

__all__ = [
    "NAMES",
    "SIZES",
    "Caller",
    "Enumeration",
    "Form",
    "World",
    "asymmetry",
    "build",
    "gradient_of",
    "names_table",
    "response",
    "worlds",
]

SIZES = ((12, 1), (5, 2), (3, 3), (2, 4))  # V, T: 12 to 27 sequences each
NEAR, FAR, STALE = 0.3, 2.5, 0.8  # standard deviations of the differences between logits


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Every sequence of a tiny world, and three policies over them.

    policy, ref, behaviour: logits `[rows + 1, V]` in float64, a row a prefix; the last row is what
    a model says at padding, which no loss should look at. tokens, rows: `[N, T]`, every sequence
    and the row each of its tokens comes from. mask: `[N, T]`, False at padding.
    distance: "near" or "far", of policy and ref. on_policy: behaviour is policy.

    >>> world = build(2, 3, distance="near", on_policy=True)
    >>> list(world.tokens.shape), list(world.policy.shape)
    ([8, 3], [8, 2])
    >>> float(world.probabilities(world.policy).sum().round(decimals=12))
    1.0
    """

    vocabulary: int
    length: int
    distance: str
    on_policy: bool
    policy: Tensor
    ref: Tensor
    behaviour: Tensor
    tokens: Tensor
    rows: Tensor
    mask: Tensor

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log P of every sequence under a table of logits, `[N]`, differentiable."""
        steps = logits.log_softmax(-1)[self.rows, self.tokens]
        return torch.where(self.mask, steps, 0.0).sum(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return P of every sequence under a table of logits, `[N]`."""
        return self.log_probabilities(logits).exp()

    def reach(self, logits: Tensor) -> Tensor:
        """Return the probability of passing each prefix, `[rows + 1]`; padding has 0."""
        through = self.probabilities(logits)[:, None] * self.mask
        return logits.new_zeros(len(logits)).index_add(0, self.rows.flatten(), through.flatten())

    def moved(self, policy: Tensor) -> "World":
        """Return this world with another policy, which also draws the sequences if on-policy."""
        return replace(self, policy=policy, behaviour=policy if self.on_policy else self.behaviour)


def build(
    vocabulary: int, length: int, *, distance: str, on_policy: bool, ends: bool = False
) -> World:
    """Build a world; the same arguments give the same numbers.

    ends: token 0 ends a sequence, so that they have different lengths and are padded with 0.

    >>> int(build(3, 2, distance="near", on_policy=True, ends=True).mask.sum())  # 0, 10, 11, …
    13
    """
    tokens, rows, mask, count = _enumerate(vocabulary, length, ends=ends)
    generator = torch.Generator().manual_seed(100 * vocabulary + length)

    def noise() -> Tensor:
        return torch.randn(count + 1, vocabulary, generator=generator, dtype=torch.float64)

    policy, away, stale = noise(), noise(), noise()
    return World(
        vocabulary=vocabulary,
        length=length,
        distance=distance,
        on_policy=on_policy,
        policy=policy,
        ref=policy + {"near": NEAR, "far": FAR}[distance] * away,
        behaviour=policy if on_policy else policy + STALE * stale,
        tokens=tokens,
        rows=rows,
        mask=mask,
    )


@functools.cache
def worlds(*, batch: int = 1) -> tuple[World, ...]:
    """Return the audit's worlds: every size, near and far, on- and off-policy.

    batch: how many sequences a loss sees at once; sizes with too many such batches are left out.

    >>> len(worlds())
    16
    """
    sizes = [(v, t) for v, t in SIZES if v ** (t * batch) <= limits.MOST_BATCHES]
    return tuple(
        build(v, t, distance=distance, on_policy=on_policy)
        for on_policy in (True, False)
        for distance in ("near", "far")
        for v, t in sizes
    )


def _enumerate(vocabulary: int, length: int, *, ends: bool) -> tuple[Tensor, Tensor, Tensor, int]:
    """List all sequences; return tokens, rows, mask and the number of prefixes."""
    prefixes: dict[tuple[int, ...], int] = {}
    finished: list[tuple[int, ...]] = []
    open_ones: list[tuple[int, ...]] = [()]
    while open_ones:
        prefix = open_ones.pop(0)
        prefixes[prefix] = len(prefixes)
        for token in range(vocabulary):
            longer = (*prefix, token)
            done = len(longer) == length or (ends and token == 0)
            (finished if done else open_ones).append(longer)
    padding = len(prefixes)
    rows = [
        [prefixes[one[:t]] if t < len(one) else padding for t in range(length)] for one in finished
    ]
    tokens = [[*one, *[0] * (length - len(one))] for one in finished]
    mask = [[t < len(one) for t in range(length)] for one in finished]
    return torch.tensor(tokens), torch.tensor(rows), torch.tensor(mask), padding


Form = Literal["loss", "penalty", "reward"]

_LOGPS = (
    *("{}_logp", "{}_logps", "{}_log_prob", "{}_log_probs", "{}_logprob", "{}_logprobs"),
    *("{}_per_token_logps", "logp_{}", "log_{}", "logprobs_{}", "log_probs_{}"),
)


def _spelled(*words: str) -> tuple[str, ...]:
    return tuple(pattern.format(word) for word in words for pattern in _LOGPS)


NAMES: dict[str, tuple[str, ...]] = {
    "logp": (
        *("logp", "logps", "log_p", "log_prob", "log_probs", "logprob", "logprobs", "logpi"),
        *("per_token_logps", *_spelled("policy", "new", "current", "student", "pi")),
    ),
    "ref_logp": (*_spelled("ref", "reference", "teacher", "base"),),
    "behaviour_logp": (
        *_spelled("behaviour", "behavior", "old", "rollout", "sampling", "sampler"),
    ),
    "logits": ("logits", "policy_logits", "student_logits", "new_logits"),
    "ref_logits": ("ref_logits", "reference_logits", "teacher_logits", "base_logits"),
    "behaviour_logits": ("behaviour_logits", "behavior_logits", "old_logits", "rollout_logits"),
    "tokens": ("tokens", "token_ids", "ids", "actions", "input_ids", "completion_ids"),
    "labels": ("labels", "targets"),
    "mask": (
        *("mask", "loss_mask", "completion_mask", "response_mask", "action_mask"),
        *("attention_mask", "eos_mask"),
    ),
    "bool_mask": ("bool_mask", "keep", "valid"),
    "advantages": ("advantages", "advantage", "adv", "rewards", "returns"),
}
MEANING = {
    "logp": "log-probabilities of the sampled tokens under the policy, [batch, T]",
    "ref_logp": "the same under the reference or teacher",
    "behaviour_logp": "the same under the policy that drew the samples",
    "logits": "the policy's logits, [batch, T, V]",
    "ref_logits": "the reference's or teacher's",
    "behaviour_logits": "those of the policy that drew the samples",
    "tokens": "the sampled tokens, [batch, T]",
    "labels": "the same with -100 at padding",
    "mask": "1.0 at tokens, 0.0 at padding, [batch, T]",
    "bool_mask": "the same as bool",
    "advantages": "zeros, [batch, T]: only the divergence is audited",
}
_ROLE = {name: role for role, names in NAMES.items() for name in names}


def names_table() -> str:
    """Return the parameter names that are understood, one meaning a line.

    >>> print(names_table().splitlines()[3])
    logits: the policy's logits, [batch, T, V] (also policy_logits, student_logits, new_logits)
    """
    lines = []
    for role, names in NAMES.items():
        others = [name for name in names if name != role][:6]
        lines.append(f"{role}: {MEANING[role]} (also {', '.join(others)})")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Enumeration:
    """What a loss did on every batch of a world.

    probability: `[M]`, of each batch being drawn. value: `[M]`. gradient: `[M, rows + 1, V]`, with
    respect to the policy's logits. pushes: `[M, batch, T, V]`, the same a sampled token.
    members: `[M, batch]`, which sequences a batch is made of.
    """

    probability: Tensor
    value: Tensor
    gradient: Tensor
    pushes: Tensor
    members: Tensor

    @property
    def expected(self) -> Tensor:
        """The expected gradient, `[rows + 1, V]`."""
        return torch.einsum("m,mrv->rv", self.probability, self.gradient)


class Batch(NamedTuple):
    """Sequences passed at once: logits `[batch, T, V]` of three policies, tokens and mask."""

    logits: Tensor
    ref_logits: Tensor
    behaviour_logits: Tensor
    tokens: Tensor
    mask: Tensor

    def value_of(self, role: str) -> Tensor:
        """Return what a parameter of that role is passed."""
        if role.endswith("logp"):
            logits: Tensor = getattr(self, role.removesuffix("logp") + "logits")
            return logits.log_softmax(-1).gather(-1, self.tokens[..., None]).squeeze(-1)
        made = {
            "labels": lambda: self.tokens.masked_fill(~self.mask, -100),
            "mask": lambda: self.mask.to(self.logits.dtype),
            "bool_mask": lambda: self.mask,
            "advantages": lambda: torch.zeros_like(self.ref_logits[..., 0]),
        }
        found: Tensor = made[role]() if role in made else getattr(self, role)
        return found


@dataclass(frozen=True, slots=True)
class Caller:
    """Knows how to call a user's loss: which arguments, in which form, how many sequences at once.

    credit: for penalties and rewards, which tokens' scores a token's penalty multiplies: its own
    ("token"), its own and all earlier ones ("to-go") or all ("sequence"). importance: what that is
    weighted by off-policy: "none", each token's own ratio ("token") or the product of the ratios
    of the whole sequence ("sequence").
    """

    loss: Callable[..., Any]
    form: Form = "loss"
    credit: str = "to-go"
    importance: str = "none"
    batch: int = 1
    names: Mapping[str, str] = field(default_factory=dict)

    def roles(self) -> dict[str, str]:
        """Return parameter name to role for every parameter that will be passed.

        Errors: `ValueError` for a parameter that is required and not understood, or when nothing
        of the policy would be passed.
        """
        for name, wanted in self.names.items():
            require(wanted in NAMES, f"names[{name!r}]", " or ".join(NAMES), repr(wanted))
        found = {}
        for one in _parameters(self.loss):
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                continue
            role = self.names.get(one.name) or _ROLE.get(one.name)
            if role is not None:
                by_name = one.kind is not one.POSITIONAL_ONLY
                require(by_name, "loss", "parameters that can be given by name", f"{one.name}, /")
                found[one.name] = role
            elif one.default is one.empty:
                expected = f"parameters with names that say what to pass:\n{names_table()}\n"
                hint = f"rename it, give it a default, or pass names={{'{one.name}': 'logp'}}"
                raise ArgumentValueError(message("loss", expected, f"{one.name!r}", hint))
        told = {"logp", "logits"} & set(found.values())
        expected = f"a parameter for the policy, logp or logits, among:\n{names_table()}\n"
        require(bool(told), "loss", expected, ", ".join(found) or "no parameters")
        return found

    def enumerate(self, world: World) -> Enumeration:
        """Call the loss on every batch of the world, and take the gradient of each."""
        roles = self.roles()
        everyone = range(len(world.tokens))
        members = torch.tensor(list(itertools.product(everyone, repeat=self.batch)))
        behaviour = world.probabilities(world.behaviour)
        called = [self._one(world, roles, batch) for batch in members]
        pushes = torch.stack([push for _, push in called])
        rows = world.rows[members]
        gradient = world.policy.new_zeros(len(members), *world.policy.shape)
        which = torch.arange(len(members))[:, None, None].expand_as(rows)
        gradient.index_put_((which, rows), pushes, accumulate=True)
        value = torch.stack([value for value, _ in called])
        return Enumeration(behaviour[members].prod(-1), value, gradient, pushes, members)

    def require_repeatable(self, world: World) -> None:
        """Require the same values and gradients of the same batches: nothing is drawn inside.

        Errors: `ValueError` for a loss with dropout or other noise, or one that counts its calls.
        """
        first, second = (self.enumerate(world) for _ in range(2))
        same = all(
            torch.equal(a.nan_to_num(), b.nan_to_num())
            for a, b in ((first.value, second.value), (first.pushes, second.pushes))
        )
        expected = "the same value and gradient for the same arguments"
        hint = "without dropout or other noise inside, and without a state that its calls change"
        require(same, "loss", expected, "another one at the second call", hint)

    def push(self, logits: Tensor, ref: Tensor, behaviour: Tensor, tokens: Tensor) -> Tensor:
        """Return the gradient with respect to logits `[batch, T, V]` of a batch made up by hand."""
        mask = torch.ones_like(tokens, dtype=torch.bool)
        return self._differentiated(self.roles(), Batch(logits, ref, behaviour, tokens, mask))[1]

    def _one(self, world: World, roles: Mapping[str, str], batch: Tensor) -> tuple[Tensor, Tensor]:
        rows = world.rows[batch]
        given = Batch(
            logits=world.policy[rows],
            ref_logits=world.ref[rows],
            behaviour_logits=world.behaviour[rows],
            tokens=world.tokens[batch],
            mask=world.mask[batch],
        )
        return self._differentiated(roles, given)

    def _differentiated(self, roles: Mapping[str, str], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return value and gradient with respect to the logits of one batch."""
        leaf = batch.logits.detach().clone().requires_grad_()
        needed = {*roles.values(), "mask"}
        needed |= set() if self.form == "loss" else {"logp", "behaviour_logp"}
        batch = batch._replace(logits=leaf)
        given = {role: batch.value_of(role) for role in needed}
        result = self._call({name: given[role].clone() for name, role in roles.items()})
        value = self._reduced(result, given)
        (push,) = torch.autograd.grad(value, leaf, allow_unused=True)
        found = _total(result, batch.mask) if self.form != "loss" else value
        return found.detach().double(), torch.zeros_like(leaf) if push is None else push

    def _call(self, arguments: dict[str, Tensor]) -> Tensor:
        try:
            result = self.loss(**arguments)
        except Exception as error:
            given = ", ".join(f"{name} {describe(one)}" for name, one in arguments.items())
            error.add_note(f"kullback audit: raised by the loss, which was called with {given}")
            raise
        result = result[0] if isinstance(result, tuple | list) and result else result
        result = result.get("loss", result) if isinstance(result, Mapping) else result
        result = getattr(result, "loss", result)
        if not isinstance(result, Tensor):
            raise ArgumentTypeError(message("loss", "a tensor as result", type(result).__name__))
        return result

    def _reduced(self, result: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Turn a result into the scalar that a trainer would differentiate."""
        mask = given["mask"]
        if self.form == "loss":
            hint = "take out .detach() or no_grad, or pass form='penalty' if it is one"
            expected = "a result that depends on logp or logits"
            require(result.requires_grad, "loss", expected, "a constant", hint)
            return _total(result, mask)
        logp = given["logp"]
        credit = _credit(result.detach(), mask, self.credit)
        sign = -1.0 if self.form == "reward" else 1.0
        ratio = (logp.detach() - given["behaviour_logp"]) * mask
        log_weight = {
            "none": torch.zeros_like(ratio),
            "token": ratio,
            "sequence": ratio.sum(-1, keepdim=True),
        }[self.importance]
        return sign * (log_weight.exp() * credit * logp * mask).sum() / len(mask)


def _parameters(loss: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    try:
        return tuple(inspect.signature(loss).parameters.values())
    except (TypeError, ValueError) as error:
        text = message("loss", "a callable whose parameters have names", repr(loss))
        raise ArgumentTypeError(text) from error


def _total(result: Tensor, mask: Tensor) -> Tensor:
    """Add up a result a token or a sequence: over tokens that count, a mean over sequences."""
    if result.dim() == 0:
        return result
    if result.shape[:2] == mask.shape:
        flags = mask.to(result.dtype).reshape(*mask.shape, *[1] * (result.dim() - 2))
        return (result * flags).sum() / len(mask)
    fits = result.shape[0] == len(mask) or result.numel() == 1
    expected = f"a scalar, or one value a sequence {[len(mask)]} or a token {list(mask.shape)}"
    require(fits, "loss", f"{expected} as result", list(result.shape))
    return result.sum() / len(mask)


def _credit(penalty: Tensor, mask: Tensor, credit: str) -> Tensor:
    """Return what each token's score is multiplied by, `[batch, T]`."""
    if penalty.shape != mask.shape:  # one number a sequence: all its tokens have it
        whole = penalty.reshape(-1, 1) if penalty.numel() == len(mask) else penalty.sum()
        return whole.expand(mask.shape)
    counted = penalty * mask
    if credit == "token":
        return counted
    if credit == "sequence":
        return counted.sum(-1, keepdim=True).expand(mask.shape)
    return counted.flip(-1).cumsum(-1).flip(-1)


_STEP = 1e-3


def gradient_of(caller: Caller, *, on_policy: bool) -> str:
    """Say of what the expected gradient is the gradient of some function.

    "sequences", of the policy over whole sequences; "tokens", of a single next-token table but not
    of sequences; "nothing"; or "unknown", where gradients are rounded too coarsely to tell.
    """
    lengths = {1: "nothing", 2: "tokens"} if caller.batch == 1 else {1: "nothing"}
    for length, name in lengths.items():
        found = asymmetry(caller, length=length, on_policy=on_policy)
        if math.isnan(found):
            return "unknown"
        if found > limits.ASYMMETRY:
            return name
    return "sequences"


def asymmetry(caller: Caller, *, length: int, on_policy: bool) -> float:
    """Return ‖J − Jᵀ‖/‖J + Jᵀ‖ of the expected gradient with few tokens: 0 for gradients.

    J has central differences of step 1e-3: what comes out below 1e-4 is 0. NaN where it is more,
    but less than `RESOLVED` times what J changes by with twice the step: then it is rounding, as
    of a loss in half precision.

    >>> k2 = Caller(lambda logp, ref_logp: 0.5 * (logp - ref_logp) ** 2)
    >>> asymmetry(k2, length=1, on_policy=True) < 1e-6
    True
    >>> asymmetry(k2, length=2, on_policy=True) > 0.01  # the prefixes move, uncounted
    True
    """
    world = build(4 - length, length, distance="near", on_policy=on_policy)
    jacobian = _jacobian(caller, world, _STEP)
    size = float((jacobian + jacobian.T).norm())
    found = float((jacobian - jacobian.T).norm()) / size if size > 0 else 0.0
    if found > limits.ASYMMETRY:
        change = float((jacobian - _jacobian(caller, world, 2 * _STEP)).norm()) / size
        return found if found > limits.RESOLVED * change else math.nan
    return found


def _jacobian(caller: Caller, world: World, size: float) -> Tensor:
    """Return the derivative of the expected gradient by central differences, a column a logit."""
    centre = world.policy.flatten()
    columns = []
    for i in range(len(centre) - world.vocabulary):  # the last row is padding
        step = torch.zeros_like(centre)
        step[i] = size
        up, down = (
            caller.enumerate(world.moved((centre + sign * step).view_as(world.policy))).expected
            for sign in (1, -1)
        )
        columns.append(((up - down) / (2 * size)).flatten()[: -world.vocabulary])
    return torch.stack(columns, -1)


FINE = [round(-8 + 0.2 * i, 1) for i in range(81)]
GRID = [*range(-limits.FURTHEST_PUSH, -8), *FINE, *range(9, limits.FURTHEST_PUSH + 1)]  # nats


def response(caller: Caller) -> list[tuple[float, float]]:
    """Return pairs (log policy/ref of the sampled token, ∂loss/∂ log policy of it), on-policy.

    One token from a vocabulary of two: the derivative of the loss with respect to the sampled
    token's logit, divided by that of its log-probability. Positive pushes the probability down.
    From −24 to 24 nats; the likelier of the two probabilities is one half.

    >>> pairs = dict(response(Caller(lambda logp, ref_logp: 0.5 * (logp - ref_logp) ** 2)))
    >>> round(pairs[2.0], 9), round(pairs[-3.0], 9)
    (2.0, -3.0)
    """
    found = {float(x): _push(caller, float(x)) for x in GRID}
    for low, high in itertools.pairwise(list(found)):
        if (found[low] == 0.0) != (found[high] == 0.0) and 0.0 not in (low, high):
            found |= _edge(caller, low, high, still=found[low] == 0.0)
    return sorted(found.items())


def _edge(caller: Caller, low: float, high: float, *, still: bool) -> dict[float, float]:
    """Return the push on both sides of where it begins or ends, to within 0.01 nats."""
    while high - low > limits.PUSH_WIDTH:
        middle = (low + high) / 2
        low, high = (middle, high) if (_push(caller, middle) == 0.0) == still else (low, middle)
    return {low: _push(caller, low), high: _push(caller, high)}


def _push(caller: Caller, log_ratio: float) -> float:
    policy, ref = (_logits(min(0.0, sign * log_ratio)) for sign in (1.0, -1.0))
    tokens = torch.zeros(caller.batch, 1, dtype=torch.long)
    policies, refs = (table.expand(caller.batch, 1, 2) for table in (policy, ref))
    push = caller.push(policies, refs, policies, tokens)[:, 0, 0].sum()
    return float(push) / (1 - float(policy.softmax(-1)[0, 0, 0]))


def _logits(log_half: float) -> torch.Tensor:
    """Return `[1, 1, 2]` logits whose first token has probability e^log_half / 2."""
    probability = torch.tensor(0.5 * math.exp(log_half), dtype=torch.float64)
    return torch.stack([probability.log(), torch.log1p(-probability)])[None, None]
