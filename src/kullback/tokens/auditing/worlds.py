"""Worlds so small that everything that can happen in them is listed, with its probability.

A world has a vocabulary of V tokens and sequences of T of them. A policy is a table of logits, one
row for every prefix (nothing shared between rows), so that any model's gradient is a linear image
of the gradient in these tables: two losses whose tables agree agree for every model.

Which to use: `worlds` for the set that the audit goes through, `build` for one.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["SIZES", "World", "build", "worlds"]

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
        vocabulary,
        length,
        distance,
        on_policy,
        policy,
        policy + {"near": NEAR, "far": FAR}[distance] * away,
        policy if on_policy else policy + STALE * stale,
        tokens,
        rows,
        mask,
    )


@functools.cache
def worlds(*, batch: int = 1) -> tuple[World, ...]:
    """Return the audit's worlds: every size, near and far, on- and off-policy.

    batch: how many sequences a loss sees at once; sizes with too many such batches are left out.

    >>> len(worlds())
    16
    """
    sizes = [(v, t) for v, t in SIZES if v ** (t * batch) <= 1000]
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
