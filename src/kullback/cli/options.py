"""The options of every command, as dataclasses that cyclopts turns into flags; no torch here.

`Whole` and `Real` are numbers as people type them (`--draws 1e6`, `--beta 1/2`). `Session` is what
every command takes. The defaults of a training are the library's own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kullback.core import require
from kullback.measure import number
from kullback.vae import Architecture, Training

from .limits import (
    FEWEST_DRAWS,
    FEWEST_FIT_DRAWS,
    FEWEST_SBC_FITS,
    MAX_DIMENSION,
    MAX_DRAWS,
    MAX_FIT_DRAWS,
    MAX_NUMBERS,
)
from .session import GATE_FAILED, Session, check_new, say

__all__ = [
    "AuditOptions",
    "DataOptions",
    "FitOptions",
    "GateOptions",
    "MeasureOptions",
    "ModelOptions",
    "Options",
    "P",
    "Q",
    "Real",
    "Session",
    "Shared",
    "TrainingOptions",
    "Whole",
    "about",
    "exit_code",
]


def _real(_type: Any, tokens: Sequence[Any]) -> float:
    """Read an option's number."""
    text = tokens[0].value
    value = number(text)
    if value is None:
        raise ValueError(f"expected a number such as 0.5 or 1e-3; got {text.strip()!r}")
    return value


def _whole(_type: Any, tokens: Sequence[Any]) -> int:
    """Read an option's whole number, also as 1e6 and 1_000_000."""
    text = tokens[0].value.strip()
    if re.fullmatch(r"[+-]?\d{1,19}", text):
        return int(text)
    value = number(text)
    if value is None or value != value or abs(value) >= 2**63 or value != int(value):
        raise ValueError(f"expected a whole number such as 10000 or 1e4; got {text!r}")
    return int(value)


Real = Annotated[float, Parameter(converter=_real)]
Whole = Annotated[int, Parameter(converter=_whole)]


ARCHITECTURE, TRAINING = Architecture(), Training()


Shared = Annotated[Session | None, Parameter(name="*", group="Session")]


def about(text: str) -> Parameter:
    """Describe an option; a switch gets no `--no-…`."""
    return Parameter(help=text, negative="", consume_multiple=False)


def _widths(option: str, text: str, example: str) -> tuple[int, ...]:
    """Return numbers separated by commas; a ValueError names the option."""
    parts = text.split(",") if text else []
    good = all(part.strip().isdigit() for part in parts)
    require(good, option, f"widths such as {example}", repr(text))
    return tuple(int(part) for part in parts)


@dataclass(kw_only=True)
class GateOptions:
    """What a measured KL must keep to: limits that decide about the exit code."""

    fail_above: Annotated[
        Real | None, about("Exit with code 4 where the lower limit is above this, in nats.")
    ] = None
    require_below: Annotated[
        Real | None, about("Exit with code 4 unless the upper limit is below this, in nats.")
    ] = None
    confidence: Annotated[Real, about("Of these one-sided limits.")] = 0.95

    def check_gate(self) -> None:
        """Raise a ValueError where the confidence is none."""
        fits = 0.5 < self.confidence < 1.0
        require(fits, "--confidence", "a number between 0.5 and 1", self.confidence)

    def gate(self, found: Any) -> Any:
        """Return the gate's decision about what was found, None where no limit is given."""
        if self.fail_above is None and self.require_below is None:
            return None
        return found.gate(
            fail_above=self.fail_above,
            require_below=self.require_below,
            confidence=self.confidence,
        )


def exit_code(gate: Any) -> int:
    """Say what a gate decided, a failure also with `--quiet`; return the command's exit code."""
    if gate is None:
        return 0
    say(f"gate: {gate.words}", always=gate.failed)
    return GATE_FAILED if gate.failed else 0


