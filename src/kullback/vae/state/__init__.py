"""The state of a training in memory, and tensors in files.

- `flat_parameters`: the weights as one vector, with gradient and average, whole or in slices.
- `reduced_backward`: gradients summed at their owners, where each process has a slice.
- `tensor_files`: tensors written whole or not at all, with a hash.
"""

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

__all__ = [
    "FIGURES",
    "FlatParameters",
    "ReducedBackward",
    "compare",
    "in_order_of_file",
    "load_tensors",
    "read_tensors",
    "require_hash",
    "save_tensors",
    "trainable",
    "write_tensors",
]
