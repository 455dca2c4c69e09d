"""Decoded arrays on disk: one .npy file each, and a manifest (JSON) that says what they must be.

An array is trusted only when its shape, dtype and SHA-256 are the manifest's, and the manifest is used only when the
dataset's files have the sizes it recorded. Files are replaced atomically and the manifest is written last.
"""

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from absl import logging

from bpevo.data.errors import brief

FORMAT = 1
MANIFEST = "manifest.json"


def folders(data_dir: Path, name: str, cache_dir: Path | None = None) -> list[Path]:
    """Where the cache of dataset `name` may lie, in order of preference."""
    if cache_dir is not None:
        return [Path(cache_dir) / name]
    user_cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    places = [data_dir / "bpevo_cache" / name]
    return places if user_cache.startswith("~") else [*places, Path(user_cache) / "bpevo" / name]  # no home is known


def read(
    folder: Path, source: Mapping[str, int], shapes: Mapping[str, tuple[tuple[int, ...], str]]
) -> dict[str, np.ndarray] | None:
    """Reads a cache.

    Args:
      folder: where it lies.
      source: file name to size in bytes, of the files it was decoded from.
      shapes: array name to (shape, dtype) expected.

    Returns:
      The arrays by name, or None where there is no cache or, with a logged warning, where it is stale or damaged.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT or manifest["source"] != dict(source):
            raise ValueError("it was made from other files")
        return {name: _read_array(folder, name, manifest["arrays"][name], *shapes[name]) for name in shapes}
    except Exception as error:  # A damaged .npy header makes numpy raise anything its tokenizer can.
        logging.warning("The cache %s is unusable (%s) and is built again.", folder, brief(error))
        return None


def _read_array(folder: Path, name: str, entry: Mapping[str, str], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = np.load(folder / f"{name}.npy", allow_pickle=False)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}, not {dtype} {shape}")
    if _sha256(array) != entry["sha256"]:
        raise ValueError(f"{name}.npy differs from its checksum")
    return array


def write(candidates: list[Path], source: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `arrays` to the first of `candidates` that can be written; logs a warning where none can."""
    manifest = {
        "format": FORMAT,
        "source": dict(source),
        "arrays": {name: {"sha256": _sha256(array)} for name, array in arrays.items()},
    }
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, array in arrays.items():
                _replace(folder / f"{name}.npy", functools.partial(_save, array))
            _replace(folder / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=2).encode()))
        except OSError as error:
            logging.info("Cannot write the cache %s (%s).", folder, brief(error))
            continue
        logging.info("Cached the decoded arrays in %s.", folder)
        return
    logging.warning(
        "The decoded arrays could not be cached in %s: they are decoded anew each time.",
        " or ".join(str(folder) for folder in candidates),
    )


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _replace(path: Path, write_to: Callable[[BinaryIO], object]) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            write_to(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _save(array: np.ndarray, file: IO[bytes]) -> None:
    np.save(file, array, allow_pickle=False)
