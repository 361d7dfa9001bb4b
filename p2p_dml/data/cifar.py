"""CIFAR-10 (Krizhevsky 2009), the "python version", through an unpickler that runs nothing."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from p2p_dml.data import _places
from p2p_dml.data._dataset import Array, Dataset

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"
_IMAGE = (3, 32, 32)


def cifar10(
    *,
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616),
) -> Dataset:
    """Read CIFAR-10: 50,000 + 10,000 colour photographs, uint8 [N, 3, 32, 32].

    `mean` and `std` are those of pixels over 255, by channel, of the training half by default.
    """
    files = _places.locate("cifar10", (f"{FOLDER}/{file}" for file in (*TRAIN_FILES, TEST_FILE)))
    train = [read_batch(file) for file in files[:-1]]
    test_x, test_y = read_batch(files[-1])
    return Dataset(
        name="cifar10",
        train_x=np.concatenate([x for x, _ in train]),
        train_y=np.concatenate([y for _, y in train]),
        test_x=test_x,
        test_y=test_y,
        num_classes=10,
        mean=tuple(255 * value for value in mean),
        std=tuple(255 * value for value in std),
    )


def read_batch(file: Path) -> tuple[Array, Array]:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n] of one batch file.

    Raises ConfigError for anything but a dictionary of the documented shape.
    """
    content = _places.read("cifar10", file)
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        images, labels = batch["data"], np.asarray(batch["labels"])
    except Exception as error:  # a damaged pickle can raise anything
        why = f"not a CIFAR-10 batch ({type(error).__name__}: {error})"
        raise _places.damaged("cifar10", file, why) from error
    if not isinstance(images, np.ndarray) or images.shape != (len(labels), 3072):
        raise _places.damaged("cifar10", file, f"expected data of shape [{len(labels)}, 3072]")
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() > 9:
        raise _places.damaged("cifar10", file, "expected integer labels 0 to 9")
    return images.reshape(-1, *_IMAGE), labels.astype(np.int64)


def _byte_dtype(code: object, align: object = False, copy: object = False) -> np.dtype[Any]:
    """Stand in for `numpy.dtype`: the one element type that images have."""
    if code != "u1":
        raise pickle.UnpicklingError(f"element type {code!r} is not allowed")
    return np.dtype(np.uint8)


# Where numpy keeps the function depends on its version; an array's own reduction names it.
_RECONSTRUCT: Callable[..., object] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ADMITTED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _byte_dtype,
}


@final
class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle plain containers and arrays of bytes; refuse every other name in the file."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _ADMITTED[module, name]