@dataclass(kw_only=True)
class DataOptions:
    """How to read the data."""

    size: Annotated[
        str | None, about("Bring images to this size: 64, or 48x64 (height x width).")
    ] = None
    fit: Annotated[
        str, about("How: crop (cover, cut the rest) or pad (fit inside, add a border).")
    ] = "crop"
    channels: Annotated[str, about("auto, grey or rgb; of sound: mix or each.")] = "auto"
    rate: Annotated[
        Whole | None, about("Sound: samples a second (default: the commonest among the files).")
    ] = None
    clip_seconds: Annotated[
        Real | None, about("Sound: length of a clip (default: 1, or the longest sound if shorter).")
    ] = None
    background: Annotated[
        str,
        about("Lay transparent pictures over auto (white or black), white, black or #rrggbb."),
    ] = "auto"
    frames: Annotated[str, about("Of GIF, TIFF and animated files: first or all.")] = "first"
    binarize: Annotated[str, about("none, static (once) or dynamic (afresh every epoch).")] = "none"
    levels: Annotated[
        str,
        about("auto (found in the values), none (a density), counts, or quantise to so many: 256."),
    ] = "auto"
    size_factors: Annotated[
        str, about("Of counts: auto (given ones), none, total (of each row) or given.")
    ] = "auto"
    label: Annotated[
        str, about("Model p(x | label): folder (its name), or an array or column of the data.")
    ] = ""
    storage: Annotated[
        str,
        about("Of arrays: auto, memory, or disk (a batch at a time; shards, large .npy files)."),
    ] = "auto"
    test_fraction: Annotated[Real, about("Share kept for testing when the data have no split.")] = (
        0.1
    )

    def parsed_levels(self) -> int | str:
        """Return --levels as the library takes it."""
        return int(self.levels) if self.levels.isdigit() else self.levels

    def parsed_size(self) -> int | tuple[int, int] | None:
        """Return --size as the library takes it."""
        if self.size is None:
            return None
        parts = self.size.lower().split("x")
        good = len(parts) <= 2 and all(part.isdigit() and int(part) > 0 for part in parts)
        require(good, "--size", "64 or 48x64", repr(self.size))
        sizes = [int(part) for part in parts]
        return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


@dataclass(kw_only=True)
class ModelOptions:
    """What to train."""

    network: Annotated[str, about("auto, mlp, conv, patch or sound.")] = ARCHITECTURE.network
    hidden: Annotated[
        str, about("Widths such as 200,200 (conv, patch: 32,32,32,256); default: usual.")
    ] = ""
    latent: Annotated[
        Whole | None, about("Dimensions of z (default: 32, or the sum of --layers 8,24).")
    ] = None
    activation: Annotated[str, about("silu, tanh or relu (mlp only).")] = ARCHITECTURE.activation
    likelihood: Annotated[
        str,
        about(
            "auto, bernoulli; logistics, categorical or beta_binomial (levels); poisson, "
            "negative_binomial or zero_inflated_negative_binomial (counts); gaussian, laplace, "
            "student or continuous_bernoulli (densities); autoregressive (sound)."
        ),
    ] = "auto"
    components: Annotated[Whole, about("Of the mixture of logistics; 0: the usual 3 or 5.")] = (
        ARCHITECTURE.components
    )
    neighbours: Annotated[
        Whole,
        about("Pixels before it that a pixel depends on, 0 to 4; -1: 4 for 8-bit images, else 0."),
    ] = ARCHITECTURE.neighbours
    context: Annotated[
        str,
        about(
            "Features of the pixels (samples of sound) before it that one depends on, their number "
            "once for each convolution: 16,16 (default: none; sound: 32 seven times; 0: none)."
        ),
    ] = ""

    prior: Annotated[
        str, about("normal, mixture, vamp (of pseudo-inputs) or flow: what z is drawn from.")
    ] = ARCHITECTURE.prior
    prior_components: Annotated[
        Whole, about("Gaussians of --prior mixture, pseudo-inputs of --prior vamp.")
    ] = ARCHITECTURE.prior_components

    posterior: Annotated[
        str,
        about(
            "diagonal, full, low_rank or iaf (a flow): the family of q(z|x); or quantised (codes)."
        ),
    ] = ARCHITECTURE.posterior
    rank: Annotated[Whole, about("Of --posterior low_rank.")] = ARCHITECTURE.rank
    layers: Annotated[
        str,
        about(
            "Stochastic layers: groups of z, each dependent on those above it; how many, or their "
            "sizes from the top down: 8,24."
        ),
    ] = "1"
    codes: Annotated[Whole, about("Values of a dimension of z, --posterior quantised.")] = (
        ARCHITECTURE.codes
    )

    def parsed_layers(self) -> int | tuple[int, ...]:
        """Return --layers as the library takes it: how many, or the size of each."""
        parts = [part.strip() for part in self.layers.split(",")]
        good = all(re.fullmatch(r"\d{1,9}", part) for part in parts)
        require(good, "--layers", "a number such as 2, or sizes such as 8,24", repr(self.layers))
        return int(parts[0]) if len(parts) == 1 else tuple(map(int, parts))

    def architecture(self) -> Architecture:
        """Return the library's settings; a ValueError says which option is wrong."""
        hidden = _widths("--hidden", self.hidden, "200,200")
        layers = self.parsed_layers()
        sizes = layers if isinstance(layers, tuple) else (ARCHITECTURE.latent,)
        return Architecture(
            network=self.network,
            hidden=hidden,
            latent=sum(sizes) if self.latent is None else self.latent,
            activation=self.activation,
            likelihood=self.likelihood,
            components=self.components,
            neighbours=self.neighbours,
            context=_widths("--context", self.context, "16,16"),
            prior=self.prior,
            prior_components=self.prior_components,
            posterior=self.posterior,
            rank=self.rank,
            layers=layers,
            codes=self.codes,
        )


