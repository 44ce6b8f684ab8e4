"""A run: training in a directory of its own that can be killed, resumed, evaluated and sent on.

`train` starts one, `resume` goes on with one. A run directory holds `config.json` (every setting,
the data's protocol, versions), `metrics.jsonl` (a function of the settings alone), `timing.jsonl`
(the clock), `checkpoints/`, and at the end `model.safetensors` with the averaged weights.

Which file answers which question:

- `train_and_resume`: how does a run begin (`train`), or go on (`resume`)?
- `with_checkpoints`: what happens from its last checkpoint to its end?
- `description`: what does `config.json` hold, and which folder is it in?
- `origin`: from which other run's weights does it start? `new_model`: from which model, else?
- `machine`: on which device, in which precision, with how many threads?
"""

from .machine import matmul_gflops, pick_device, pick_precision, pick_threads
from .origin import architecture_of, reading_of, start_in_words
from .train_and_resume import resume, train
from .with_checkpoints import Outcome

__all__ = [
    "Outcome",
    "architecture_of",
    "matmul_gflops",
    "pick_device",
    "pick_precision",
    "pick_threads",
    "reading_of",
    "resume",
    "start_in_words",
    "train",
]
