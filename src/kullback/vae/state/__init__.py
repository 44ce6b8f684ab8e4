"""The state of a training: in memory, and in the files of its run.

- `flat_parameters`: the weights as one vector, with gradient and average, whole or in slices.
- `reduced_backward`: gradients summed at their owners, where each process has a slice.
- `training_state`: all that the next step needs; the step of Adam.
- `checkpoint`: the files of a run, all that it needs to go on as if never stopped.
- `tensor_files`: tensors written whole or not at all, with a hash.
"""

from . import checkpoint
from .flat_parameters import FIGURES, FlatParameters, trainable
from .reduced_backward import ReducedBackward
from .tensor_files import (
    compare,
    in_order_of_file,
    load_tensors,
    read_tensors,
    require_hash,
    save_tensors,
    write_tensors,
)
from .training_state import State, make_moments

__all__ = [
    "FIGURES",
    "FlatParameters",
    "ReducedBackward",
    "State",
    "checkpoint",
    "compare",
    "in_order_of_file",
    "load_tensors",
    "make_moments",
    "read_tensors",
    "require_hash",
    "save_tensors",
    "trainable",
    "write_tensors",
]