@dataclass(kw_only=True)
class TrainingOptions:
    """How to train it."""

    minutes: Annotated[Real | None, about("Train for so long (default: 2).")] = None
    epochs: Annotated[Real | None, about("Or for so many passes over the data.")] = None
    steps: Annotated[Whole | None, about("Or for so many steps.")] = None
    objective: Annotated[
        str,
        about(
            "elbo, stl, iwae (doubly reparameterised), iwae_plain, renyi, ciwae, miwae or piwae."
        ),
    ] = TRAINING.objective
    draws: Annotated[Whole, about("Draws of q(z|x) per image and step.")] = TRAINING.draws
    alpha: Annotated[Real, about("Order of renyi, or share of the ELBO in ciwae.")] = TRAINING.alpha
    groups: Annotated[Whole, about("Groups of draws of miwae and piwae.")] = TRAINING.groups
    balance: Annotated[
        bool, about("During --warmup weight the KL of each of several --layers by its share.")
    ] = TRAINING.balance
    tighten: Annotated[Real, about("Last share of the run on the tighter bound.")] = 0.0
    beta: Annotated[Real, about("Weight of the KL; only 1 is the ELBO.")] = TRAINING.beta
    warmup: Annotated[
        Real | None,
        about("First share of the run over which beta rises from 0 (default: 0; 0.5 for sound)."),
    ] = None
    free_bits: Annotated[
        Real | None,
        about("Nats per latent dimension left uncharged (default: 0; 0.5 for sound)."),
    ] = None
    batch_size: Annotated[
        Whole | None, about("Per step (default: 64 images, 32 large ones, 4 clips, 128 vectors).")
    ] = None
    learning_rate: Annotated[
        Real | None,
        about(
            "The peak of its schedule (default: 0.004; 0.003 for sound; 0.008 for 100 images and "
            "more, below 3,000 numbers, with the default network)."
        ),
    ] = None
    weight_decay: Annotated[
        Real | None, about("AdamW's (default: 0.1; 0.3 where the learning rate is 0.008).")
    ] = None
    clip: Annotated[
        Real | None, about("Largest gradient norm (default: 1000; 20,000 for sound).")
    ] = None
    precision: Annotated[str, about("auto, float32 or bfloat16 (of the matrix products).")] = (
        TRAINING.precision
    )
    seed: Annotated[Whole, about("Of everything random: weights, order, bits, noise.")] = (
        TRAINING.seed
    )
    validation: Annotated[
        Real | None,
        about(
            "Share of the training data held out to pick the best weights on (default: 0; 0.1 "
            "of 100 to 4,999 images)."
        ),
    ] = None

    def training(
        self,
        kind: str,
        event_shape: tuple[int, ...] = (),
        *,
        examples: int | None = None,
        plain: bool = False,
    ) -> Training:
        """Return the library's settings for data; a ValueError says which option is wrong."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        known: dict[str, Any] = {"examples": examples, "plain": plain}
        return Training.usual(kind, event_shape, **known, **given)


@dataclass(kw_only=True)
class AuditOptions:
    """What the loss is and where the report goes."""

    form: Annotated[
        str,
        about("loss, penalty (taken from the reward) or reward; auto goes by the function's name."),
    ] = "auto"
    credit: Annotated[
        str, about("A penalty multiplies the score of: token (its own), to-go or sequence.")
    ] = "to-go"
    importance: Annotated[
        str, about("A penalty is weighted off-policy by: none, token or sequence.")
    ] = "none"
    batch: Annotated[Whole, about("Sequences a call, for losses that mix them: 1, 2 or 3.")] = 1
    name: Annotated[
        list[str] | None, about("What a parameter stands for, as in --name x=logp; repeatable.")
    ] = None
    json: Annotated[bool, about("Print one JSON object.")] = False
    html: Annotated[Path | None, about("Write a page with pictures to this .html file.")] = None
    force: Annotated[bool, about("Replace an existing file.")] = False

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        if self.html is not None:
            check_new("--html", self.html, ".html", force=self.force)
        for one in self.name or []:
            good = all(one.partition("="))
            require(good, "--name", "PARAMETER=MEANING", one, "--name x=logp")

    def arguments(self) -> dict[str, Any]:
        """Return what the library's audit is given."""
        parts = (one.partition("=") for one in self.name or [])
        names = {parameter: role for parameter, _, role in parts}
        same = ("form", "credit", "importance", "batch")
        return {key: getattr(self, key) for key in same} | {"names": names}


