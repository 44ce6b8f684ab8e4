"""What the figures of an evaluation are called, how they print, and what they mean in words.

Which to use: `figures` for every figure, `remarks` for what a reader must know before using them,
`protocol_line` for the line that belongs beside them. The terminal and the report share these.

The table of an evaluation for a terminal: one figure a line, then what the figures mean.

Which to use: `evaluation_table`, and `sandwich_table` for log p(x) = ELBO + KL. They are plain
text, so they can be piped, kept and compared.
"""

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kullback.core import DataError, Estimate
from kullback.data import describe_protocol
from kullback.vae import (
    Aggregate,
    Evaluation,
    Gap,
    aggregate_remarks,
    collapse_of_information,
    gap_remarks,
    limits,
    unused_layers,
)

from .text_layout import aligned

__all__ = [
    "GAP",
    "Figure",
    "counted",
    "evaluation_table",
    "figures",
    "noun_of",
    "plain",
    "protocol_line",
    "remarks",
    "sandwich_table",
    "scope",
]

UNKNOWN = "not known"
GAP = 3  # spaces between the columns of a table of evidence


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its name, its value with error as printed, its unit, a short note, a sentence.

    >>> Figure("ELBO", "-89.42 ± 0.11", "nats/image", "lower bound", "Higher is better.").name
    'ELBO'
    """

    name: str
    value: str
    unit: str
    note: str
    meaning: str


def plain(estimate: Estimate) -> str:
    """Return `value ± error` exactly as the estimate prints itself, without unit and bias.

    Args:
        estimate: A scalar estimate.

    Returns:
        The text.

    Example:
        >>> plain(Estimate(-89.423, 0.1134, draws=9, bias="low"))
        '-89.42 ± 0.11'
    """
    return replace(estimate, unit="", bias="none").brief


def noun_of(protocol: Mapping[str, Any]) -> str:
    """Return what one example is called: "image", "vector", or "clip" of sound.

    Args:
        protocol: As in `Dataset.protocol`; only "event_shape" is used, which may be missing.

    Returns:
        "vector" for an event of one axis, "clip" for one of two, else "image".

    Example:
        >>> noun_of({"event_shape": [1, 28, 28]})
        'image'
    """
    return {1: "vector", 2: "clip"}.get(len(protocol.get("event_shape") or ()), "image")


def counted(n: int, protocol: Mapping[str, Any]) -> str:
    """Write how many examples there are, by their own name (see `noun_of`).

    Args:
        n: The number of examples.
        protocol: As in `Dataset.protocol`; only "event_shape" is used, which may be missing.

    Returns:
        The number with commas, then the name, in the plural unless there is one.

    Example:
        >>> counted(1, {"event_shape": [1, 800]}), counted(1200, {"event_shape": [7]})
        ('1 clip', '1,200 vectors')
    """
    return f"{n:,} {noun_of(protocol)}{'' if n == 1 else 's'}"


def figures(evaluation: Evaluation, *, noun: str = "image") -> dict[str, Figure]:
    """Return the figures by key, in the order in which they are read.

    Args:
        evaluation: An evaluation of a VAE.
        noun: What one example is called, as from `noun_of`.

    Returns:
        A `Figure` for each key; "bits_per_dim" only where the evaluation has it.

    Example:
        >>> import torch
        >>> from kullback.vae import build, evaluate
        >>> found = figures(evaluate(build((4,), "binary"), torch.ones(8, 4), draws=16))
        >>> " ".join(found)
        'elbo log_likelihood gap rate information distortion effective_draws loose active_units'
    """
    e = evaluation
    unit, k = f"nats/{noun}", "ELBO" if e.coded else f"L_{e.draws}"
    found = {
        "elbo": Figure(
            "ELBO",
            plain(e.elbo),
            unit,
            "lower bound on log p(x)",
            f"A lower bound on log p(x), the log probability of an unseen {noun}. "
            "Higher is better.",
        ),
        "log_likelihood": Figure(
            k,
            plain(e.log_likelihood),
            unit,
            f"tighter lower bound, {e.draws:,} draws",
            f"A higher lower bound on log p(x), from {e.draws:,} weighted draws of the code. "
            "Higher is better.",
        ),
        "gap": Figure(
            "gap",
            plain(e.gap),
            unit,
            f"{k} - ELBO",
            f"How far {k} lies above the ELBO: a lower bound on the loss from an inexact "
            "posterior.",
        ),
    }
    if e.bits_per_dim is not None:
        found["bits_per_dim"] = Figure(
            e.bits_per_dim.unit,
            plain(e.bits_per_dim),
            e.bits_per_dim.unit,
            f"-{k} in bits, a {'sample' if noun == 'clip' else 'dimension'}",
            f"{k} as a code length: bits for each {_value_of(e.levels)}. "
            f"Raw data take {math.log2(max(e.levels, 2)):.3g}; lower is better.",
        )
    found |= _rate_and_distortion(e, unit, noun) | _layers(e, unit) | _health(e, noun)
    if e.coded:  # all draws of q are the same
        for key in ("log_likelihood", "gap", "effective_draws", "loose"):
            del found[key]
        rate, meaning = found["rate"], "Length of the code of z under the learned prior, −log p(c)"
        note = "length of the code, -log p(c)"
        varying = (
            f"Dimensions of the code whose value varies from {noun} to {noun} (variance above "
        )
        varying += f"{limits.ACTIVE_VARIANCE:g})."
        found["active_units"] = replace(found["active_units"], meaning=varying)
        found["rate"] = replace(rate, note=note, meaning=f"{meaning}, for each {noun}.")
    return found


def _rate_and_distortion(e: Evaluation, unit: str, noun: str) -> dict[str, Figure]:
    return {
        "rate": Figure(
            "rate",
            plain(e.rate),
            unit,
            "KL(q(z|x) || p(z))",
            f"KL(q(z|x) ‖ p(z)): the cost of coding z, for each {noun}.",
        ),
        **_information(e, unit, noun),
        "distortion": Figure(
            "distortion",
            plain(e.distortion),
            unit,
            "reconstruction loss, -E log p(x|z)",
            "Reconstruction loss, −E log p(x|z): the cost of coding x once z is known. "
            "Rate + distortion = −ELBO.",
        ),
    }


def _information(e: Evaluation, unit: str, noun: str) -> dict[str, Figure]:
    """Return the row of I(x; z), which codes without a density q(z|x) have none of."""
    low, high = e.information_low, e.information_high
    if e.coded:
        return {}
    if low is None or high is None:
        value, note = UNKNOWN, "not measured: the rate is above it"
    else:
        ends = sorted(max(0.0, one.value) for one in (low, high))  # chance may cross the bounds
        value = f"{ends[0]:.3g} to {ends[1]:.3g}"
        note = f"of the rate, what z says about x; first {low.draws:,} {noun}s"
    meaning = "The rate is I(x; z) + KL(q(z) ‖ p(z)); only the first part says something about x."
    return {"information": Figure("I(x; z)", value, unit, note, meaning)}


def _layers(e: Evaluation, unit: str) -> dict[str, Figure]:
    """Return the KL of every stochastic layer, the top one first; nothing where there is one."""
    found, above = {}, ""
    for layer, kl in zip(range(len(e.kl_per_layer), 0, -1), e.kl_per_layer, strict=True):
        size = e.layer_sizes[-layer]
        meaning = f"KL(q(z_{layer}|{above}x) ‖ p(z_{layer}{'|' + above[:-2] if above else ''}))"
        found[f"kl_layer_{layer}"] = Figure(
            f"KL of z_{layer}",
            plain(kl),
            unit,
            f"of the rate; {size} dimensions",
            f"{meaning}: the part of the rate of this layer, of {size} dimensions.",
        )
        above = f"z_>{layer - 1}, "
    return found


def _health(e: Evaluation, noun: str) -> dict[str, Figure]:
    median, least = e.effective_draws_median, e.effective_draws_minimum
    return {
        "effective_draws": Figure(
            "effective draws",
            f"{median:.3g}",
            f"of {e.draws:,}",
            f"median over {noun}s; least {least:.3g}",
            f"(Σw)²/Σw² of the {e.draws:,} weights, at the median {noun}; "
            f"{least:.3g} at the worst.",
        ),
        "loose": _loose(e, noun),
        "active_units": _active(e, noun),
    }


def _loose(e: Evaluation, noun: str) -> Figure:
    if e.loose and e.annealed is not None:
        return Figure(
            f"log p(x) - L_{e.draws}",
            plain(e.annealed),
            f"nats/{noun}",
            f"at least, by annealing the first {e.annealed.draws} {noun}s",
            f"How far log p(x) is above L_{e.draws} at least: annealed importance sampling on the "
            f"first {e.annealed.draws} test {noun}s, settled for {e.annealed_settled} of them.",
        )
    return Figure(
        "loose bounds",
        "not known" if e.loose is None else _percent(e.loose),
        f"of {noun}s",
        f"fewer than {limits.LOOSE_DRAWS:g} effective draws",
        f"{noun.capitalize()}s whose bound rests on fewer than {limits.LOOSE_DRAWS:g} "
        "effective draws.",
    )


def _active(e: Evaluation, noun: str) -> Figure:
    if e.active_units is None:
        return Figure(
            "varying units",
            f"{e.varying_units}/{e.latent}",
            "dimensions",
            f"whose mean code varies by more than {limits.ACTIVE_VARIANCE:g}",
            f"Latent dimensions whose mean code varies from {noun} to {noun} (variance above "
            f"{limits.ACTIVE_VARIANCE:g}). The KL is no sum over dimensions here, so there is none "
            "of a single one to ask for.",
        )
    value, varies = (
        f"{e.active_units}/{e.latent}",
        f"varies by more than {limits.ACTIVE_VARIANCE:g}",
    )
    if e.varying_units is None:  # an evaluation of a version that did not ask for the KL
        note = f"whose mean code {varies}"
        meaning = f"their mean code varies from {noun} to {noun} (variance above 0.01)."
    else:
        note = f"of {limits.ACTIVE_KL:g} nats or more ({e.varying_units} whose mean code {varies})"
        meaning = (
            f"each has a KL of {limits.ACTIVE_KL:g} nats or more and a mean code that varies "
            f"from {noun} to {noun}. {e.varying_units} vary by more than "
            f"{limits.ACTIVE_VARIANCE:g} (variance), which is all that papers after Burda et al. "
            "(2016) ask and which a dimension of 0.005 nats can satisfy."
        )
    meaning = f"Latent dimensions that are used: {meaning}"
    return Figure("active units", value, "dimensions", note, meaning)


def _value_of(levels: int) -> str:
    bits = (levels - 1).bit_length()
    return (
        f"{bits}-bit value"
        if levels == 1 << bits and bits not in range(8)
        else f"value of {levels} levels"
    )


def remarks(evaluation: Evaluation, *, noun: str = "image") -> list[str]:
    """Return in one sentence each what the figures mean and where they must not be trusted.

    Args:
        evaluation: An evaluation of a VAE.
        noun: What one example is called, as from `noun_of`.

    Returns:
        The sentences, with the warnings of every estimate, each once.

    Example:
        >>> import torch
        >>> from kullback.vae import build, evaluate
        >>> remarks(evaluate(build((4,), "binary"), torch.ones(8, 4), draws=16))[0]
        'ELBO and L_16 are lower bounds on log p(x): higher is better.'
    """
    e = evaluation
    said = [f"ELBO and L_{e.draws} are lower bounds on log p(x): higher is better."]
    if e.coded:
        bits = e.rate.bits()
        said = [
            "The ELBO is a lower bound on log p(x): higher is better. z is a deterministic code: "
            f"rate + distortion is the length of a code for x, {plain(bits)} bits of it for z. "
            "There is no KL of densities, and more draws do not tighten the bound."
        ]
    elif e.loose is None:
        said.append(
            f"How many bounds are loose is not known with {e.draws} draws; "
            f"use --draws {limits.DRAWS_FOR_LOOSE} or more."
        )
    elif e.loose > 0 and e.annealed is not None:
        share = ""
        if e.bits_per_dim is not None:  # of the same clips or images: in proportion
            ratio = e.annealed.value / abs(e.log_likelihood.value)
            share = f"; {ratio * e.bits_per_dim.value:.2g} {e.bits_per_dim.unit}"
        said.append(
            f"log p(x) is higher: by annealing at least {plain(e.annealed)} nats above "
            f"L_{e.draws} on the first {e.annealed.draws} test {noun}s (settled for "
            f"{e.annealed_settled} of them{share}); kullback evaluate --sandwich measures more."
        )
    elif e.loose > 0:
        said.append(
            f"{_percent(e.loose)} of {noun}s rest on fewer than {limits.LOOSE_DRAWS:g} effective "
            "draws: their bound is loose; kullback evaluate --sandwich measures how much."
        )
    if e.given:
        said.append(
            f"log p(x) is conditional on {e.given}: the rest with it known. Compare it only with "
            "models that are given the same."
        )
    if e.per_label:
        said.append(_by_label(e, noun))
    if e.kl_per_layer:
        said.append(
            "The KL of a layer given those above it has a closed form; it is averaged over draws "
            "of those above. The layers together are the rate."
        )
        unused = unused_layers([one.value for one in e.kl_per_layer])
        said += [f"{unused[0].upper()}{unused[1:]}."] if unused else []
    elif not e.exact_rate:
        said.append(
            "There is no formula for the KL of this model: rate and ELBO average "
            "log q(z|x) - log p(z) over the draws."
        )
    none_active = e.active_units is None and e.rate.value <= limits.COLLAPSED_KL
    rate, known = e.rate.value, e.information_high
    kind = "sound" if noun == "clip" else ""
    unsaid = (
        collapse_of_information(rate, known, kind=kind)
        if known and rate > limits.COLLAPSED_KL
        else ""
    )
    if unsaid:
        said.append(f"{unsaid[0].upper()}{unsaid[1:]}.")
    elif known and known.value < rate / 2:
        said.append(
            f"Of the rate of {rate:.3g} nats z says at most {known.value:.3g} about x, I(x; z); "
            "the rest pays for codes that are not distributed as the prior."
        )
    elif known is None and not e.coded and rate > limits.COLLAPSED_KL:
        said.append(
            "I(x; z) was not measured: the rate is at least what z says about x, and can be paid "
            "for nothing."
        )
    if not unsaid and (e.active_units == 0 or none_active):
        said.append(
            "No latent dimension is active: the posterior has collapsed to the prior, or nearly."
        )
    if e.images == 1:
        said.append(f"There is one test {noun}, so no figure has an error bar.")
    named = (e.elbo, e.log_likelihood, e.gap, e.rate, e.distortion, e.bits_per_dim)
    doubts = [warning for figure in named if figure is not None for warning in figure.warnings]
    return said + list(dict.fromkeys(doubts))


def _by_label(e: Evaluation, noun: str) -> str:
    """Write L_K of every label, or of the six lowest and the six highest of many."""
    ranked = sorted(e.per_label, key=lambda one: one.log_likelihood.value)
    many = len(ranked) > limits.NAMED_LABELS
    half = limits.NAMED_LABELS // 2
    shown = [*ranked[:half], *ranked[-half:]] if many else list(e.per_label)
    each = "; ".join(f"{o.label}: {plain(o.log_likelihood)} ({o.images:,})" for o in shown)
    which = f", the {half} lowest and {half} highest of {len(ranked):,}" if many else ""
    return f"L_{e.draws} by label, in nats/{noun}, and how many {noun}s{which}: {each}."


def scope(evaluation: Evaluation, *, noun: str = "image") -> str:
    """Return in words what the error bars cover: how many examples and draws, and the seed.

    Args:
        evaluation: An evaluation of a VAE.
        noun: What one example is called, as from `noun_of`.

    Returns:
        One line, without its end.

    Example:
        >>> import torch
        >>> from kullback.vae import build, evaluate
        >>> scope(evaluate(build((4,), "binary"), torch.ones(8, 4), draws=16))
        '8 test images, 16 draws each, seed 0; ± is one standard error'
    """
    e = evaluation
    draws = "1 draw" if e.draws == 1 else f"{e.draws:,} draws"
    return f"{e.images:,} test {noun}s, {draws} each, seed {e.seed}; ± is one standard error"


def protocol_line(protocol: Mapping[str, Any]) -> str:
    """Return a protocol in one line, or a line that says that there is none.

    Args:
        protocol: As in `Dataset.protocol`, or an empty one.

    Returns:
        One line, without its end.

    Example:
        >>> protocol_line({})
        'no protocol was stored with these data'
    """
    try:
        return describe_protocol(dict(protocol))
    except DataError:
        return "no protocol was stored with these data"


def _percent(share: float) -> str:
    """Print a share as a percentage that is 0 or 100 only when it is so exactly."""
    percent = 100 * share
    if 0 < percent < 1:
        return "under 1 %"
    return "over 99 %" if 0 < 100 - percent < 1 else f"{percent:.0f} %"


_BOLD, _DIM, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def evaluation_table(
    evaluation: Evaluation, protocol: dict[str, Any], *, color: bool, width: int = 100
) -> str:
    """Return an evaluation as lines of text: metric, value ± error, unit, note.

    Args:
        evaluation: An evaluation of a VAE.
        protocol: Of the data that were evaluated; its line stands below the figures.
        color: With ANSI codes for bold and dim; nothing else differs.
        width: Columns at which the sentences are wrapped, at least 20; the table is never wrapped.

    Returns:
        The text, without a final newline.

    Example:
        >>> import torch
        >>> from kullback.vae import build, evaluate
        >>> figures = evaluate(build((4,), "binary"), torch.ones(8, 4))
        >>> evaluation_table(figures, {"event_shape": [4]}, color=False).splitlines()[1].split()[0]
        'ELBO'
    """
    noun = noun_of(protocol)
    rows = list(figures(evaluation, noun=noun).values())
    values = max(len("value ± error"), *(len(row.value) for row in rows))
    units = max(len(row.unit) for row in rows)
    bold, dim, reset = (_BOLD, _DIM, _RESET) if color else ("", "", "")
    lines = [f"{dim}{'metric':<15}  {'value ± error':>{values}}    {'unit':<{units}}  note{reset}"]
    for row in rows:
        value = f"{bold}{row.value:>{values}}{reset}"
        lines.append(f"{row.name:<15}  {value}    {row.unit:<{units}}  {dim}{row.note}{reset}")
    below = [scope(evaluation, noun=noun), protocol_line(protocol)]
    lines += ["", *(f"{dim}{line}{reset}" for line in below)]
    for sentence in remarks(evaluation, noun=noun):
        lines += textwrap.wrap(sentence, width=max(20, width), subsequent_indent="  ")
    return "\n".join(lines)


def sandwich_table(
    test: Gap, own: Gap, whole: Aggregate | None, *, noun: str = "image", explain: bool = False
) -> str:
    """Write log p(x) = ELBO + KL for test images and for the model's own, and what z carries.

    Args:
        test: The gap of test images.
        own: The gap of images that the model made.
        whole: The aggregate posterior, None where there are too few images for one.
        noun: What an example is called.
        explain: Whether to add the sum with its numbers in words, and every latent dimension.

    Returns:
        The text, without a final newline.

    Example:
        >>> import torch
        >>> from kullback.vae import Annealing, build, measure_gap
        >>> few = Annealing(chains=2, temperatures=2)
        >>> found = measure_gap(build((4,), "binary"), torch.ones(3, 4), annealing=few)
        >>> sandwich_table(found, found, None).splitlines()[0]
        'log p(x) = ELBO + KL(q(z|x) || p(z|x)), nats/image'
    """
    heads = ["", f"{test.images} test {noun}s", f"{own.images} made by the model"]
    rows = [heads, *([name, cell(test), cell(own)] for name, cell in _SANDWICH)]
    lines = [f"log p(x) = ELBO + KL(q(z|x) || p(z|x)), nats/{noun}", *aligned(rows, gap=GAP)]
    if whole is not None:
        lines += ["", *aligned(_aggregate_rows(whole, noun), gap=GAP)]
    sentences = gap_remarks(test, own) + ([] if whole is None else aggregate_remarks(whole))
    if explain:
        sentences = [*_explained(test, noun), *sentences]
        dimensions = [] if whole is None else _dimension_rows(whole)
        lines += ["", *aligned(dimensions, gap=GAP)] if dimensions else []
    lines.append("")
    for sentence in sentences:
        lines += textwrap.wrap(sentence, width=100, subsequent_indent="  ")
    return "\n".join(lines)


def _or_unknown(estimate: Estimate | None) -> str:
    return UNKNOWN if estimate is None else plain(estimate)


_SANDWICH: tuple[tuple[str, Callable[[Gap], str]], ...] = (
    ("log p(x), at most", lambda g: _or_unknown(g.upper)),
    ("log p(x), at least", lambda g: plain(g.lower)),
    ("  between the two", lambda g: _or_unknown(g.width)),
    ("ELBO", lambda g: plain(g.elbo)),
    ("KL, at most", lambda g: _or_unknown(g.kl_upper)),
    ("KL, at least", lambda g: plain(g.kl_lower)),
    ("  approximation", lambda g: plain(g.approximation)),
    ("  amortisation", lambda g: plain(g.amortisation)),
    ("settled", lambda g: f"{g.settled} of {g.images}"),
)


def _aggregate_rows(whole: Aggregate, noun: str) -> list[list[str]]:
    low, high = whole.information_low, whole.information_high
    return [
        [f"rate = I(x; z) + KL(q(z) || p(z)), {whole.items:,} test {noun}s", "at least", "at most"],
        ["rate", plain(whole.rate), plain(whole.rate)],
        ["I(x; z)", plain(low), plain(high)],
        ["KL(q(z) || p(z))", plain(whole.kl_low), plain(whole.kl_high)],
    ]


def _dimension_rows(whole: Aggregate) -> list[list[str]]:
    """Return a row for each latent dimension that carries something, the most first."""
    each = {
        "rate": whole.rate_each,
        "KL(q(z_d) || p(z_d)), at least": whole.kl_low_each,
        "at most": whole.kl_high_each,
        "I(x; z_d), at least": whole.information_low_each,
        "at most ": whole.information_high_each,
    }
    if whole.rate_each is None:
        return []
    known = {name: one for name, one in each.items() if one is not None}
    rates = whole.rate_each.value
    used = [d for d in rates.argsort(descending=True).tolist() if rates[d] >= limits.ACTIVE_KL]
    rows = [["dimension", *known]]
    for d in used:
        one = [
            replace(e, value=float(e.value[d]), standard_error=float(e.standard_error[d]))
            for e in known.values()
        ]
        rows.append([f"z[{d}]", *(plain(e) for e in one)])
    return rows if used else []


def _explained(test: Gap, noun: str) -> list[str]:
    return [
        f"log p(x) = ELBO + KL, for each {noun}, here: at least {test.lower.value:.2f} = "
        f"{test.elbo.value:.2f} + at least {test.kl_lower.value:.2f} nats.",
        "At least: annealed importance sampling from q(z|x) to p(z|x), below log p(x) in "
        "expectation. At most: the same chains run backwards from an exact draw of p(z|x).",
        "Approximation: what remains when q is refitted for each image by itself. Amortisation: "
        f"what the encoder costs on top. The two add up to KL, at least. ± is over {noun}s.",
        f"Settled: test {noun}s where the variance of log w over chains is at most "
        f"{limits.SETTLED_LOG_VARIANCE:g}, and the model's own whose two bounds are at most "
        f"{limits.SETTLED_WIDTH:g} nats apart.",
        "I(x; z): how much z says about x, of the rate; the rest, KL(q(z) || p(z)), is paid "
        "because the codes of all images together are not distributed as the prior.",
    ]
