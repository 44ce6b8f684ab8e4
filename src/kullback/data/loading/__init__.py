"""From what a user has to tensors: the embedded set, a folder of pictures, a NumPy file, a table.

Which to use: `load` for a data set with a split and a protocol, to train and evaluate on; `reload`
for the data set of a protocol; `load_images` and `load_sounds` for everything in a source at once,
brought to the shape that a trained model takes.

`training_data`: `load`; `model_inputs`: `load_images` and `load_sounds`; `protocol`: `reload`;
`sources`: what a path stands for, and its reader; `split`: examples to a `Dataset` (split, labels,
binarisation, hashes); `data_checks`: notes on data that a model does not suit.
"""

from .data_checks import doubts
from .model_inputs import load_images, load_sounds
from .protocol import reload, settings_like
from .split import Binarize, assemble
from .training_data import load

__all__ = [
    "Binarize",
    "assemble",
    "doubts",
    "load",
    "load_images",
    "load_sounds",
    "reload",
    "settings_like",
]
