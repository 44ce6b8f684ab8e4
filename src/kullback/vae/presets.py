"""Presets: named sets of option values for model and training, each with the reason for it.

A preset is nothing but values; every one of them can be given by hand as well. What the caller
gives goes first. Their evidence and time are in docs/vae.md ("Presets"). Names only, no torch.
"""

import difflib
from dataclasses import dataclass, field, fields, replace
from typing import Any

from kullback.core import require

from .architecture import Architecture
from .training import Training

__all__ = ["PRESETS", "Preset", "preset"]


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
        self, given: Training | None, kind: str = "8-bit", event_shape: tuple[int, ...] = ()
    ) -> Training:
        """Return its settings, except where the given ones differ from `Training()`.

        Without any given, those it does not name are the usual ones of the data (see
        `Training.usual`).
        """
        if given is None:
            return Training.usual(kind, event_shape, **self.training)
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
        "a prior that is learned, of 100 pseudo-inputs (Tomczak and Welling 2018)",
        {"prior": "vamp", "prior_components": 100},
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
        "images alone: pixels given the four before them, tightened: the highest evidence",
        {"neighbours": 4},
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
        {'prior': 'vamp', 'prior_components': 100}
    """
    near = difflib.get_close_matches(name, list(PRESETS), n=1, cutoff=0.5)
    names = f"one of {', '.join(PRESETS)}"
    require(name in PRESETS, "preset", names, repr(name), near[0] if near else "")
    return PRESETS[name]
