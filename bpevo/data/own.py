"""Data of one's own: arrays in an .npz file, or what a function returns."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpevo.data.dataset import Dataset
from bpevo.data.errors import DataError, brief
from bpevo.models.importing import attribute, first_line

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def from_file(path: str) -> Dataset:
    """The dataset of an .npz file that holds ARRAYS; see `from_arrays`. Raises DataError."""
    try:
        with np.load(os.path.expanduser(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file.files}
            found = file.files
    except OSError as error:
        raise DataError(f"--dataset={path}: {error.strerror or brief(error)}") from error
    except Exception as error:  # zipfile, zlib and NumPy's own header each have theirs
        fault = "it holds Python objects, not arrays of numbers" if "allow_pickle" in str(error) else brief(error)
        raise DataError(
            f"--dataset={path}: cannot be read as .npz: {fault}; write it by numpy.savez(path, x_train=…, y_train=…, x_test=…, "
            "y_test=…)"
        ) from error
    _check_names(path, arrays, found)
    return from_arrays(path, arrays)


def from_function(name: str) -> Dataset:
    """The dataset that `package.module:function` returns: a Dataset, or a mapping with ARRAYS. Raises DataError."""
    try:
        function = attribute(name, "dataset")
    except ValueError as error:
        raise DataError(str(error)) from error
    if not callable(function):
        raise DataError(f"--dataset={name} is a {type(function).__name__}, no function")
    try:
        made = function()
    except Exception as error:  # whatever the user's function raises
        raise DataError(f"--dataset={name} fails: {first_line(error)}") from error
    if isinstance(made, Dataset):
        return checked(name, made)
    if not isinstance(made, Mapping):
        raise DataError(
            f"--dataset={name} returns a {type(made).__name__}, no dict with {', '.join(ARRAYS)} nor a Dataset"
        )
    _check_names(name, made, made)
    return from_arrays(name, made)


def _check_names(name: str, arrays: Mapping[str, Any], found: Any) -> None:
    missing = [array for array in ARRAYS if array not in arrays]
    if missing:
        raise DataError(
            f"--dataset={name} has no {', '.join(missing)}; it has {', '.join(map(str, found)) or 'nothing'}"
        )


def from_arrays(name: str, arrays: Mapping[str, Any]) -> Dataset:
    """A dataset of arrays, not augmented.

    Args:
      name: for messages, and the dataset's name.
      arrays: `x_train`, `x_test`: uint8 images `[N, H, W, C]` or `[N, H, W]`, trained on as pixel / 255 minus the training set's
        mean image; or finite floats `[N, ...]`, trained on as float32 as they are. `y_train`, `y_test`: integers from 0, `[N]`.

    Raises:
      DataError: an array is not that, or none of an example; names it.
    """
    parts = _parts(name, {which: arrays[which] for which in ARRAYS})
    classes = 1 + max(int(parts["train_labels"].max()), int(parts["test_labels"].max()))
    if classes < 2 or classes > 2**20:
        raise DataError(f"--dataset={name}: labels up to {classes - 1:,} make {classes:,} classes; number them from 0")
    return Dataset(name=name, **parts, num_classes=classes, flip=False, pad=0, source=name)


def checked(name: str, made: Dataset) -> Dataset:
    """A Dataset that somebody's function made, its arrays checked as those of a file. Raises DataError."""
    parts = _parts(
        name,
        {
            "x_train": made.train_images,
            "y_train": made.train_labels,
            "x_test": made.test_images,
            "y_test": made.test_labels,
        },
    )
    largest = max(int(parts["train_labels"].max()), int(parts["test_labels"].max()))
    if largest >= made.num_classes:
        raise DataError(f"--dataset={name}: there is a label {largest:,}, but num_classes is {made.num_classes:,}")
    if made.pad < 0 or ((made.flip or made.pad) and parts["train_images"].ndim != 4):
        raise DataError(
            f"--dataset={name}: flip={made.flip} and pad={made.pad} are of images [N, H, W, C], pad at least 0; x_train is "
            f"{list(parts['train_images'].shape)}"
        )
    changed: dict[str, Any] = dict(parts)
    return dataclasses.replace(made, **changed)


def _parts(name: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """ARRAYS by the names that they have in a Dataset, each of them checked and both parts of one kind. Raises DataError."""
    parts = {}
    for part in ("train", "test"):
        x, y = (np.asarray(arrays[f"{a}_{part}"]) for a in "xy")
        parts[f"{part}_images"] = x = _inputs(name, f"x_{part}", x)
        parts[f"{part}_labels"] = _labels(name, f"y_{part}", y)
        if len(x) != len(y):
            raise DataError(f"--dataset={name}: x_{part} has {len(x):,} examples and y_{part} {len(y):,} labels")
    train, test = parts["train_images"], parts["test_images"]
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        forms = [f"{x.dtype} {list(x.shape)}" for x in (train, test)]
        raise DataError(f"--dataset={name}: x_train is {forms[0]} and x_test {forms[1]}: not of one kind")
    return parts


def _inputs(name: str, which: str, x: np.ndarray) -> np.ndarray:
    form = f"--dataset={name}: {which} is {x.dtype} {list(x.shape)}"
    if not x.size:
        raise DataError(f"{form}: empty")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return x[..., None] if x.ndim == 3 else x
    if not np.issubdtype(x.dtype, np.floating) or x.ndim < 2:
        raise DataError(f"{form}: give uint8 images [N, H, W, C] or [N, H, W], or floats [N, features…]")
    with np.errstate(over="ignore"):  # what float32 does not hold is told below
        x = x.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if len(bad):
        raise DataError(f"{form}: example {bad[0]:,} is not finite as float32 ({len(bad):,} such)")
    return x


def _labels(name: str, which: str, y: np.ndarray) -> np.ndarray:
    form = f"--dataset={name}: {which} is {y.dtype} {list(y.shape)}"
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise DataError(f"{form}: give integers from 0, one for each example")
    if not y.size:
        raise DataError(f"{form}: empty")
    if y.min() < 0:
        raise DataError(f"{form}: the label {y.min()} of example {int(np.argmin(y)):,} is negative")
    if y.max() >= 2**31:
        raise DataError(f"{form}: the label {y.max()} is too large; number the classes from 0")
    return y.astype(np.int32)
