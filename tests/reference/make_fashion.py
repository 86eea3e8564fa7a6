#!/usr/bin/env python3
"""Writes assets/fashion: a small, balanced, seeded choice out of Fashion-MNIST as PNG folders.

    apt-get install dataset-fashion-mnist
    python make_fashion.py [--source /usr/share/datasets/fashion-mnist] [--out ../../assets/fashion]

Train and valid are disjoint and come from the training file, test comes from the test file. Images
keep their own pixels: 28x28, 8-bit gray. Needs NumPy and Pillow.
"""

import argparse
import gzip
import pathlib

import numpy as np
from PIL import Image

# In the order of the labels 0..9.
CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
SEED = 2017
# The file that a split comes from, and its images of each class.
SPLITS = {"train": {"train": 10, "valid": 10}, "t10k": {"test": 50}}


def read_idx(path: pathlib.Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, type 8, the rank, big-endian lengths, the bytes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def smallest_png(path: pathlib.Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, optimize=True)


def main() -> None:
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=pathlib.Path, default=pathlib.Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=pathlib.Path, default=here.parents[1] / "assets" / "fashion")
    options = parser.parse_args()

    # RandomState's streams never change between releases of NumPy; those of default_rng may.
    random = np.random.RandomState(SEED)
    for file, splits in SPLITS.items():
        images = read_idx(options.source / f"{file}-images-idx3-ubyte.gz")
        labels = read_idx(options.source / f"{file}-labels-idx1-ubyte.gz")
        for label, name in enumerate(CLASSES):
            chosen = random.permutation(np.flatnonzero(labels == label))
            for split, count in splits.items():
                folder = options.out / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for old in folder.glob("*.png"):
                    old.unlink()
                for index in sorted(chosen[:count]):
                    smallest_png(folder / f"{index:05}.png", images[index])
                chosen = chosen[count:]


if __name__ == "__main__":
    main()
