"""Which divergence does a policy's KL loss descend, how much does it scatter, what does it cost?

    python benchmarks/policy_kl.py        # a minute; writes results/policy_kl.json and a picture

Bias and variance are sums over a world that can be listed (all sequences of 3 tokens from a
vocabulary of 3), not simulations: exact at several distances between policy and reference and
several degrees of staleness between policy and sampler. `ours` are kullback's losses, held to the
divergence their name says; `folklore` are formulas in use, held to KL(policy ‖ reference) at the
drawn prefixes, which is what they are used for. Then by how much the exact KL of each next-token
distribution (Rao-Blackwell) narrows value and gradient, and the time of a loss with its gradient at
[32 x 1024] tokens on one thread, beside TRL's formula (written out) and Liger's function.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch
from measuring import finish, interleaved, machine, paired_ratio, summary

from kullback.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, card, save
from kullback.tokens.losses import policy_kl_loss, rao_blackwell_kl_loss

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "tokens"), str(ROOT / "tools")]
from worlds import World  # noqa: E402

DISTANCES, STALENESS = (0.03, 0.1, 0.3, 1.0, 2.0), (0.0, 0.1, 0.5, 1.0)
OURS = [
    (direction, level, estimator)
    for direction in ("reverse", "forward")
    for level in ("token", "sequence")
    for estimator in ("k1", "k3", "exact", "rao-blackwell")
]


def k3(log_r):
    return torch.expm1(log_r) - log_r


def clamped(log_r):
    return k3(log_r.clamp(-20, 20)).clamp(-10, 10)


def parts(logs):
    """Return log r and the ratio π/μ (with its graph, 1 on-policy), 0 and 1 where masked; log π."""
    current = logs["log_current"]
    behaviour = current.detach() if logs["log_behaviour"] is None else logs["log_behaviour"]
    hidden = ~logs["mask"]
    log_r = (logs["log_reference"] - current).masked_fill(hidden, 0.0)
    return log_r, (current - behaviour).masked_fill(hidden, 0.0).exp(), current


FOLKLORE = {
    "k1 as loss": lambda log_r, w, log_pi: -log_r,
    "k2 as loss": lambda log_r, w, log_pi: 0.5 * log_r**2,
    "k3 as loss": lambda log_r, w, log_pi: k3(log_r),
    "k3 as loss, clamped": lambda log_r, w, log_pi: clamped(log_r),
    "ratio * k3": lambda log_r, w, log_pi: w * k3(log_r),
    "detached ratio * k3": lambda log_r, w, log_pi: w.detach() * k3(log_r),
    "detached ratio * k2": lambda log_r, w, log_pi: w.detach() * 0.5 * log_r**2,
    "k1 in the reward": lambda log_r, w, log_pi: -log_r.detach() * (log_pi - log_pi.detach()),
    "k3 in the reward": lambda log_r, w, log_pi: k3(log_r).detach() * (log_pi - log_pi.detach()),
}


def ours(here, direction, level, estimator):
    names = {"direction": direction, "level": level}

    def loss_of(pick, logs):
        if estimator == "rao-blackwell":
            return rao_blackwell_kl_loss(here.exact(direction)[pick], **logs, **names).loss
        if estimator == "exact":
            exact = here.exact(direction)[pick]
            return policy_kl_loss(**logs, **names, exact_kl=exact).loss
        return policy_kl_loss(**logs, **names, estimator=estimator).loss

    return loss_of


def judged(here, loss_of, truth, *, on_policy):
    """Return biases relative to the divergence and its gradient, and scatter of one sequence."""
    values, slopes, chance = here.every(loss_of, on_policy=on_policy)
    kl, gradient = truth.item(), here.gradient(truth)
    value, slope = chance @ values, chance @ slopes
    cosine = torch.nn.functional.cosine_similarity(slope, gradient, dim=0)
    found = {
        "value_bias": value / kl - 1,
        "gradient_error": (slope - gradient).norm() / gradient.norm(),
        "gradient_cosine": cosine,
        "value_sd": (chance @ (values - value) ** 2).sqrt() / kl,
        "gradient_sd": (chance @ (slopes - slope) ** 2).sum().sqrt() / gradient.norm(),
    }
    return {name: number.item() for name, number in found.items()}


def enumerated():
    rows = []
    for far in DISTANCES:
        for stale in STALENESS:
            here, on = World(3, 3, seed=1, far=far, stale=stale), stale == 0
            reverse = here.truth("reverse", "token", on_policy=on).item()
            setting = {"far": far, "stale": stale, "kl_nats_a_sequence": reverse}
            for direction, level, estimator in OURS:
                truth = here.truth(direction, level, on_policy=on)
                found = judged(here, ours(here, direction, level, estimator), truth, on_policy=on)
                name = f"{direction}, {level}: {estimator}"
                rows.append({"loss": name, "kind": "ours", **setting, **found})
            for name, formula in FOLKLORE.items():
                truth = here.truth("reverse", "token", on_policy=on)
                found = judged(
                    here, lambda _, logs, f=formula: f(*parts(logs)).sum(), truth, on_policy=on
                )
                rows.append({"loss": name, "kind": "folklore", **setting, **found})
    return rows


def of_sequences(here, estimator):
    truth = here.truth("reverse", "sequence", on_policy=True)
    return judged(here, ours(here, "reverse", "sequence", estimator), truth, on_policy=True)


def gains():
    """Return how many times smaller the variance is with exact KLs, over worlds and lengths."""
    rows = []
    for length in (2, 3, 4):  # at 1 the exact KL does not scatter at all
        for far in (0.1, 0.5, 2.0):
            ratios = {}
            for seed in range(12):
                here = World(3 if length < 4 else 2, length, seed=seed, far=far)
                sds = {name: of_sequences(here, name) for name in ("k1", "k3", "rao-blackwell")}
                for other in ("k1", "k3"):
                    for what in ("value", "gradient"):
                        ratio = sds[other][f"{what}_sd"] / sds["rao-blackwell"][f"{what}_sd"]
                        ratios.setdefault(f"{what}, beside {other}", []).append(ratio**2)
            for name, found in ratios.items():
                gain = {"median_gain": statistics.median(found), "least_gain": min(found)}
                rows.append({"length": length, "far": far, "what": name, "worlds": 12, **gain})
    return rows


def missed():
    """Return by how much the token-level gradient misses that of whole sequences, by length."""
    found = {}
    for length in (1, 2, 3, 4):
        errors = []
        for seed in range(40):
            here = World(3, length, seed=seed)
            token, whole = (
                here.gradient(here.truth("reverse", level, on_policy=True))
                for level in ("token", "sequence")
            )
            errors.append(((token - whole).norm() / whole.norm()).item())
        found[length] = statistics.median(errors)
    return found


def conditioned():
    """Return the world where the exact KLs scatter and k1 hardly does.

    The policy is the reference given that a certain thing does not happen, so log π/π_ref of a
    whole sequence is the same for all that do happen.
    """
    here, odds, rest = World(2, 2), 1 / (1 + math.e), math.exp(-1)
    reference = [[odds, 1 - odds], [0.5, 0.5], [1 - rest, rest]]
    here.reference = torch.tensor(reference, dtype=torch.float64).log()
    policy = [[0.5, 0.5], [0.5, 0.5], [1e-6, 1 - 1e-6]]
    here.logits = torch.tensor(policy, dtype=torch.float64).log().requires_grad_()
    return here


def counterexample():
    """Return each value's sd over KL there."""
    here, names = conditioned(), ("k1", "rao-blackwell")
    return {name: of_sequences(here, name)["value_sd"] for name in names}


