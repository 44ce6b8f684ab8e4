"""A tiny language model trained by policy gradient, held to its reference at a budget of KL.

    python examples/grpo_kl.py [minutes]        (needs: pip install transformers; half a minute)

The model writes 4 digits; the reward is the share of steps upwards, which any reader can check. Of
all policies, π_ref · exp(reward / β), scaled to sum to one, has the best reward − β · KL(policy ‖
reference); its KL is known once π_ref is. So β is set once, before training, to where that KL is
the budget, and then left alone: no controller makes up for a gradient that leads elsewhere. Each
batch serves four updates, all but the first of which are off-policy. Twice, with the same β:

- ours: `policy_kl_loss(level="sequence")`, weighted by current/behaviour: its gradient is that of
  the KL that β was set for, so the KL climbs to the budget and stays, within a tenth;
- k3 as a loss, unweighted and without a look ahead, as often seen: its gradient is, with fresh
  draws, that of KL(reference ‖ policy) at each place, so the KL stops a quarter to a third short
  of the budget, and the policy earns less.

There are only 10⁴ texts: every KL and reward printed and drawn is a sum over all of them, without
error. That k3 holds too tight and not too loose is of this task: its pull on what the policy came
to like is bounded, that on what it dropped is not.
"""

import copy
import sys
from pathlib import Path

import torch

from kullback.tokens.losses import policy_kl_loss, reward_to_go

try:
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    sys.exit("This example trains a transformers model. Install it with: pip install transformers")

DIGITS, START, LENGTH, BATCH, UPDATES, BUDGET = 10, 10, 4, 256, 4, 3.0
LEARNING_RATE = 3e-3  # at the end a tenth of it
TEXTS = torch.cartesian_prod(*[torch.arange(DIGITS)] * LENGTH)  # every one, `[10000, LENGTH]`


def model():
    sizes = {"n_positions": LENGTH + 1, "n_embd": 32, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": START, "eos_token_id": START}
    return GPT2LMHeadModel(GPT2Config(vocab_size=DIGITS + 1, **sizes, **ends)).eval()  # no dropout


def tables(net, tokens):
    """Return log-probabilities of the digits at every place of `tokens`, `[batch, LENGTH, 10]`."""
    start = torch.full_like(tokens[:, :1], START)
    inputs = torch.cat([start, tokens], -1)[:, :LENGTH]
    return net(inputs).logits[..., :DIGITS].float().log_softmax(-1)


@torch.no_grad()
def write(net, count, generator):
    tokens = torch.empty(count, 0, dtype=torch.long)
    for place in range(LENGTH):
        start = torch.full((count, 1), START)
        logits = net(torch.cat([start, tokens], -1)).logits[:, place, :DIGITS].float()
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], -1)
    return tokens


def rewards(tokens):
    """Return what each digit earns, `[batch, LENGTH]`: the share of one step, if it goes up."""
    up = (tokens[:, 1:] > tokens[:, :-1]).float() / (LENGTH - 1)
    return torch.nn.functional.pad(up, (1, 0))


def chosen(table, tokens):
    return table.gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def log_texts(net):
    """Return the log-probability of every text, `[10000]`."""
    return chosen(tables(net, TEXTS), TEXTS).double().sum(-1)


def exact(log_policy, log_reference):
    """Return KL(policy ‖ reference) in nats a text and the mean reward: sums over all texts."""
    chance = log_policy.exp()
    kl = (chance * (log_policy - log_reference)).sum()
    return kl.item(), (chance * rewards(TEXTS).sum(-1)).sum().item()


def coefficient_for(budget, log_reference):
    """Return the β whose best policy is at the budget, and that policy's KL and reward."""
    low, high = 0.01, 1.0
    for _ in range(40):
        beta = (low * high) ** 0.5
        best = (log_reference + rewards(TEXTS).sum(-1) / beta).log_softmax(0)
        low, high = (beta, high) if exact(best, log_reference)[0] > budget else (low, beta)
    return beta, *exact(best, log_reference)


def ours(current, reference, behaviour):
    return policy_kl_loss(
        log_current=current, log_reference=reference, log_behaviour=behaviour, level="sequence"
    ).loss


def unweighted_k3(current, reference, behaviour):
    log_r = reference - current
    return (log_r.exp() - 1 - log_r).sum(-1).mean()


def train(policy, reference, kl_loss, beta, steps, generator):
    """Return steps, exact KLs and exact rewards, a dozen or so over the run."""
    optimiser = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    fade = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=steps)
    log_reference_texts, curve = log_texts(reference), []
    for step in range(1, steps + 1):
        tokens = write(policy, BATCH, generator)
        ahead = reward_to_go(rewards(tokens))
        with torch.no_grad():
            behaviour = chosen(tables(policy, tokens), tokens)
            log_reference = chosen(tables(reference, tokens), tokens)
        for _ in range(UPDATES):
            current = chosen(tables(policy, tokens), tokens)
            ratio = (current - behaviour).sum(-1, keepdim=True).exp().detach()
            gain = (ratio * (ahead - ahead.mean(0)) * current).sum(-1).mean()
            loss = beta * kl_loss(current, log_reference, behaviour) - gain
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        fade.step()
        if step % max(1, steps // 12) == 0 or step == steps:
            curve.append((step, *exact(log_texts(policy), log_reference_texts)))
    return curve


def draw(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        steps, kl, got = zip(*curve, strict=True)
        left.plot(steps, kl, ".-", label=name)
        right.plot(steps, got, ".-", label=name)
    left.axhline(BUDGET, color="black", linewidth=0.8)
    left.set(xlabel="step", ylabel="exact KL, nats a text", ylim=(0, 1.4 * BUDGET))
    right.set(xlabel="step", ylabel="exact mean reward")
    left.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    steps = max(24, int(240 * minutes))
    torch.set_num_threads(1)  # the tensors are tiny
    torch.manual_seed(0)
    reference = model().requires_grad_(requires_grad=False)
    beta, kl, got = coefficient_for(BUDGET, log_texts(reference))
    print(f"β = {beta:.4f}: the best policy has KL {kl:.3f} nats a text and reward {got:.3f}")
    curves = {}
    for name, kl_loss in {"ours": ours, "k3, unweighted": unweighted_k3}.items():
        policy = copy.deepcopy(reference).requires_grad_()
        generator = torch.Generator().manual_seed(1)
        curve = curves[name] = train(policy, reference, kl_loss, beta, steps, generator)
        print(f"\n{name}\n  step   exact KL, nats a text   exact reward")
        for step, kl, got in curve:
            print(f"  {step:4}   {kl:12.3f}            {got:.3f}")
        last = curve[-4:]  # the last third
        kl, got = (sum(each[place] for each in last) / len(last) for place in (1, 2))
        away = kl / BUDGET - 1
        print(f"  the last third: KL {kl:.2f}, {away:+.0%} from the budget; reward {got:.3f}")
    path = Path("grpo_kl.svg")
    draw(curves, path)
    print("\ncurves:", path.resolve())


if __name__ == "__main__":
    main()
