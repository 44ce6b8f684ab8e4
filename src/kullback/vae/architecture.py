"""Kinds of data and the likelihoods that fit them: names only, no torch.

What a model is made of, as plain data that a run directory can hold.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from kullback.core import RunError, require

from .limits import (
    CATEGORICAL_LEVELS,
    COMPONENTS,
    CONV_MIN_SIDE,
    MAX_LAYERS,
    MAX_WIDTH,
    NEIGHBOURS,
    PATCH_COMPONENTS,
    PATCH_NUMBERS,
    SOUND_CONTEXT,
)

__all__ = [
    "COUNTS",
    "KINDS",
    "LIKELIHOODS",
    "POSTERIORS",
    "PRIORS",
    "Architecture",
    "Spec",
    "choose",
]

KINDS = ("binary", "8-bit", "levels", "counts", "continuous", "sound")

LIKELIHOODS = {
    "bernoulli": ("binary",),
    "logistics": ("8-bit", "levels"),
    "categorical": ("8-bit", "levels"),
    "beta_binomial": ("8-bit", "levels"),
    "poisson": ("counts",),
    "negative_binomial": ("counts",),
    "zero_inflated_negative_binomial": ("counts",),
    "gaussian": ("continuous",),
    "laplace": ("continuous",),
    "student": ("continuous",),
    "continuous_bernoulli": ("continuous",),
    "autoregressive": ("sound",),
}
COUNTS = tuple(name for name, kinds in LIKELIHOODS.items() if kinds == ("counts",))
DENSITIES = tuple(name for name, kinds in LIKELIHOODS.items() if kinds == ("continuous",))
_REASONS = {
    "binary": ("bernoulli", "the data are 0 and 1"),
    "8-bit": ("logistics", "the data are 8-bit levels"),
    "levels": ("logistics", "the data are equally spaced levels"),
    "counts": ("negative_binomial", "the data are counts"),
    "continuous": ("gaussian", "the data are continuous"),
    "sound": ("autoregressive", "the data are integer samples of sound"),
}


def choose(kind: str, name: str = "auto") -> tuple[str, str]:
    """Pick a likelihood for data of a kind and say why, or refuse one that does not fit.

    Args:
        kind: "binary", "8-bit", "levels", "counts", "continuous" or "sound".
        name: One of `LIKELIHOODS`, or "auto".

    Returns:
        The likelihood's name and the reason, in words.

    Raises:
        ArgumentValueError: The likelihood does not fit the kind of data; the text says why.

    Example:
        >>> choose("8-bit")
        ('logistics', 'the data are 8-bit levels')
    """
    require(
        name == "auto" or name in LIKELIHOODS,
        "likelihood",
        f"auto or one of {[*LIKELIHOODS]}",
        name,
    )
    best, reason = _REASONS[kind]
    if name == "auto":
        return best, reason
    why = {
        ("8-bit", "bernoulli"): "grey levels are not outcomes of a coin; pass binarize='dynamic' "
        "to make them so, or likelihood='logistics'",
        ("8-bit", "gaussian"): "a continuous density on 8-bit levels has no maximum (the error "
        "goes to 0, the density to infinity), so its figure would mean nothing; use 'logistics'",
        (
            "levels",
            "gaussian",
        ): "a continuous density on levels has no maximum; use 'logistics', or for counts "
        "'negative_binomial', or read the data with levels='none'",
        ("counts", "gaussian"): "a continuous density at whole numbers is no probability, and has "
        "no maximum where a column repeats one (a gene that no cell has); use 'negative_binomial'",
        ("sound", "gaussian"): "a continuous density at integer samples is no probability, and has "
        "no maximum where the sound is silent; use 'autoregressive'",
        ("binary", "gaussian"): "a continuous density on bits has no maximum; use 'bernoulli'",
    }.get((kind, "gaussian" if name in DENSITIES else name), f"use {best!r}")
    if name in COUNTS:
        why = f"use {best!r}, or for counts read the data with levels='counts'"
    require(kind in LIKELIHOODS[name], "likelihood", f"one that fits {kind} data", repr(name), why)
    return name, "as asked"


ACTIVATIONS = ("relu", "silu", "tanh")
POSTERIORS = ("diagonal", "full", "low_rank", "iaf", "quantised")
PRIORS = ("normal", "mixture", "vamp", "flow")
USUAL = {
    "mlp": (500, 500),
    "conv": (32, 32, 32, 256),
    "patch": (32, 32, 32, 256),
    "sound": (48,),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What to build: everything that, with the data's shape and kind, determines a model.

    Args:
        network: "mlp", "conv", "patch", "sound", or "auto": sound for clips of sound; for images of
            8 pixels and more patch where their values are levels or at least 3,000, else conv; mlp
            for what is left.
        hidden: Widths of the encoder's hidden layers, which the decoder mirrors (for conv and patch
            see `ConvEncoder`; for sound one width); empty for the network's usual ones.
        latent: Dimensions of z.
        activation: "relu", "silu" or "tanh"; of "mlp" only.
        likelihood: "auto" or one of `LIKELIHOODS`.
        components: Of the logistics mixture; 0 for the usual ones: 5, or 3 with patch.
        neighbours: Pixels before it (left, above, above left, above right) on which a pixel of an
            image depends besides z, 0 to 4, with "logistics" and "bernoulli"; -1 for the usual
            ones: 4 for 8-bit images with conv and patch, else 0.
        context: Learned features of the pixels before it, within a window, on which a pixel of an
            image depends instead of `neighbours`, with "logistics" and "bernoulli": their number,
            once for each of the convolutions that make them, such as (16, 16); for sound learned
            features of the samples before it, and the errors one period before (`SoundContext`).
            Empty for the usual ones: none for images, 32 seven times for sound; (0,) for none.
        prior: "normal" is N(0, I); "mixture" learns a mixture of Gaussians, "vamp" a mixture of
            q(z|u) over pseudo-inputs u, "flow" a normalising flow.
        prior_components: Gaussians of "mixture", pseudo-inputs of "vamp".
        posterior: The family of q(z|x): "diagonal", "full" or "low_rank" Gaussians, or "iaf", an
            inverse autoregressive flow; "vamp" goes with "diagonal" only. "quantised" is a
            deterministic code with a prior over codes, which is learned.
        rank: Of "low_rank".
        layers: Stochastic layers: groups of the dimensions of z, from the top down, each of which
            depends on those above it: how many of equal size, or the sizes, which add up to latent.
            More than one goes with prior "normal" (of the top one) and posterior "diagonal" (of
            each, given those above).
        codes: Values that a dimension of z takes with posterior "quantised".

    Raises:
        ArgumentValueError: A value outside these.

    Example:
        >>> Architecture().resolved((1, 28, 28), "binary").hidden
        (32, 32, 32, 256)
        >>> Architecture().resolved((3, 64, 64), "8-bit").components
        3
    """

    network: str = "auto"
    hidden: tuple[int, ...] = ()
    latent: int = 32
    activation: str = "silu"
    likelihood: str = "auto"
    components: int = 0
    neighbours: int = -1
    context: tuple[int, ...] = ()
    prior: str = "normal"
    prior_components: int = 50
    posterior: str = "diagonal"
    rank: int = 4
    layers: int | tuple[int, ...] = 1
    codes: int = 8

    def __post_init__(self) -> None:
        known = self.network in ("auto", *USUAL)
        require(known, "network", "auto, mlp, conv, patch or sound", repr(self.network))
        known = self.activation in ACTIVATIONS
        require(known, "activation", f"one of {', '.join(ACTIVATIONS)}", repr(self.activation))
        widths = len(self.hidden) <= MAX_LAYERS and all(_positive(h) for h in self.hidden)
        require(widths, "hidden", "1 to 32 positive widths, such as 200,200", self.hidden)
        require(_positive(self.latent), "latent", "at least 1 dimension", self.latent)
        good = self.components == 0 or _positive(self.components)
        require(good, "components", "at least 1, or 0 for the usual ones", self.components)
        whole = isinstance(self.neighbours, int) and not isinstance(self.neighbours, bool)
        beside = whole and -1 <= self.neighbours <= NEIGHBOURS
        require(beside, "neighbours", "0 to 4, or -1 for the usual ones", self.neighbours)
        self._check_context()
        require(self.prior in PRIORS, "prior", f"one of {', '.join(PRIORS)}", repr(self.prior))
        several = _positive(self.prior_components)
        require(several, "prior_components", "at least 1", self.prior_components)
        known = self.posterior in POSTERIORS
        require(known, "posterior", f"one of {', '.join(POSTERIORS)}", repr(self.posterior))
        ranked = _positive(self.rank) and (self.posterior != "low_rank" or self.rank <= self.latent)
        require(ranked, "rank", f"from 1 to latent = {self.latent}", self.rank)
        both = self.prior != "vamp" or self.posterior == "diagonal"
        what = "diagonal with prior vamp, which is a mixture of q(z|u)"
        require(both, "posterior", what, repr(self.posterior), "prior mixture or flow")
        several = _positive(self.codes) and 2 <= self.codes <= CATEGORICAL_LEVELS
        expected = f"from 2 to {CATEGORICAL_LEVELS:,} values a dimension"
        require(several, "codes", expected, self.codes)
        coded = self.posterior != "quantised" or self.prior == "normal"
        own = "normal (the default) with posterior quantised, which has a prior over codes"
        require(coded, "prior", own, repr(self.prior))
        self._check_layers()
        count = self.layers if isinstance(self.layers, int) else len(self.layers)
        alone = count == 1 or (self.prior == "normal" and self.posterior == "diagonal")
        what = "prior normal and posterior diagonal: layers make both dependent themselves"
        got = f"{count} with {self.prior}, {self.posterior}"
        require(alone, "layers", f"1, or {what}", got)
        known = self.likelihood == "auto" or self.likelihood in LIKELIHOODS
        names = ", ".join(("auto", *LIKELIHOODS))
        require(known, "likelihood", f"one of {names}", repr(self.likelihood))

    def _check_context(self) -> None:
        """Raise an ArgumentValueError where the context is none that can be made."""
        widths = self.context
        good = len(widths) <= MAX_LAYERS and len(set(widths)) <= 1
        good = widths == (0,) or (good and all(_positive(one) for one in widths))
        require(good, "context", "up to 32 equal positive numbers, such as 16,16", widths)
        alone = widths in ((), (0,)) or self.neighbours <= 0
        hint = "a context, which reads the nearest pixels too, or neighbours"
        require(alone, "neighbours", "0 with a context", self.neighbours, hint)

    def _check_layers(self) -> None:
        """Raise an ArgumentValueError where the stochastic layers are no split of z."""
        if not isinstance(self.layers, tuple):
            good = _positive(self.layers) and self.layers <= min(self.latent, MAX_LAYERS)
            most = f"from 1 to {min(self.latent, MAX_LAYERS)}, at most latent = {self.latent}"
            require(good, "layers", most, self.layers)
            return
        good = 1 <= len(self.layers) <= MAX_LAYERS and all(_positive(n) for n in self.layers)
        require(good, "layers", f"1 to {MAX_LAYERS} positive sizes, such as 8,24", self.layers)
        total, listed = sum(self.layers), ",".join(map(str, self.layers))
        what, got = f"sizes that add up to latent = {self.latent}", f"{listed}, which is {total}"
        require(total == self.latent, "layers", what, got, f"latent {total}")

    @property
    def is_default(self) -> bool:
        """Whether every option has its default value.

        Example:
            >>> Architecture().is_default, Architecture(latent=8).is_default
            (True, False)
        """
        return self == Architecture()

    @property
    def pixels_before(self) -> str:
        """On which other pixels one depends, in words; "" where on none.

        Example:
            >>> Architecture(neighbours=2).pixels_before, Architecture(context=(8,)).pixels_before
            ('the 2 pixels before it', '8 features of the pixels before it')
        """
        if any(self.context) and self.network != "sound":
            return f"{self.context[0]} features of the pixels before it"
        return f"the {self.neighbours} pixels before it" if self.neighbours > 0 else ""

    def resolved(self, event_shape: tuple[int, ...], kind: str) -> "Architecture":
        """Return this architecture with every "auto" decided for data of a shape and kind.

        Args:
            event_shape: `(C, H, W)`, `(D,)`, or `(1, T)` for sound.
            kind: As in `choose`.

        Returns:
            The architecture, nothing in it "auto".

        Raises:
            ArgumentValueError: The likelihood does not fit the kind of data.
        """
        image = len(event_shape) == 3 and min(event_shape[1:]) >= CONV_MIN_SIDE
        mixture = kind in ("8-bit", "levels") and self.likelihood in ("auto", "logistics")
        large = math.prod(event_shape) >= PATCH_NUMBERS
        pictures = "patch" if mixture or large else "conv"
        usual = "sound" if kind == "sound" else pictures if image else "mlp"
        network = self.network if self.network != "auto" else usual
        fits = (network == "sound") == (kind == "sound")
        require(fits, "network", f"one for {kind} data", network, usual)
        hidden = self.hidden or USUAL[network]
        one = network != "sound" or len(hidden) == 1
        require(one, "hidden", "one width for sound, such as 48", hidden)
        likelihood, _ = choose(kind, self.likelihood)
        components = self.components or (PATCH_COMPONENTS if network == "patch" else COMPONENTS)
        spatial = image and kind == "8-bit" and mixture and network in ("conv", "patch")
        context = self.context or (SOUND_CONTEXT if network == "sound" else ())
        context = context if network == "sound" or any(context) else ()
        nearest = NEIGHBOURS * (spatial and not self.context)
        neighbours = self.neighbours if self.neighbours >= 0 else nearest
        before = len(event_shape) == 3 and likelihood in ("logistics", "bernoulli")
        what = f"with likelihood {likelihood} of {list(event_shape)}"
        hint = "logistics or bernoulli, of images"
        require(before or neighbours == 0, "neighbours", f"0 {what}", neighbours, hint)
        read = before or kind == "sound" or not context
        require(read, "context", f"none {what}", self.context, hint)
        return replace(
            self,
            network=network,
            hidden=hidden,
            likelihood=likelihood,
            components=components,
            neighbours=neighbours,
            context=context,
        )