def draws(here, estimator, level, place=None):
    """Return an estimator's values and gradients `[sequences, numbers]`, of one place or all."""
    loss = ours(here, "reverse", level, estimator)

    def loss_of(pick, logs):
        only = logs["mask"] if place is None else torch.zeros_like(logs["mask"])
        if place is not None:
            only[:, place] = logs["mask"][:, place]
        return loss(pick, logs | {"mask": only})

    values, slopes, chance = here.every(loss_of, on_policy=True)
    return {"value": values[:, None], "gradient": slopes}, chance


def variance(chance, x, y=None):
    y = x if y is None else y
    return ((x - chance @ x) * (y - chance @ y)).sum(-1) @ chance


def laws():
    """Return the gains that are laws, least over worlds: none of them can fall below 1.

    A position's own term, given an exact KL, beside that by the token drawn there. And over whole
    sequences the exact KLs plus the best multiple of k1 less them, beside the better of the two.
    """
    worlds = [World(3, 2, seed=seed, far=far) for seed in range(12) for far in (0.1, 0.5, 2.0)]
    found = {}
    for here in [*worlds, conditioned()]:
        exact, chance = draws(here, "rao-blackwell", "token", 1)
        for name in ("k1", "k3"):
            terms, _ = draws(here, name, "token", 1)
            for what, some in terms.items():
                gain = variance(chance, some) / variance(chance, exact[what])
                found.setdefault(f"{what} of a position, beside {name}", []).append(gain.item())
        (exact, chance), (k1, _) = (
            draws(here, name, "sequence") for name in ("rao-blackwell", "k1")
        )
        for what, some in exact.items():
            rest = k1[what] - some
            least = variance(chance, some)
            share = variance(chance, some, rest) / variance(chance, rest)
            best = variance(chance, some - share * rest)
            gain = torch.minimum(least, variance(chance, k1[what])) / best
            found.setdefault(f"{what} of sequences, best multiple", []).append(gain.item())
    return [
        {"what": name, "worlds": len(some), "median_gain": statistics.median(some),
         "least_gain": min(some)}
        for name, some in found.items()
    ]  # fmt: skip


