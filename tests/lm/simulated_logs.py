"""Logs of a sampler and a trainer, made from known next-token distributions, and faults in them."""

import numpy as np
import pyarrow as pa

VOCABULARY = 40


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def nucleus(p, share):
    """p cut to the fewest tokens that hold `share`, and renormalised."""
    order = np.argsort(-p, 1)
    ranked = np.take_along_axis(p, order, 1)
    kept = np.zeros_like(p)
    np.put_along_axis(kept, order, ranked * (np.cumsum(ranked, 1) - ranked < share), 1)
    return kept / kept.sum(1, keepdims=True)


def logs(rng, *, sequences=40, length=500, drift=0.15, temperature=1.0, top_p=1.0, raw=False):
    """Columns of one log, and the mean KL of what was sampled from q.

    raw: the logged log p and entropy are of the plain model, not of what was sampled.
    """
    n = sequences * length
    logits = 2 * rng.standard_normal((n, VOCABULARY))
    plain = softmax(logits)
    q, third = (softmax(logits + drift * rng.standard_normal((n, VOCABULARY))) for _ in "ab")
    p = softmax(logits / temperature)
    p = nucleus(p, top_p) if top_p < 1 else p
    drawn = (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(0, VOCABULARY - 1)
    scored = plain if raw else p
    at = np.arange(n), drawn
    positive = np.where(scored > 0, scored, 1.0)
    columns = {
        "sequence": np.arange(n) // length,
        "position": np.arange(n) % length,
        "log_p": np.log(scored[at]),
        "log_q": np.log(q[at]),
        "log_third": np.log(third[at]),
        "entropy": -(scored * np.log(positive)).sum(1),
    }
    kl = (p * (np.log(np.where(p > 0, p, 1.0)) - np.log(q))).sum(1).mean()
    return columns, float(kl)


def bfloat16(values):
    """Rounded to bfloat16, as float64."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.view(np.float32).astype(np.float64)


def clean(rng):
    return logs(rng)[0], {}


def clean_with_entropies(rng):
    return logs(rng)[0], {"entropy": "entropy"}


def renormalised_top_p(rng):
    return logs(rng, top_p=0.9)[0], {}


def another_temperature(rng):
    return logs(rng, temperature=0.7, raw=True)[0], {"entropy": "entropy"}


def raw_top_p(rng):
    return logs(rng, top_p=0.9, raw=True)[0], {"entropy": "entropy"}


def shifted(rng):
    columns = logs(rng)[0]
    columns["log_q"] = np.roll(columns["log_q"], 1)
    return columns, {}


def half_precision(rng):
    columns = logs(rng)[0]
    columns["log_p"] = bfloat16(columns["log_p"])
    return columns, {}


def sentinels(rng):
    columns = logs(rng)[0]
    places = rng.choice(len(columns["log_p"]), 5, replace=False)
    columns["log_p"][places] = rng.choice([-9999.0, -100.0, -1e10])
    return columns, {}


def mixed_versions(rng):
    columns = logs(rng)[0]
    columns["policy_version"] = (columns["sequence"] % 10 == 0) + 7
    return columns, {}


CLEAN = {"clean": clean, "clean, entropies logged": clean_with_entropies}
FAULTS = {
    "renormalised top-p 0.9": (renormalised_top_p, "ratio identity"),
    "temperature 0.7, entropies logged": (another_temperature, "entropy"),
    "raw top-p 0.9, entropies logged": (raw_top_p, "entropy"),
    "one position late": (shifted, "lag"),
    "stored in bfloat16": (half_precision, "half precision"),
    "sentinels": (sentinels, "values"),
    "mixed versions": (mixed_versions, "policy versions"),
}


def table(columns, *, float32=True):
    """As an Arrow table; log-probabilities in float32, as they are logged."""
    small = {"log_p", "log_q", "log_third", "entropy"} if float32 else set()
    return pa.table({name: values.astype(np.float32) if name in small else values
                     for name, values in columns.items()})  # fmt: skip
