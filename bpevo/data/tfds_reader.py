"""Reading prepared TFDS image classification sets, without TensorFlow and without a network."""

import contextlib
import difflib
import json
import logging as standard_logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bpevo.data.errors import DataError, brief
from bpevo.data.progress import Progress

BATCH = 500
CHATTER = re.compile(r"group size|OpenCV is not installed|^Variant folder")


def data_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of TFDS's sets, `~` expanded.

    One that was given must be there: a misspelt one would be made, and a download begin. TFDS's own default need not be:
    `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Raises:
      DataError: it is no local folder, is not there, or lies in a home directory that is not known.
    """
    text = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise DataError(
            f"{text}: datasets are read from local folders only. Copy the prepared set to one, with its path below this "
            "(<name>/<version>), and give that folder as --data_dir."
        )
    try:
        root = Path(text).expanduser()
    except RuntimeError:
        raise DataError(
            f"{text}: no home directory is known. Write the whole path: as --data_dir, or in TFDS_DATA_DIR."
        ) from None
    if data_dir and not root.is_dir():
        fault = "this is no folder" if os.path.lexists(root) else "there is no such folder"
        raise DataError(f"{root}: {fault}. Correct --data_dir, or make it first: mkdir -p {shlex.quote(str(root))}")
    return root


def open_builder(name: str, data_dir: Path, local: Iterable[str] = ()) -> Any:
    """The stock TFDS builder of `name`, a fixed-size image classification set, prepared or not.

    Args:
      name: of a TFDS dataset.
      data_dir: TFDS's directory.
      local: names that are no TFDS datasets but may be meant.

    Raises:
      DataError: no such dataset, not an image classification set of one size, or its directory is damaged.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"\w+(/[\w.+-]+)?", name):
        raise _unknown(name, local)
    try:
        with without_chatter():
            builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise _unknown(name, local) from None
    except Exception as error:  # TFDS raises protobuf, assertion and value errors for damaged metadata alike.
        folder = data_dir / name
        if not folder.exists():
            raise DataError(f"Dataset {name!r} cannot be opened: {brief(error)}") from error
        damaged = next(filter(_is_damaged, sorted(folder.rglob("*.json"))), folder)
        place = damaged.parent if damaged.is_file() else folder
        raise DataError(f"{damaged}: damaged metadata: {brief(error)} {_repair(place)}") from error
    _check_features(builder)
    return builder


def _unknown(name: str, local: Iterable[str]) -> DataError:
    import tensorflow_datasets as tfds

    known = [*local, *tfds.list_builders(with_community_datasets=False)]
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
    return DataError(f"Unknown dataset {name!r}. The nearest valid name is {nearest!r}.")


def _is_damaged(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return True
    return False


def _repair(folder: Path) -> str:
    return f"To repair: rm -r {folder} and run again, or give another --data_dir."


def _check_features(builder: Any) -> None:
    import tensorflow_datasets as tfds

    features = builder.info.features
    keys = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    fault = ""
    if "image" not in keys or not isinstance(features["image"], tfds.features.Image):
        fault = f"it has no feature 'image' that is an Image; its features: {', '.join(keys) or 'none'}"
    elif "label" not in keys or not isinstance(features["label"], tfds.features.ClassLabel):
        fault = f"it has no feature 'label' that is a ClassLabel; its features: {', '.join(keys)}"
    elif None in features["image"].shape or features["image"].np_dtype != np.uint8:
        fault = (
            f"its images are {np.dtype(features['image'].np_dtype)} {features['image'].shape}, not uint8 of one size"
        )
    if fault:
        raise DataError(f"Dataset {builder.name!r} is not an image classification set bpevo can use: {fault}.")


def is_prepared(builder: Any) -> bool:
    """Whether `builder`'s directory holds a prepared dataset.

    Raises:
      DataError: the directory exists without its dataset_info.json, or in a file format other than array_record.
    """
    folder = Path(builder.data_dir)
    with without_chatter():
        prepared = builder.is_prepared()
    if not prepared and folder.exists():
        raise DataError(f"{folder}: dataset_info.json is missing. {_repair(folder)}")
    if prepared and builder.info.file_format.value != "array_record":
        raise DataError(
            f"{folder}: prepared as {builder.info.file_format.value}, which needs TensorFlow; bpevo reads "
            "array_record. Give another --data_dir, or convert it with TFDS's convert_format script."
        )
    return prepared


def evaluation_split(builder: Any) -> str:
    """`"test"`, or `"validation"` for a set without a test split.

    Raises:
      DataError: there is no training split, or nothing to evaluate on.
    """
    names = list(builder.info.splits)
    found = [split for split in ("test", "validation") if split in names]
    if "train" not in names or not found:
        raise DataError(
            f"{builder.data_dir}: dataset_info.json lists the splits {', '.join(names) or '(none)'}; "
            "bpevo needs train, and test or validation. Choose another --dataset."
        )
    return found[0]


def shard_sizes(builder: Any, split: str) -> dict[str, int]:
    """File name to size in bytes, for the shards of `split`.

    Raises:
      DataError: a shard is missing.
    """
    sizes = {}
    for path in map(Path, builder.info.splits[split].filepaths):
        try:
            sizes[path.name] = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or brief(error)}. {_repair(path.parent)}") from error
    return sizes


def check_lengths(builder: Any, split: str) -> None:
    """Checks that the shards of `split` hold as many examples as dataset_info.json says.

    TFDS believes dataset_info.json, and array_record reports a truncated file as one without records.

    Raises:
      DataError: a shard is truncated, damaged or of another length.
    """
    from array_record.python import array_record_module

    info = builder.info.splits[split]
    for path, expected in zip(info.filepaths, info.shard_lengths, strict=True):
        reader = array_record_module.ArrayRecordReader(os.fspath(path))
        found = reader.num_records()
        try:
            reader.close()
        except RuntimeError as error:  # Raised here, not when the file was opened.
            raise DataError(f"{path}: truncated or damaged: {brief(error)}. {_repair(Path(path).parent)}") from error
        if found != expected:
            raise DataError(
                f"{path}: holds {found:,} examples where dataset_info.json says {expected:,}. "
                f"{_repair(Path(path).parent)}"
            )


def decode(builder: Any, split: str, report: Progress) -> tuple[np.ndarray, np.ndarray]:
    """All of `split`: images uint8 `[N, H, W, C]` and labels int32 `[N]`, in TFDS's order.

    Raises:
      DataError: a shard is damaged, or a label is not one of the classes.
    """
    features = builder.info.features
    count = builder.info.splits[split].num_examples
    images = np.empty((count, *features["image"].shape), np.uint8)
    labels = np.empty(count, np.int32)
    folder = Path(builder.data_dir)
    task = f"Decoding {builder.name} {split}"
    with without_chatter():
        try:
            examples = builder.as_data_source(split)
            for start in range(0, count, BATCH):
                stop = min(start + BATCH, count)
                for i, example in enumerate(examples.__getitems__(range(start, stop)), start):
                    images[i] = example["image"]
                    labels[i] = example["label"]
                report(task, stop, count)
        except Exception as error:  # array_record, protobuf and image decoders each have their own.
            raise DataError(
                f"{folder}: split {split!r} cannot be decoded: {brief(error)}. {_repair(folder)}"
            ) from error
    classes = features["label"].num_classes
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{folder}: split {split!r} has labels {labels.min()} to {labels.max()}, outside its {classes} classes. "
            "Choose another --dataset."
        )
    return images, labels


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Drops harmless warnings of TFDS and array_record, and whatever TFDS logs below a warning."""

    def relevant(record: standard_logging.LogRecord) -> bool:
        routine = record.levelno < standard_logging.WARNING and "tensorflow_datasets" in record.pathname
        return not routine and not CHATTER.search(str(record.msg))

    logger = standard_logging.getLogger("absl")
    logger.addFilter(relevant)
    try:
        yield
    finally:
        logger.removeFilter(relevant)
