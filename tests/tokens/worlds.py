"""Worlds so small that everything that can be said in them can be listed: expectations are sums."""

import torch

F64 = torch.float64


class World:
    """Sequences of `length` tokens from `vocab`; three policies, one row of logits per prefix.

    ends: token 0 ends a sequence; what would follow is masked and is not drawn.
    same: behaviour = current (on-policy draws).
    """

    def __init__(self, vocab, length, *, seed=0, far=1.0, stale=0.5, ends=False):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.cartesian_prod(*[torch.arange(vocab)] * length).reshape(-1, length)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if ends:
            ended = (tokens == 0).cumsum(-1) > 0
            mask[:, 1:] = ~ended[:, :-1]
            kept = (tokens.masked_fill(mask, 0) == 0).all(
                -1
            )  # one of those that differ after the end
            tokens, mask = tokens[kept], mask[kept]
        self.tokens, self.mask, self.vocab, self.length = tokens, mask, vocab, length
        weights = vocab ** torch.arange(length)
        first = [(vocab**t - 1) // (vocab - 1) for t in range(length)]
        before = torch.stack(
            [first[t] + (tokens[:, :t] * weights[:t]).sum(-1) for t in range(length)], -1
        )
        self.prefixes = before  # [worlds, length], the row of logits that decides the token
        rows = (vocab**length - 1) // (vocab - 1)

        def noise():
            return torch.randn(rows, vocab, generator=generator, dtype=F64)

        start = noise()
        self.logits = start.clone().requires_grad_()
        self.reference = start + far * noise()
        self.behaviour = start + stale * noise()

    def tables(self):
        """Return log-probabilities `[rows, vocab]` of current, reference, behaviour."""
        return (
            self.logits.log_softmax(-1),
            self.reference.log_softmax(-1),
            self.behaviour.log_softmax(-1),
        )

    def of_tokens(self, table):
        """Return the log-probability of each token `[worlds, length]`."""
        return table[self.prefixes].gather(-1, self.tokens[..., None])[..., 0]

    def chances(self, table):
        """Return the probability of each world, `[worlds]`."""
        return torch.where(self.mask, self.of_tokens(table), 0.0).sum(-1).exp()

    def exact(self, direction):
        """Return the KL `[worlds, length]` of the next-token distributions, with its graph."""
        pi, ref, _ = self.tables()
        p, q = (pi, ref) if direction == "reverse" else (ref, pi)
        return (p.exp() * (p - q)).sum(-1)[self.prefixes]

    def truth(self, direction, level, *, on_policy, scale=None):
        """Return the divergence, by summing over everything; scale `[worlds, 1]` weighs worlds."""
        pi, ref, mu = self.tables()
        drawn = self.chances(pi.detach() if on_policy else mu)
        kls = torch.where(self.mask, self.exact(direction), 0.0)
        kls = kls if scale is None else kls * scale
        if level == "token":
            return (drawn[:, None] * kls).sum()
        p, q = (pi, ref) if direction == "reverse" else (ref, pi)
        whole = self.chances(p)
        return (whole * (whole.log() - self.chances(q).log())).sum()

    def gradient(self, value):
        """Return the gradient with respect to the current policy's logits, flat."""
        return torch.autograd.grad(value, self.logits)[0].flatten()

    def expect(self, loss_of, *, on_policy, rows=1):
        """Return the mean value and mean gradient of `loss_of(**arguments) -> (value, logs)`.

        Every batch of `rows` independent worlds is listed, with its probability.
        """
        values, slopes, chances = self.every(loss_of, on_policy=on_policy, rows=rows)
        return chances @ values, chances @ slopes

    def every(self, loss_of, *, on_policy, rows=1):
        """Return values `[batches]`, gradients `[batches, parameters]` and chances `[batches]`."""
        pi, ref, mu = self.tables()
        chance = self.chances(pi if on_policy else mu).detach()
        picks = torch.cartesian_prod(*[torch.arange(len(chance))] * rows).reshape(-1, rows)
        values, slopes = [], []
        for pick in picks:
            pi = self.logits.log_softmax(-1)
            chosen = {
                "log_current": self.of_tokens(pi)[pick],
                "log_reference": self.of_tokens(ref)[pick].detach(),
                "mask": self.mask[pick],
                "log_behaviour": None if on_policy else self.of_tokens(mu)[pick].detach(),
            }
            loss = loss_of(pick, chosen)
            values.append(loss.detach())
            slopes.append(self.gradient(loss))
        return torch.stack(values), torch.stack(slopes), chance[picks].prod(-1)