FORMS = (
    "0.5,0.25,0.25 (also 1/2,1/4,1/4 and 50%,25%,25%), a .csv, .json or .npy file, - for standard "
    "input, or a name: normal(0,1), N(0,1), t(5), mvn([0,0],[[1,.5],[.5,1]])."
)

P = Annotated[str, Parameter(help=f"The distribution P: {FORMS}")]
Q = Annotated[str, Parameter(help="The distribution Q, in the same form.")]


@dataclass(kw_only=True)
class MeasureOptions:
    """How to measure and how to show it."""

    unit: Annotated[Literal["nats", "bits"], Parameter(help="nats or bits.")] = "nats"
    normalise: Annotated[
        bool, Parameter(help="Counts, percentages: divide by their sum.", negative="")
    ] = False
    weights: Annotated[
        bool,
        Parameter(
            help="Divide by the sum also where the numbers look like raw observations.", negative=""
        ),
    ] = False
    log: Annotated[
        bool,
        Parameter(
            help="Tables hold natural logarithms; logits with --normalise as well.", negative=""
        ),
    ] = False
    draws: Annotated[Whole, Parameter(help="Samples, where there is no exact way.")] = 10_000
    seed: Annotated[Whole, Parameter(help="Of the random samples.")] = 0
    explain: Annotated[
        bool, Parameter(help="Write out formula, numbers and what they mean.", negative="")
    ] = False
    plot: Annotated[Path | None, Parameter(help="Draw it to this .svg file.")] = None
    force: Annotated[bool, Parameter(help="Replace an existing file.", negative="")] = False
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        few = f"at least {FEWEST_DRAWS}"
        require(self.draws >= FEWEST_DRAWS, "--draws", few, self.draws)
        most = f"at most {MAX_DRAWS:,}"
        require(self.draws <= MAX_DRAWS, "--draws", most, f"{self.draws:,}", "--draws 1e6")
        require(0 <= self.seed < 2**63, "--seed", "an integer from 0 to 2^63 - 1", self.seed)
        if self.plot is not None:
            check_new("--plot", self.plot, ".svg", force=self.force)


Options = Annotated[MeasureOptions | None, Parameter(name="*")]


