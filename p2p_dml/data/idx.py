"""MNIST and Fashion-MNIST from IDX files (LeCun et al.), plain or gzipped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from p2p_dml.data import _places
from p2p_dml.data._dataset import Array, Dataset

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UBYTE = 8


def mnist(*, mean: float = 0.1307, std: float = 0.3081) -> Dataset:
    """Read MNIST: 60,000 + 10,000 handwritten digits, uint8 [N, 1, 28, 28].

    `mean` and `std` are those of pixels over 255, of the training half by default.
    """
    return _read_set("mnist", "MNIST/raw", mean, std)


def fashion_mnist(*, mean: float = 0.2860, std: float = 0.3530) -> Dataset:
    """Read Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 clothes, uint8 [N, 1, 28, 28].

    `mean` and `std` are those of pixels over 255, of the training half by default.
    """
    return _read_set("fashion_mnist", "FashionMNIST/raw", mean, std)


def read_idx(name: str, file: Path, ndim: int) -> Array:
    """Array of unsigned bytes with `ndim` axes in an IDX file of data set `name`.

    Raises ConfigError for a bad magic number, a truncated file or a wrong size.
    """
    content = _places.read(name, file)
    header = 4 + 4 * ndim
    magic = int.from_bytes(content[:4], "big")
    if magic != _UBYTE << 8 | ndim:
        raise _places.damaged(
            name, file, f"expected IDX magic number {_UBYTE << 8 | ndim}, found {magic}"
        )
    if len(content) < header:
        raise _places.damaged(name, file, "the header is truncated")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4))
    if len(content) - header != math.prod(shape):
        raise _places.damaged(
            name,
            file,
            f"expected {math.prod(shape)} bytes for shape {list(shape)}, "
            f"found {len(content) - header}",
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_set(name: str, folder: str, mean: float, std: float) -> Dataset:
    files = _places.locate(name, (f"{folder}/{file}" for file in FILES))
    train_x, train_y = _read_half(name, files[0], files[1])
    test_x, test_y = _read_half(name, files[2], files[3])
    return Dataset(
        name=name,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=10,
        mean=(mean * 255,),
        std=(std * 255,),
    )


def _read_half(name: str, image_file: Path, label_file: Path) -> tuple[Array, Array]:
    images, labels = read_idx(name, image_file, 3), read_idx(name, label_file, 1)
    if images.shape[1:] != (28, 28):
        raise _places.damaged(
            name, image_file, f"expected images of 28 x 28, found {list(images.shape[1:])}"
        )
    if not 0 < len(images) == len(labels) or labels.max() > 9:
        raise _places.damaged(
            name, label_file, f"expected {len(images)} labels 0 to 9, found {len(labels)}"
        )
    return images[:, None], labels.astype(np.int64)
