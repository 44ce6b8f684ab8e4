"""Data: the embedded set, folders of pictures and NumPy files, as tensors with a protocol.

Which to use: `load` to train and evaluate (a `Dataset`: split, binarisation, hashes);
`load_images` and `load_sounds` to bring anything to the shape of a trained model; `binarize` for
grey pixels to bits; `describe_protocol` for the one line that belongs beside every figure.

`loading/`: from a source to a `Dataset`; `given`: objects in memory, lists and folders of shards;
`stored`: rows that stay on disk; `moments`: their mean and range; `arrays`: NumPy files; `tables`:
tables of text; `counts`: sparse matrices, AnnData, size factors; `pictures/`: image files and
folders; `sounds`: sound files, folders and clips; `file_listing`: which files lie under a folder;
`quantisation`: which levels stored numbers lie on; `examples`: what every reader returns;
`dataset`: the tensors, their binarisation and protocol; `limits`: the thresholds.
"""

from typing import TYPE_CHECKING

from kullback.core import lazy

if TYPE_CHECKING:
    from .dataset import Dataset, binarize, binarize_all, describe_protocol, sha256_of
    from .limits import MOST_COUNT
    from .loading import load, load_images, load_sounds, reload, settings_like
    from .moments import Moments, moments_of
    from .quantisation import Grid
    from .sounds import PADDING, wav_of
    from .stored import Rows

__all__ = [
    "MOST_COUNT",
    "PADDING",
    "Dataset",
    "Grid",
    "Moments",
    "Rows",
    "binarize",
    "binarize_all",
    "describe_protocol",
    "load",
    "load_images",
    "load_sounds",
    "moments_of",
    "reload",
    "settings_like",
    "sha256_of",
    "wav_of",
]

_HOME = {
    "Dataset": "dataset",
    "Grid": "quantisation",
    "MOST_COUNT": "limits",
    "Moments": "moments",
    "PADDING": "sounds",
    "Rows": "stored",
    "binarize": "dataset",
    "binarize_all": "dataset",
    "describe_protocol": "dataset",
    "load": "loading",
    "load_images": "loading",
    "load_sounds": "loading",
    "moments_of": "moments",
    "reload": "loading",
    "settings_like": "loading",
    "sha256_of": "dataset",
    "wav_of": "sounds",
}
# on first use: a process that decodes pictures needs no torch
__getattr__, __dir__ = lazy(
    "kullback.data", {name: f"kullback.data.{home}" for name, home in _HOME.items()}
)
