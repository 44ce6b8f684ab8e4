"""Rebuild the embedded Fashion-MNIST subset: `python tools/make_fashion.py --source FOLDER_OR_NPZ`.

The source is the folder of Debian's package dataset-fashion-mnist (four IDX files, gzipped) or an
.npz with x_train, y_train, x_test, y_test. Kept are the first 1,000 images of each class for
training and the first 200 for testing, in their original order, as one grey PNG: 120 rows of 100
images, training first. The SHA-256 printed is the one pinned in `kullback/data/embedded.py`.
"""

import argparse
import gzip
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TARGET = Path(__file__).parents[1] / "src" / "kullback" / "data" / "fashion" / "fashion.png"
Bytes = NDArray[np.uint8]


def read_idx(path: Path) -> Bytes:
    """Read one gzipped IDX file of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    dims = data[3]
    shape = np.frombuffer(data, ">u4", dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_source(source: Path) -> dict[str, Bytes]:
    """Read images and labels of both splits."""
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    files = {"x_train": "train-images-idx3", "y_train": "train-labels-idx1"}
    files |= {"x_test": "t10k-images-idx3", "y_test": "t10k-labels-idx1"}
    return {name: read_idx(source / f"{stem}-ubyte.gz") for name, stem in files.items()}


def first_of_each(images: Bytes, labels: Bytes, count: int) -> Bytes:
    """Keep the first `count` images of every class, in their original order."""
    kept = np.sort(np.concatenate([np.flatnonzero(labels == k)[:count] for k in range(10)]))
    return images[kept]


def main() -> None:
    """Write the PNG and print its size and the SHA-256 of its pixels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    arrays = read_source(parser.parse_args().source)
    train = first_of_each(arrays["x_train"], arrays["y_train"], 1000)
    test = first_of_each(arrays["x_test"], arrays["y_test"], 200)
    images = np.concatenate([train, test])
    mosaic = images.reshape(120, 100, 28, 28).swapaxes(1, 2).reshape(120 * 28, 100 * 28)
    Image.fromarray(mosaic).save(TARGET, optimize=True)
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes, {len(train):,} + {len(test):,} images")
    print(hashlib.sha256(images.tobytes()).hexdigest())


if __name__ == "__main__":
    main()