@dataclass(kw_only=True)
class FitOptions:
    """How to fit and how to show it."""

    family: Annotated[
        str,
        Parameter(help="auto, mean_field, full_rank, low_rank, student_t, mixture or flow."),
    ] = "auto"
    direction: Annotated[
        Literal["reverse", "forward", "both"],
        Parameter(help="reverse KL(q‖p), forward KL(p‖q), or both exactly (1 or 2 dimensions)."),
    ] = "reverse"
    components: Annotated[
        Whole, Parameter(help="Gaussians in the mixture that --direction both shows.")
    ] = 2
    dim: Annotated[
        Whole | None, Parameter(help="Dimension of z, where the file has no parameters.")
    ] = None
    draws: Annotated[Whole, Parameter(help="Samples of q, on which the verdict rests.")] = 4000
    max_seconds: Annotated[
        float | None,
        Parameter(
            help="Wall time after which a fit stops and returns the q that it has; by default 600."
        ),
    ] = None
    seed: Annotated[Whole, Parameter(help="Of everything random.")] = 0
    resample: Annotated[
        bool, Parameter(help="Correct the table by importance weights.", negative="")
    ] = False
    reference: Annotated[
        Path | None,
        Parameter(help="Reference draws (.csv or .npy) to compare q with, in table and plot."),
    ] = None
    explain: Annotated[
        bool,
        Parameter(help="Write out log p(x) = ELBO + KL with the fit's numbers.", negative=""),
    ] = False
    sbc: Annotated[
        Whole | None,
        Parameter(
            help="Fit to this many data sets simulated from the model, and test that the parameters"
            " they were drawn with rank uniformly among a fit's draws. The file's"
            " simulate(generator) returns (parameters, data); log_density takes data= as well."
        ),
    ] = None
    workers: Annotated[
        Whole | None, Parameter(help="Processes for --sbc; by default one a core.")
    ] = None
    plot: Annotated[Path | None, Parameter(help="Draw it to this .svg file.")] = None
    out: Annotated[Path | None, Parameter(help="Keep draws, summary and verdict here.")] = None
    force: Annotated[bool, Parameter(help="Replace existing files.", negative="")] = False
    json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False

    @property
    def time(self) -> dict[str, Any]:
        """The argument `max_seconds` of `fit`, where it was given."""
        return {} if self.max_seconds is None else {"max_seconds": self.max_seconds}

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        few = f"at least {FEWEST_FIT_DRAWS}"
        require(self.draws >= FEWEST_FIT_DRAWS, "--draws", few, self.draws)
        most = f"at most {MAX_FIT_DRAWS:,}"
        require(self.draws <= MAX_FIT_DRAWS, "--draws", most, f"{self.draws:,}", "--draws 1e5")
        require(0 <= self.seed < 2**63, "--seed", "an integer from 0 to 2^63 - 1", self.seed)
        require(self.dim is None or self.dim >= 1, "--dim", "at least 1", self.dim)
        dim = self.dim or 1
        require(dim <= MAX_DIMENSION, "--dim", f"at most {MAX_DIMENSION:,}", f"{dim:,}")
        held = dim * self.draws  # numbers in memory, several times over
        few = f"{MAX_NUMBERS:,} numbers in memory at most"
        got = f"{held:,} (--dim times --draws)"
        require(held <= MAX_NUMBERS, "--draws", few, got, f"--draws {MAX_NUMBERS // dim}")
        require(self.components >= 1, "--components", "at least 1", self.components)
        seconds = 1.0 if self.max_seconds is None else self.max_seconds
        require(seconds > 0, "--max-seconds", "seconds above 0", f"{seconds:g}")
        both = self.direction == "both"
        timed = both and self.max_seconds is not None
        require(not timed, "--max-seconds", "one direction", "both")
        require(not (both and self.out), "--out", "one direction", "both")
        require(not (both and self.family != "auto"), "--family", "one direction", "both")
        require(not (both and self.reference), "--reference", "one direction", "both")
        require(not (both and self.explain), "--explain", "one direction", "both")
        few = f"at least {FEWEST_SBC_FITS}"
        require(self.sbc is None or self.sbc >= FEWEST_SBC_FITS, "--sbc", few, self.sbc)
        others = {"--out": self.out, "--reference": self.reference, "--explain": self.explain}
        for flag, value in ({"--direction both": both} | others).items():
            require(self.sbc is None or not value, flag, "a fit to data of its own", "--sbc")
        alone = self.workers is None or self.sbc is not None
        require(alone, "--workers", "--sbc beside it", "none")
        require(self.workers is None or self.workers >= 1, "--workers", "at least 1", self.workers)
        if self.plot is not None:
            check_new("--plot", self.plot, ".svg", force=self.force)
        if self.out is not None:
            folder = not self.out.exists() or self.out.is_dir()
            require(folder, "--out", "a folder", str(self.out))
            new = self.force or not (self.out / "fit.json").exists()
            require(new, "--out", "a folder without a fit", str(self.out), "--force")