_PRIORS_IN_WORDS = {
    "normal": "N(0, I)",
    "mixture": "learned mixture of {prior_components} Gaussians",
    "vamp": "VampPrior, q(z|u) at {prior_components} learned pseudo-inputs u",
    "flow": "learned normalising flow",
    "layers": "N(0, I) of the top layer, of each other a Gaussian given those above it",
    "codes": "learned distribution of codes",
}
_POSTERIORS_IN_WORDS = {
    "diagonal": "Gaussian with a diagonal covariance",
    "full": "Gaussian with a full covariance",
    "low_rank": "Gaussian with a covariance of rank {rank} and a diagonal",
    "iaf": "inverse autoregressive flow",
    "quantised": "one code of {codes} values a dimension",
}


def _layers_in_words(layers: int | tuple[int, ...]) -> str:
    if isinstance(layers, int):
        return f" in {layers} layers" if layers > 1 else ""
    return f" in layers of {', '.join(map(str, layers))} from the top" if len(layers) > 1 else ""


@dataclass(frozen=True, slots=True)
class Spec:
    """An architecture resolved for a data set: enough to build the same model again.

    event_shape: `(C, H, W)`, `(D,)`, or `(1, T)`. kind: one of `KINDS`. The architecture's choices
    are resolved, never "auto". levels: how many the data have, when they are levels. grid: what
    those stand for in the caller's units, as `Grid.to_dict` writes it; None where they are the
    caller's numbers. standardised: continuous data are brought to mean 0 and deviation 1 inside the
    model; models made before that are not, and keep their figures. own: the parts that are modules
    of the user's own, with the names of their classes; such a model is built with those alone.
    sound: rate, step and clip length of the data's sound, as in `Dataset.protocol`. sizes: of
    counts, where the size factor in the last column is from: "total" or "given"; "" where there is
    none. labels: on which the model is conditional; empty where on none.

    Example:
        >>> Spec((4,), "binary", Architecture(likelihood="bernoulli")).to_dict()["event_shape"]
        [4]
    """

    event_shape: tuple[int, ...]
    kind: str
    architecture: Architecture
    levels: int = 256
    grid: dict[str, Any] | None = None
    standardised: bool = False
    sound: dict[str, int] | None = None
    own: dict[str, str] | None = None
    sizes: str = ""
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        fields = asdict(self)
        fields["event_shape"] = list(self.event_shape)
        fields["architecture"]["hidden"] = list(self.architecture.hidden)
        fields["architecture"]["context"] = list(self.architecture.context)
        if isinstance(self.architecture.layers, tuple):
            fields["architecture"]["layers"] = list(self.architecture.layers)
        usual: dict[str, Any] = {"levels": 256, "grid": None, "standardised": False}
        usual |= {"sound": None, "own": None, "sizes": "", "labels": ()}
        for name in (n for n, value in usual.items() if fields[n] == value):
            del fields[name]
        if self.labels:
            fields["labels"] = list(self.labels)
        return fields

    @property
    def in_words(self) -> dict[str, str]:
        """Every part by name, in words: network, latent, prior, posterior, likelihood and labels.

        Example:
            >>> asked = Architecture(likelihood="bernoulli", context=(16, 16), layers=(8, 24))
            >>> words = Spec((1, 28, 28), "binary", asked, labels=("cat", "dog")).in_words
            >>> words["likelihood"]
            'bernoulli; a pixel depends on 16 features of the pixels before it too'
            >>> words["latent"]
            '32 dimensions in layers of 8, 24 from the top'
        """
        given = self.architecture
        fields = {name: getattr(given, name) for name in given.__slots__}
        layered = _layers_in_words(given.layers)
        coded = given.posterior == "quantised"
        prior = "codes" if coded else "layers" if layered else given.prior
        mixed = f", {given.components} components" if given.likelihood == "logistics" else ""
        before = f"; a pixel depends on {given.pixels_before} too" if given.pixels_before else ""
        words = {
            "network": f"{given.network} {'-'.join(map(str, given.hidden))}",
            "latent": f"{given.latent} dimensions{layered}",
            "prior": _PRIORS_IN_WORDS[prior].format(**fields),
            "posterior": _POSTERIORS_IN_WORDS[given.posterior].format(**fields)
            + (" of each layer given those above it" if layered else ""),
            "likelihood": f"{given.likelihood}{mixed}{before}",
        }
        own = {
            name: f"{one}, a module of the author's own" for name, one in (self.own or {}).items()
        }
        if {"encoder", "decoder"} <= set(own):
            del words["network"]
        conditional = {"labels": f"{len(self.labels)}, on which encoder and decoder depend"}
        return words | own | (conditional if self.labels else {})

    def compared(self) -> dict[str, Any]:
        """Return, by name, all that two models must share for one to take the other's weights.

        Example:
            >>> Spec((4,), "binary", Architecture(latent=8)).compared()["latent"]
            8
        """
        parts = sorted(self.own or {})
        fields = asdict(self) | {"shape": list(self.event_shape), "own parts": parts}
        for name in ("event_shape", "architecture", "own"):
            del fields[name]
        return fields | asdict(self.architecture)

    @classmethod
    def from_dict(cls, fields: Any, *, source: str = "config.json") -> "Spec":
        """Rebuild from `to_dict`; a RunError names the source when the fields do not fit.

        Example:
            >>> spec = Spec((4,), "binary", Architecture(likelihood="bernoulli"))
            >>> Spec.from_dict(spec.to_dict()) == spec
            True
        """
        try:
            shape = tuple(fields["event_shape"])
            architecture = dict(fields["architecture"])
            architecture["hidden"] = tuple(architecture["hidden"])
            if isinstance(architecture.get("layers"), list):
                architecture["layers"] = tuple(architecture["layers"])
            architecture.setdefault("neighbours", 0)  # models made before there were any
            none = (0,) if fields["kind"] == "sound" else ()  # models made before sound had one
            architecture["context"] = tuple(architecture.get("context", ())) or none
            later = ("levels", "grid", "standardised", "sound", "own", "sizes", "labels")
            more = {n: fields[n] for n in later if n in fields}
            more["labels"] = tuple(str(one) for one in more.get("labels", ()))
            spec = cls(shape, str(fields["kind"]), Architecture(**architecture), **more)
            if spec.kind in KINDS:
                choose(spec.kind, spec.architecture.likelihood)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{source}: the model's description is not usable: {error}") from error
        sizes = (2,) if spec.kind == "sound" else (1, 3)
        fits = spec.kind in KINDS and len(shape) in sizes
        fits = fits and (spec.kind != "sound" or _is_sound(spec.sound))
        fits = fits and spec.sizes in (("", "total", "given") if spec.kind == "counts" else ("",))
        fits = fits and _positive(spec.levels) and type(spec.standardised) is bool
        fits = fits and isinstance(spec.grid, dict | None) and isinstance(spec.own, dict | None)
        if not fits or not all(_positive(size) for size in shape):
            raise RunError(f"{source}: no model has shape {list(shape)} and kind {spec.kind!r}")
        return spec


def _is_sound(fields: object) -> bool:
    named = ("rate", "step", "clip")
    return isinstance(fields, dict) and all(_positive(fields.get(name)) for name in named)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_WIDTH