def contenders(batch, length, spread):
    generator = torch.Generator().manual_seed(0)
    current = (-torch.rand(batch, length, generator=generator) * 5).requires_grad_()
    noise = spread * torch.randn(2, batch, length, generator=generator)
    # shifted so that ratios have mean 1; none is above 0, as log-probabilities are
    reference, behaviour = (
        (current.detach() + scale * noise[which] + shift).clamp_max(-1e-3)
        for which, scale, shift in ((0, 1.0, -(spread**2) / 2), (1, 0.3, (0.3 * spread) ** 2 / 2))
    )
    lengths = torch.randint(length // 2, length + 1, (batch,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    logs = {"log_current": current, "log_reference": reference, "mask": mask}
    whole = mask.long()  # the form in which TRL multiplies by it

    def step(loss):
        loss.backward()
        current.grad = None

    def trl(*, corrected):
        per_token = torch.exp(reference - current) - (reference - current) - 1
        if corrected:
            per_token = per_token * torch.exp(current - behaviour)
        step((per_token * whole).sum() / whole.sum().clamp(min=1.0))

    found = {
        "kullback, on-policy": lambda: step(policy_kl_loss(**logs, normalise="token").loss),
        "TRL, unweighted": lambda: trl(corrected=False),
        "kullback, off-policy": lambda: step(
            policy_kl_loss(**logs, log_behaviour=behaviour, normalise="token").loss
        ),
        "TRL, weighted": lambda: trl(corrected=True),
        "kullback, on-policy, whole sequences": lambda: step(
            policy_kl_loss(**logs, level="sequence").loss
        ),
    }
    try:
        from liger_kernel.chunked_loss.grpo_loss import k3_loss_fn
    except ImportError:
        return found
    found["Liger, unweighted"] = lambda: step(
        (k3_loss_fn(reference, current) * whole).sum() / whole.sum()
    )
    return found


SPEEDS = {  # tokens, distance between the policies, share of the rounds
    "32 x 1024, far apart (0.3)": ((32, 1024), 0.3, 1.0),
    "32 x 1024, close (0.001)": ((32, 1024), 0.001, 1.0),
    "128 x 4096, far apart (0.3)": ((128, 4096), 0.3, 0.05),
}
PAIRS = {
    "TRL / ours, on-policy": ("TRL, unweighted", "kullback, on-policy"),
    "TRL / ours, off-policy": ("TRL, weighted", "kullback, off-policy"),
    "Liger / ours, on-policy": ("Liger, unweighted", "kullback, on-policy"),
}


def speed(rounds):
    result = {}
    for name, (shape, spread, share) in SPEEDS.items():
        times = interleaved(contenders(*shape, spread), max(10, int(rounds * share)))
        found = {key: summary(each, 1) for key, each in times.items()}
        present = {key: pair for key, pair in PAIRS.items() if pair[0] in times}
        found["ratios of medians"] = {
            key: paired_ratio(times[slow], times[quick]) for key, (slow, quick) in present.items()
        }
        found["ratios of best"] = {
            key: min(times[slow]) / min(times[quick]) for key, (slow, quick) in present.items()
        }
        result[name] = found
    return result


def picture(rows, path):
    """Draw the gradient's error, on-policy and stale, and its scatter, over the distance."""
    figure, panels = card(
        "error, on-policy", "error, stale by 0.5", "scatter, on-policy", height=3.3
    )
    lines = {
        "k3 as loss": ORANGE,
        "k3 in the reward": GREY,
        "k2 as loss": GREEN,
        "ratio * k3": PURPLE,
        "reverse, token: k3": BLUE,
    }
    for panel, stale in zip(panels, (0.0, 0.5), strict=False):
        for name, color in lines.items():
            some = [row for row in rows if row["loss"] == name and row["stale"] == stale]
            label = name if not name.startswith("reverse") else "kullback"
            x = [row["kl_nats_a_sequence"] for row in some]
            y = [max(row["gradient_error"], 1e-17) for row in some]
            panel.plot(x, y, "o-", color=color, markersize=3, label=label)
        panel.set(xscale="log", yscale="log", ylim=(1e-17, 50), xlabel="KL, nats a sequence")
    panels[0].set_ylabel("|error| / |gradient|")
    panels[0].legend(fontsize=7, frameon=False, loc="center left")
    scatter = {"k1": GREY, "k3": ORANGE, "exact": GREEN, "rao-blackwell": BLUE}
    for name, color in scatter.items():
        wanted = f"reverse, sequence: {name}"
        some = [row for row in rows if row["loss"] == wanted and row["stale"] == 0]
        x = [row["kl_nats_a_sequence"] for row in some]
        panels[2].plot(
            x, [row["gradient_sd"] for row in some], "o-", color=color, markersize=3, label=name
        )
    panels[2].set(xscale="log", ylim=(0, 8), xlabel="KL, nats a sequence")
    panels[2].set_ylabel("sd / |gradient|")
    panels[2].legend(fontsize=7, frameon=False, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, str(path))


def table(rows):
    print(f"{'loss':32} {'far':>5} {'stale':>5} {'value bias':>11} {'grad error':>11}", end=" ")
    print(f"{'cosine':>7} {'value sd':>9} {'grad sd':>8}")
    for row in rows:
        if row["far"] in (0.1, 1.0) and row["stale"] in (0.0, 0.5):
            print(f"{row['loss']:32} {row['far']:5} {row['stale']:5}", end=" ")
            print(f"{row['value_bias']:11.1e} {row['gradient_error']:11.1e}", end=" ")
            print(f"{row['gradient_cosine']:7.3f} {row['value_sd']:9.3f} {row['gradient_sd']:8.3f}")


def by_setting(rows):
    """Return the table with each setting and each column's name once."""
    settings, columns = {}, list(rows[0])[5:]
    for row in rows:
        named = {name: row[name] for name in ("far", "stale", "kl_nats_a_sequence")}
        there = settings.setdefault(tuple(named.values()), {**named, "ours": {}, "folklore": {}})
        there[row["kind"]][row["loss"]] = [row[name] for name in columns]
    return {"columns": columns, "settings": list(settings.values())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--svg", default=str(ROOT / "docs" / "img" / "measured" / "policy_kl.svg"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, won = enumerated(), gains()
    table(rows)
    print("\nVariance divided by that of Rao-Blackwell, median (least) of 12 worlds, on-policy:")
    for row in won:
        print(f"length {row['length']} far {row['far']:4} {row['what']:22}", end=" ")
        print(f"{row['median_gain']:9.2f} ({row['least_gain']:.2f})")
    print("\nThe same where it is a law, over 36 worlds and the one made to break it:")
    certain = laws()
    for row in certain:
        print(f"{row['what']:38} {row['median_gain']:9.2f} ({row['least_gain']:.2f})")
    sds = ", ".join(f"{name} {sd:.2f}" for name, sd in counterexample().items())
    print(f"in that one, sd over KL of whole sequences: {sds}")
    worst = max(row["gradient_error"] for row in rows if row["kind"] == "ours")
    print(f"\nlargest gradient error of ours: {worst:.1e}")
    print(f"missed by the token level, by length, median of 40 worlds: {missed()}")
    picture(rows, Path(options.svg))
    result = {
        "benchmark": "policy_kl",
        "machine": machine(1),
        "largest_gradient_error_of_ours": worst,
        "speed": speed(options.rounds),
        "missed_by_the_token_level_by_length": missed(),
        "rao_blackwell_gains": won,
        "rao_blackwell_laws": certain,
        "rao_blackwell_counterexample": counterexample(),
        "enumerated": by_setting(rows),
    }
    for name, found in result["speed"].items():
        print(f"{name}: best of ours against theirs {found['ratios of best']}")
    finish("policy_kl", result, digits=4)


if __name__ == "__main__":
    main()
