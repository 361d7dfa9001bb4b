"""Scikit-learn's handwritten digits: in its wheel, so there is nothing to fetch."""

from __future__ import annotations

import numpy as np

from p2p_dml.data._dataset import Dataset

_SPLIT_KEY = 1797  # the number of samples; any fixed number would do


def digits() -> Dataset:
    """Read 1,797 digits (UCI optical recognition, 1998), uint8 0 to 16, [N, 1, 8, 8].

    They have no official split: a fixed shuffle gives 1,437 to train and 360 to test.
    `mean` and `std` are those of the training half.
    """
    from sklearn.datasets import load_digits  # imported here: it costs a second, few peers need it

    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[:, None]
    y = bunch.target.astype(np.int64)
    order = np.random.Philox(key=[_SPLIT_KEY, 0]).random_raw(len(x)).argsort(kind="stable")
    train, test = np.split(order, [len(x) * 8 // 10])
    return Dataset(
        name="digits",
        train_x=x[train],
        train_y=y[train],
        test_x=x[test],
        test_y=y[test],
        num_classes=10,
        mean=(float(x[train].mean()),),
        std=(float(x[train].std()),),
    )
