"""How to train: the settings of a run, the schedules that follow from them, and presets.

A preset is a named set of option values for model and training; every one of them can be given by
hand as well, and what the caller gives goes first. Their evidence and time: docs/vae.md.
"""

import difflib
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from kullback.core import require

from .architecture import Architecture
from .limits import (
    FEW_IMAGES,
    FEW_VALIDATION,
    IMAGE_BATCH,
    IMAGE_DECAY,
    IMAGE_RATE,
    LARGE_IMAGE_BATCH,
    PATCH_NUMBERS,
    SHORT_PASSES,
    SHORT_SOUND_STEPS,
    SHORT_STEPS,
    SOUND_BATCH,
    SOUND_CLIP_NORM,
    SOUND_RATE,
    SOUND_WARMUP,
)

__all__ = ["OBJECTIVES", "PRESETS", "Preset", "Training", "preset", "too_short"]

OBJECTIVES = ("elbo", "stl", "iwae", "renyi", "ciwae", "miwae", "piwae", "iwae_plain")
_OBJECTIVES_IN_WORDS = {
    "elbo": "ELBO",
    "stl": "ELBO with gradients by the path of z alone",
    "iwae": "L_{k} with doubly reparameterised gradients",
    "iwae_plain": "L_{k} with plain gradients",
    "renyi": "Rényi bound of order {alpha:g}",
    "ciwae": "CIWAE with {alpha:g} of the ELBO",
    "miwae": "MIWAE",
    "piwae": "PIWAE",
}


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of one training run; every figure it leads to depends on them.

    Args:
        objective: "elbo" (with the closed-form KL where there is one); "stl", the ELBO with
            gradients by the path of z alone; "iwae", importance-weighted with doubly
            reparameterised gradients; "iwae_plain", the same with the plain gradient; "renyi",
            "ciwae", "miwae" or "piwae", see `kullback.variational.WeightedBound`.
        draws: Of q(z|x) per image and step.
        alpha: The order of "renyi", or the share of the ELBO in "ciwae".
        groups: Of draws, in "miwae" and "piwae".
        balance: Whether the KL of every stochastic layer is weighted during the warm-up by its
            share, so that no layer is given up early (see `balance_weights`); "elbo" only.
        tighten: The last share of the run that trains on the importance-weighted bound whatever
            the objective before; until then one draw.
        beta: Weight of the KL, in nats against nats, summed over dimensions; only β = 1 is the
            ELBO.
        warmup: The first share of the run, over which β rises from 0.
        free_bits: Nats per latent dimension left out of the loss ("elbo" only).
        minutes: The budget. Give one of minutes, epochs and steps; with none, two minutes.
        epochs: The budget, in passes over the training examples.
        steps: The budget, in steps.
        batch_size: Examples a step.
        learning_rate: The peak, reached after a short linear rise, then falling to 0 along a
            cosine.
        weight_decay: Of matrices and filters, decoupled.
        clip: Largest gradient norm.
        average: The weights used for evaluation average about this fraction of the steps so far.
        precision: Of the matrix products: "auto", "float32" or "bfloat16" (weights stay float32).
        seed: Of the weights, the order of the examples and the noise.
        validation: The share of the training examples that is held out, on which the step with the
            best weights is picked; 0 keeps the last weights. The test set is never used for it.

    Raises:
        ArgumentValueError: A value outside these, or more than one budget.

    Example:
        >>> Training(steps=100).budget
        ('steps', 100)
    """

    objective: str = "elbo"
    draws: int = 1
    tighten: float = 0.0
    beta: float = 1.0
    warmup: float = 0.0
    free_bits: float = 0.0
    minutes: float | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    clip: float = 1000.0
    average: float = 0.03
    precision: str = "auto"
    seed: int = 0
    validation: float = 0.0
    alpha: float = 0.5
    groups: int = 1
    balance: bool = False

    def __post_init__(self) -> None:
        known = self.objective in OBJECTIVES
        hint = "iwae, whose gradient is doubly reparameterised" if self.objective == "dreg" else ""
        names = ", ".join(OBJECTIVES)
        require(known, "objective", f"one of {names}", repr(self.objective), hint)
        require(self.draws >= 1, "draws", "at least 1", self.draws)
        share = math.isfinite(self.alpha) and (self.objective != "ciwae" or 0 <= self.alpha <= 1)
        require(share, "alpha", "a finite number, 0 to 1 for ciwae", self.alpha)
        split = self.groups >= 1 and self.draws % self.groups == 0
        require(split, "groups", f"a divisor of the {self.draws} draws", self.groups)
        require(0 <= self.tighten <= 1, "tighten", "a share of the run, 0 to 1", self.tighten)
        require(self.beta >= 0, "beta", "at least 0", self.beta)
        require(0 <= self.warmup <= 1, "warmup", "a fraction of the run, 0 to 1", self.warmup)
        require(self.free_bits >= 0, "free_bits", "nats, at least 0", self.free_bits)
        free = self.free_bits == 0 or self.objective == "elbo"
        why = f"0 with objective {self.objective}"
        require(free, "free_bits", why, self.free_bits, "free_bits=0, or objective=elbo")
        held = not self.balance or (self.objective == "elbo" and self.warmup > 0)
        hint = "objective='elbo', warmup=0.3"
        require(held, "balance", "a warm-up of the plain ELBO, during which it acts", "none", hint)
        given = [b for b in (self.minutes, self.epochs, self.steps) if b is not None]
        require(
            len(given) <= 1, "budget", "one of minutes, epochs or steps", f"{len(given)} of them"
        )
        positive = all(b > 0 and math.isfinite(b) for b in given)
        require(positive, "budget", "a positive number of minutes, epochs or steps", given)
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        good = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(good, "learning_rate", "a positive number", self.learning_rate)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        require(self.clip > 0, "clip", "a positive norm", self.clip)
        require(0 < self.average <= 1, "average", "a fraction of the run", self.average)
        share = 0 <= self.validation < 1
        require(share, "validation", "a share of the training examples, 0 to 1", self.validation)
        known = self.precision in ("auto", "float32", "bfloat16")
        require(known, "precision", "auto, float32 or bfloat16", repr(self.precision))

    @classmethod
    def usual(
        cls,
        kind: str,
        event_shape: tuple[int, ...] = (),
        *,
        examples: int | None = None,
        plain: bool = False,
        **given: Any,
    ) -> "Training":
        """Return the usual settings for data of a kind and shape, and those given.

        A step has 4 clips of sound, 64 images, or 32 images of 3,000 numbers and more. Of 100 to
        4,999 training images a tenth is held out, and the best weights are picked on it.

        Args:
            kind: As in `Dataset`.
            event_shape: As in `Dataset`; without it a step has 128 examples.
            examples: Different ones for training; without it none is held out.
            plain: Whether the architecture is the default one and starts from scratch. With the
                ELBO and the usual batch its learning rate and weight decay are then those that
                were tuned for 100 or more bits and 8-bit images of fewer than 3,000 numbers.
            **given: Settings other than the usual ones.

        Returns:
            The settings.

        Example:
            >>> Training.usual("sound").batch_size, Training.usual("8-bit").batch_size
            (4, 128)
            >>> Training.usual("8-bit", (3, 64, 64)).batch_size
            32
            >>> Training.usual("8-bit", (1, 28, 28), examples=300).validation
            0.1
        """
        usual: dict[str, Any] = {}
        if kind == "sound":
            usual = {
                "batch_size": SOUND_BATCH,
                "learning_rate": SOUND_RATE,
                "clip": SOUND_CLIP_NORM,
                "warmup": SOUND_WARMUP,
            }
        elif len(event_shape) == 3:
            large = math.prod(event_shape) >= PATCH_NUMBERS
            usual = {"batch_size": LARGE_IMAGE_BATCH if large else IMAGE_BATCH}
            if examples is not None and FEW_IMAGES[0] <= examples < FEW_IMAGES[1]:
                usual["validation"] = FEW_VALIDATION
            tuned = plain and not large and kind in ("binary", "8-bit")
            tuned = tuned and (examples is None or examples >= FEW_IMAGES[0])
            if tuned and given.get("objective", "elbo") == "elbo" and "batch_size" not in given:
                usual |= {"learning_rate": IMAGE_RATE, "weight_decay": IMAGE_DECAY}
        return cls(**(usual | given))

    @property
    def budget(self) -> tuple[str, float]:
        """What ends the run: its unit and amount."""
        if self.epochs is not None:
            return "epochs", self.epochs
        if self.steps is not None:
            return "steps", self.steps
        return "minutes", 2.0 if self.minutes is None else self.minutes

    def progress(self, step: int, seconds: float, steps_per_epoch: int) -> float:
        """Return how much of the budget is spent, 0 to 1; 1 ends the run."""
        unit, amount = self.budget
        if unit == "minutes":
            return min(1.0, seconds / (60.0 * amount))
        total = max(1, round(amount * steps_per_epoch)) if unit == "epochs" else int(amount)
        return min(1.0, step / total)

    def learning_rate_at(self, progress: float, step: int) -> float:
        """Return the step's learning rate: a rise over 200 steps, then a cosine down to 0."""
        rise = min(1.0, (step + 1) / 200)
        return self.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * progress))

    def draws_at(self, progress: float) -> int:
        """Return how many draws an image gets at this step."""
        return self.draws if progress >= 1.0 - self.tighten or not self.tighten else 1

    def groups_at(self, progress: float) -> int:
        """Return in how many groups this step's draws are: before the tightened part there is one.

        Example:
            >>> given = Training(objective="miwae", draws=4, groups=2, tighten=0.5)
            >>> given.groups_at(0.0), given.groups_at(0.5)
            (1, 2)
        """
        return self.groups if self.draws_at(progress) == self.draws else 1

    def importance_weighted_at(self, progress: float) -> bool:
        """Return whether this step trains on a bound that weighs its draws."""
        return self.bound_at(progress) not in ("elbo", "stl")

    def bound_at(self, progress: float) -> str:
        """Return the objective of this step: L_K in the part of the run that is tightened."""
        tight = self.tighten > 0 and progress >= 1.0 - self.tighten
        return "iwae" if tight and self.objective in ("elbo", "stl") else self.objective

    @property
    def objective_in_words(self) -> str:
        """What the training maximises, in words.

        Example:
            >>> Training(draws=4, tighten=0.4, warmup=0.3).objective_in_words
            'ELBO; in the last 40 % L_4; beta from 0 to 1 in the first 30 %'
        """
        k, share = self.draws, f"the last {100 * self.tighten:g} %"
        draws = f"{k} draws" if k > 1 else "1 draw"
        plain = self.objective in ("elbo", "stl")
        warmed = f" from 0 to {self.beta:g} in the first {100 * self.warmup:g} %"
        clauses = {
            _OBJECTIVES_IN_WORDS[self.objective].format(k=k, alpha=self.alpha): True,
            f"in {self.groups} groups": self.objective in ("miwae", "piwae"),
            f"in {share} L_{k}": plain and self.tighten > 0,
            draws: self.objective != "elbo" or (k > 1 and not self.tighten),
            f"1 draw before {share}": not plain and self.tighten > 0,
            "the layers' KL balanced": self.balance,
            f"beta{warmed if self.warmup else f' {self.beta:g}'}": self.warmup or self.beta != 1,
            f"{self.free_bits:g} free nats a dimension": self.free_bits,
        }
        return "; ".join(clause for clause, holds in clauses.items() if holds)

    def beta_at(self, progress: float) -> float:
        """Return the step's β, rising linearly over the warm-up."""
        return self.beta if progress >= self.warmup else self.beta * progress / self.warmup

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary of every setting."""
        return asdict(self)


def too_short(
    settings: Training, step: int, seconds: float, examples: int, *, kind: str = "8-bit"
) -> str:
    """Say that a run was too short for its data, and how long it should be; "" where it was not.

    Too short are fewer than 2,000 steps that are fewer than 50 passes over the training examples.
    There the bound still rises by 2 % and more when a run is made twice as long. For sound it is
    fewer than 400 steps, where bits a sample still fall by 1 %.

    Args:
        settings: Of the run.
        step: Its steps.
        seconds: That they took.
        examples: For training.
        kind: As in `Dataset`.

    Returns:
        A sentence, or "".

    Example:
        >>> too_short(Training(), 27, 120.0, 5000)[:50]
        'too short for these data: 27 steps of 128 examples'
        >>> too_short(Training(), 2000, 120.0, 5000)
        ''
    """
    size = min(settings.batch_size, examples)
    passes = step * size / examples
    sound = kind == "sound"
    enough = SHORT_SOUND_STEPS if sound else SHORT_STEPS
    rises = "bits a sample still fall by 1 %" if sound else "the bound still rises by 2 % and more"
    if not 0 < step < enough or passes >= SHORT_PASSES:
        return ""
    unit, amount = settings.budget
    more = min(enough / step, SHORT_PASSES / passes)
    longer = math.ceil(more * (seconds / 60 if unit == "minutes" else amount))
    left = "" if unit == "minutes" else f" (about {math.ceil(more * seconds / 60):,} min)"
    return (
        f"too short for these data: {step:,} steps of {size:,} examples, {passes:.2g} passes over "
        f"them; below {enough:,} steps {rises} in twice the time. Try: --{unit} {longer}{left}"
    )


@dataclass(frozen=True, slots=True)
class Preset:
    """Option values under a name.

    Args:
        name: As in `--preset`.
        reason: What it is for, in words.
        architecture: Fields of `Architecture` and their values.
        training: Fields of `Training` and their values; never the budget.
        given: Names of options that the caller gives, also where they have their default value.

    Example:
        >>> preset("iwae").architecture_with(None) == Architecture()
        True
        >>> preset("iwae").training_with(Training(steps=9)).draws
        8
    """

    name: str
    reason: str
    architecture: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """All its values by the name of the option."""
        return self.architecture | self.training

    def architecture_with(self, given: Architecture | None) -> Architecture:
        """Return its architecture, except where the given one differs from `Architecture()`."""
        chosen = given or Architecture()
        values = self._unset(chosen, Architecture(), self.architecture)
        if isinstance(chosen.layers, tuple):  # sizes of the caller's own, with their sum
            values.pop("latent", None)
        return replace(chosen, **values)

    def training_with(
        self,
        given: Training | None,
        kind: str = "8-bit",
        event_shape: tuple[int, ...] = (),
        *,
        examples: int | None = None,
        plain: bool = False,
    ) -> Training:
        """Return its settings, except where the given ones differ from `Training()`.

        Without any given, those it does not name are the usual ones of the data (see
        `Training.usual`; plain: for a preset without options of its own).
        """
        if given is None:
            known: dict[str, Any] = {"examples": examples}
            known["plain"] = plain and not self.options
            return Training.usual(kind, event_shape, **known, **self.training)
        return replace(given, **self._unset(given, Training(), self.training))

    def beside(self, architecture: Architecture, training: Training) -> "Preset":
        """Return the preset with every option marked as given that the two have otherwise."""
        found = _values(architecture) | _values(training)
        return replace(self, given=tuple(n for n, v in self.options.items() if found[n] != v))

    def record(self, architecture: Architecture, training: Training) -> dict[str, Any]:
        """Return what a run's `config.json` says: its name and values, and those given instead."""
        found = _values(architecture) | _values(training)
        instead = {
            name: found[name] for name, value in self.options.items() if found[name] != value
        }
        return {"name": self.name, "options": self.options, "given_instead": instead}

    def _unset(self, chosen: Any, usual: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values of options that are not given: those left at their usual value."""
        left = {n for n in values if getattr(chosen, n) == getattr(usual, n)}
        return {n: v for n, v in values.items() if n in left and n not in self.given}


def _values(record: Architecture | Training) -> dict[str, Any]:
    return {one.name: getattr(record, one.name) for one in fields(record)}


_ALL = (
    Preset("default", "the library's own settings: for a first run on any data"),
    Preset(
        "classic",
        "784-200-200-50, tanh (Burda et al. 2016): to compare with papers; cheapest step",
        {"network": "mlp", "hidden": (200, 200), "latent": 50, "activation": "tanh"},
        {"batch_size": 100, "learning_rate": 2e-3, "weight_decay": 0.0},
    ),
    Preset(
        "tight",
        "the ELBO first, L_4 for the last 40 % of the run: more evidence at little more time",
        training={"tighten": 0.4, "draws": 4},
    ),
    Preset(
        "iwae",
        "L_8 with doubly reparameterised gradients for the whole run (Tucker et al. 2019)",
        training={"objective": "iwae", "draws": 8},
    ),
    Preset(
        "vamp",
        "a prior that is learned, of 100 pseudo-inputs, with a warm-up (Tomczak and Welling 2018)",
        {"prior": "vamp", "prior_components": 100},
        {"warmup": 0.3},  # +1.41 ± 0.19 nats in 60 s: benchmarks/results/presets.json
    ),
    Preset(
        "iaf",
        "a posterior with dependent dimensions, by a flow (Kingma et al. 2016)",
        {"posterior": "iaf"},
    ),
    Preset(
        "ladder",
        "two stochastic layers with a warm-up (Sønderby et al. 2016): KL of each layer",
        {"layers": 2},
        {"warmup": 0.3},
    ),
    Preset(
        "deep",
        "four stochastic layers and a wider network, tightened: for long runs",
        {"layers": 4, "latent": 64, "hidden": (48, 48, 48, 384)},
        {"warmup": 0.3, "tighten": 0.4, "draws": 4},
    ),
    Preset(
        "neighbours",
        "images alone: pixels given the four before them, tightened: much evidence at little time",
        {"neighbours": 4},
        {"tighten": 0.4, "draws": 4},
    ),
    Preset(
        "context",
        "images alone: pixels given features of those before them: the most evidence, a small rate",
        {"context": (16, 16)},
        {"tighten": 0.4, "draws": 4},
    ),
)
PRESETS = {one.name: one for one in _ALL}


def preset(name: str) -> Preset:
    """Return a preset by its name.

    Args:
        name: One of `PRESETS`.

    Returns:
        Its values and the reason for them.

    Raises:
        ArgumentValueError: There is none of that name; the text lists those there are.

    Example:
        >>> preset("vamp").options
        {'prior': 'vamp', 'prior_components': 100, 'warmup': 0.3}
    """
    near = difflib.get_close_matches(str(name), list(PRESETS), n=1, cutoff=0.5)
    names = f"one of {', '.join(PRESETS)}"
    require(name in PRESETS, "preset", names, repr(name), near[0] if near else "")
    return PRESETS[name]
