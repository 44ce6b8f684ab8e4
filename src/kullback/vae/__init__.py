"""Floor 4, vae: variational autoencoders, trained, evaluated and used.

`train` is the way in; `VAE.load` the way back to what it left; `build` and `VAE` for models of
your own; `evaluate` for figures with error bars. Loads on first use.

What a model is: `architecture` (names only), `networks`, `likelihoods`, `latents` (p(z), q(z|x)),
`model` (all composed). How it is trained: `training` (settings, schedules and presets), `loop` (the
steps, logs and warnings), `elbo_step` (the gradient by hand), `state` (what a step needs, and
the files of a run), `run` (the run folder, the device).
How good it is: `evidence` (bounds image by image), `evaluation` (means with error bars, active
units, collapse), `posterior` (log p(x) = ELBO + KL, from both sides). `onnx_graphs`: export.
`limits`: thresholds.
"""

from typing import TYPE_CHECKING

from kullback.core import lazy

if TYPE_CHECKING:
    from . import limits
    from .architecture import COUNTS, Architecture, choose
    from .elbo_step import compiled_state
    from .evaluation import (
        Evaluation,
        bits_per_sample,
        collapse_of_information,
        evaluate,
        image_bounds,
        summarise,
        unused_layers,
    )
    from .evidence import Bounds
    from .loop import Progress, different_examples
    from .model import VAE, Parts, build
    from .onnx_graphs import Parity, require_exportable, write_graphs
    from .posterior import (
        Aggregate,
        Annealing,
        Gap,
        Refit,
        aggregate,
        aggregate_remarks,
        anneal,
        gap_remarks,
        made_by,
        measure_gap,
    )
    from .run import (
        Outcome,
        architecture_of,
        matmul_gflops,
        pick_device,
        pick_precision,
        pick_threads,
        reading_of,
        resume,
        start_in_words,
        train,
    )
    from .training import PRESETS, Preset, Training, preset, too_short

__all__ = [
    "COUNTS",
    "PRESETS",
    "VAE",
    "Aggregate",
    "Annealing",
    "Architecture",
    "Bounds",
    "Evaluation",
    "Gap",
    "Outcome",
    "Parity",
    "Parts",
    "Preset",
    "Progress",
    "Refit",
    "Training",
    "aggregate",
    "aggregate_remarks",
    "anneal",
    "architecture",
    "architecture_of",
    "bits_per_sample",
    "build",
    "choose",
    "collapse_of_information",
    "compiled_state",
    "different_examples",
    "evaluate",
    "gap_remarks",
    "image_bounds",
    "limits",
    "made_by",
    "matmul_gflops",
    "measure_gap",
    "pick_device",
    "pick_precision",
    "pick_threads",
    "preset",
    "reading_of",
    "require_exportable",
    "resume",
    "start_in_words",
    "summarise",
    "too_short",
    "train",
    "unused_layers",
    "write_graphs",
]

_HOME = {
    "COUNTS": "architecture",
    "PRESETS": "training",
    "VAE": "model",
    "Aggregate": "posterior",
    "Annealing": "posterior",
    "Architecture": "architecture",
    "Bounds": "evidence",
    "Evaluation": "evaluation",
    "Gap": "posterior",
    "Outcome": "run",
    "Parity": "onnx_graphs",
    "Parts": "model",
    "Preset": "training",
    "Progress": "loop",
    "Refit": "posterior",
    "Training": "training",
    "aggregate": "posterior",
    "aggregate_remarks": "posterior",
    "anneal": "posterior",
    "architecture_of": "run",
    "bits_per_sample": "evaluation",
    "build": "model",
    "collapse_of_information": "evaluation",
    "choose": "architecture",
    "compiled_state": "elbo_step",
    "different_examples": "loop",
    "evaluate": "evaluation",
    "gap_remarks": "posterior",
    "image_bounds": "evaluation",
    "limits": "limits",
    "made_by": "posterior",
    "matmul_gflops": "run",
    "measure_gap": "posterior",
    "pick_device": "run",
    "pick_precision": "run",
    "pick_threads": "run",
    "reading_of": "run",
    "preset": "training",
    "require_exportable": "onnx_graphs",
    "resume": "run",
    "start_in_words": "run",
    "summarise": "evaluation",
    "too_short": "training",
    "train": "run",
    "unused_layers": "evaluation",
    "write_graphs": "onnx_graphs",
}
__getattr__, __dir__ = lazy(
    "kullback.vae", {name: f"kullback.vae.{home}" for name, home in _HOME.items()}
)
