"""Data: the embedded set, folders of pictures and NumPy files, as tensors with a protocol.

Which to use: `load` to train and evaluate (a `Dataset`: split, binarisation, hashes);
`load_images` to bring anything to the shape of a trained model; `binarize` for grey pixels to
bits; `describe_protocol` for the one line that belongs beside every figure.

`loading`: from a source to a `Dataset`; `arrays`: NumPy files; `pictures`: image files and folders;
`grid`: which levels stored numbers lie on; `examples`: what every reader returns; `dataset`: the
tensors, their binarisation and protocol; `limits`: the thresholds.
"""

from .dataset import Dataset, binarize, binarize_all, describe_protocol, sha256_of
from .grid import Grid
from .loading import load, load_images, reload

__all__ = [
    "Dataset",
    "Grid",
    "binarize",
    "binarize_all",
    "describe_protocol",
    "load",
    "load_images",
    "reload",
    "sha256_of",
]
