"""The state of a training: in memory, and in the files of its run.

- `weight_vector`: what every form of the weights has: one vector, or a part of it.
- `flat_parameters`: the weights as one vector, with gradient and average, whole or in slices.
- `reduced_backward`: gradients summed at their owners, where each process has a slice.
- `full_shard`: the weights that products use in slices too, by PyTorch's `fully_shard`.
- `training_state`: all that the next step needs; the step of Adam.
- `checkpoint`: the files of a run, all that it needs to go on as if never stopped.
- `tensor_files`: tensors written whole or not at all, with a hash.
"""

from . import checkpoint
from .flat_parameters import FlatParameters
from .full_shard import FullShard, require_shardable
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
from .weight_vector import FIGURES, WeightVector, trainable

__all__ = [
    "FIGURES",
    "FlatParameters",
    "FullShard",
    "ReducedBackward",
    "State",
    "WeightVector",
    "checkpoint",
    "compare",
    "in_order_of_file",
    "load_tensors",
    "make_moments",
    "read_tensors",
    "require_hash",
    "require_shardable",
    "save_tensors",
    "trainable",
    "write_tensors",
]
