"""Datasets by name: local ones, one's own files and functions, any image classification set of TFDS with images of one size.

To add a local one, write a function that makes a `Dataset` and enter it:

    def stripes() -> Dataset: ...

    LOCAL["stripes"] = stripes
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bpevo.data import cache, own, tfds_reader
from bpevo.data.dataset import Dataset
from bpevo.data.errors import DataError
from bpevo.data.prepare import prepare
from bpevo.data.progress import Progress, reporter

DIGITS_TEST_EXAMPLES = 360
DIGITS_SEED = 0

# (flip, pad) of TFDS sets; every other one is cropped and not flipped.
AUGMENTATION = {"cifar10": (True, 4), "cifar100": (True, 4)}
OTHER_AUGMENTATION = (False, 4)


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: Progress | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Loads a dataset, from the cache of decoded arrays where there is one.

    Args:
      name: one of `LOCAL` (`digits`), the path of an .npz file or `package.module:function` (bpevo.data.own), or a TFDS name
        (`cifar10`, `mnist`, `imagenet_resized/8x8`, ...).
      data_dir: TFDS's directory, which must exist; `$TFDS_DATA_DIR` or `~/tensorflow_datasets` where None.
      download: whether to download and prepare a set that is not there (only `bpevo.data.PREPARABLE`).
      progress: called as `progress(task, done, total)`; a bar on a terminal and log lines elsewhere where None.
      cache_dir: where decoded arrays are kept; where None, in `data_dir`, or in the user's cache directory where
        `data_dir` cannot be written.

    Returns:
      The whole dataset, in memory.

    Raises:
      DataError: the dataset is unknown, unsuitable, missing, truncated or damaged.

    >>> digits = load("digits")
    >>> digits.train_images.shape, digits.num_classes
    ((1437, 8, 8, 1), 10)
    """
    if name in LOCAL:
        return own.checked(name, LOCAL[name]())
    if name.endswith(".npz"):
        return own.from_file(name)
    if ":" in name:
        return own.from_function(name)
    root = tfds_reader.data_root(data_dir)
    builder = tfds_reader.open_builder(name, root, LOCAL)
    with reporter(progress) as report:
        if not tfds_reader.is_prepared(builder):
            if not download:
                raise DataError(
                    f"{builder.data_dir}: {name} is not prepared there. Allow the download, or give --data_dir."
                )
            prepare(name, root, progress=report)
            builder = tfds_reader.open_builder(name, root)
        arrays = _arrays(builder, root, report, Path(cache_dir) if cache_dir is not None else None)
    flip, pad = AUGMENTATION.get(builder.name, OTHER_AUGMENTATION)  # TFDS takes Cifar10 for cifar10, too
    return Dataset(
        name=name,
        **arrays,
        num_classes=builder.info.features["label"].num_classes,
        flip=flip,
        pad=pad,
        source=f"TFDS {builder.info.full_name} in {builder.data_dir}",
    )


def _arrays(builder: Any, root: Path, report: Progress, cache_dir: Path | None) -> dict[str, np.ndarray]:
    splits = {"train": "train", "test": tfds_reader.evaluation_split(builder)}
    source, shapes = {}, {}
    for part, split in splits.items():
        source.update(tfds_reader.shard_sizes(builder, split))
        count = builder.info.splits[split].num_examples
        shapes[f"{part}_images"] = ((count, *builder.info.features["image"].shape), "uint8")
        shapes[f"{part}_labels"] = ((count,), "int32")
    folders = cache.folders(root, builder.info.full_name.replace("/", "-"), cache_dir)
    for folder in folders:
        cached = cache.read(folder, source, shapes)
        if cached is not None:
            return cached
    for split in splits.values():
        tfds_reader.check_lengths(builder, split)
    arrays = {}
    for part, split in splits.items():
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = tfds_reader.decode(builder, split, report)
    cache.write(folders, source, arrays)
    return arrays


def digits() -> Dataset:
    """Scikit-learn's 8x8 digits, the last 360 of a fixed permutation for the test; not augmented."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    # Intensities are whole numbers from 0 to 16.
    images = np.round(loaded.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = loaded.target.astype(np.int32)
    order = np.random.default_rng(DIGITS_SEED).permutation(len(labels))
    train, test = order[:-DIGITS_TEST_EXAMPLES], order[-DIGITS_TEST_EXAMPLES:]
    return Dataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        num_classes=10,
        flip=False,
        pad=0,
        source="scikit-learn's load_digits (UCI optical recognition of handwritten digits, test part)",
    )


# An extension point: name -> loader of a dataset that needs neither TFDS nor a download.
LOCAL: dict[str, Callable[[], Dataset]] = {"digits": digits}
