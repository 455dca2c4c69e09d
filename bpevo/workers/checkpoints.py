"""Checkpoints of running trainings: plain arrays on disk, from which a training continues bit for bit (on CPU).

Only a way to save time: a result never depends on whether there was a checkpoint. A file holds one training's curve and
arrays, is replaced atomically, and is used only by the same job under the same identity (settings and versions).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpevo.training import EpochResult
from bpevo.workers.job import Job

MAX_FILES = (
    64  # beyond those of running trainings; left behind by crashes between a result and its checkpoint's removal
)
_OURS = re.compile(r"[0-9a-f]{32}\.npz(\.partial)?")


class Checkpoint(NamedTuple):
    curve: list[EpochResult]
    seconds: float  # of training so far
    state: list[np.ndarray]


class Checkpoints:
    """The files in one folder. Deletes by name inside it only, and only names of its own making; follows no link."""

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any], minutes: float, say: Callable[[str], None]):
        """`minutes` between two checkpoints of a training. Raises OSError if `folder` is no folder that can be written."""
        os.makedirs(folder, exist_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._identity = json.loads(json.dumps(identity))
        self.seconds, self._say = 60 * minutes, say
        self._running: set[str] = set()
        for name in self._names():
            if name.endswith(".partial"):
                self._delete(name)

    def save(self, job: Job, checkpoint: Checkpoint) -> None:
        """Replaces the job's checkpoint. A disk that is full costs the checkpoint, not the training."""
        name = _name(job)
        self._running.add(name)
        header = {
            "job": _description(job),
            "identity": self._identity,
            "curve": [dataclasses.asdict(e) for e in checkpoint.curve],
            "seconds": checkpoint.seconds,
        }
        arrays: dict[str, Any] = {str(i): a for i, a in enumerate(checkpoint.state)}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        partial, flags = f"{name}.partial", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(partial, flags, 0o644, dir_fd=self._folder), "wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.rename(partial, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
            self._prune()
        except OSError as error:
            self._say(f"no checkpoint could be written ({error.strerror}); the training goes on")
            self._delete(partial)

    def load(self, job: Job, shapes: Sequence[tuple[tuple[int, ...], str]]) -> Checkpoint | None:
        """The job's checkpoint, or None where there is none that fits; a damaged one is said so and deleted."""
        name = _name(job)
        self._running.add(name)
        try:
            file = open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder), "rb")  # noqa: SIM115
        except OSError:
            return None
        try:
            with file, np.load(file, allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                if (header["job"], header["identity"]) != (_description(job), self._identity):
                    raise ValueError("it was made by other settings or versions")
                state = [arrays[str(i)] for i in range(len(arrays.files) - 1)]
                # NumPy's files name no dtype of jax's own, such as bfloat16, but hold its bytes.
                if len(state) == len(shapes):
                    state = [a.view(d) if a.dtype.kind == "V" else a for a, (_, d) in zip(state, shapes, strict=True)]
                if [(a.shape, str(a.dtype)) for a in state] != [(tuple(s), d) for s, d in shapes]:
                    raise ValueError("its arrays are of another network")
                curve = [EpochResult(**e) for e in header["curve"]]
                if [e.epoch for e in curve] != list(range(1, len(curve) + 1)) or not curve:
                    raise ValueError("its curve has gaps")
                return Checkpoint(curve, float(header["seconds"]), state)
        except Exception as error:  # a damaged archive or header makes numpy raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._say(f"the checkpoint {name} cannot be used ({reason}): its training starts afresh")
            self._delete(name)
            return None

    def discard(self, job: Job) -> None:
        """Removes the checkpoint of a job whose result is stored."""
        self._running.discard(_name(job))
        self._delete(_name(job))

    def clear(self) -> None:
        """Removes every checkpoint: the run is complete."""
        for name in self._names():
            self._delete(name)

    def _prune(self) -> None:
        idle = [n for n in self._names() if n not in self._running]
        idle.sort(key=lambda n: os.stat(n, dir_fd=self._folder, follow_symlinks=False).st_mtime_ns)
        for name in idle[:-MAX_FILES]:
            self._delete(name)

    def _names(self) -> list[str]:
        return [n for n in sorted(os.listdir(self._folder)) if _OURS.fullmatch(n)]

    def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folder)


def _description(job: Job) -> list:
    t = job.training
    what = [
        *job.identity,
        job.proposal,
        str(t.equation),
        t.transform,
        t.held_out,
        job.bars,
        job.rung_epochs,
        job.epochs,
    ]
    return json.loads(json.dumps(what))


def _name(job: Job) -> str:
    return hashlib.sha256(json.dumps(_description(job)).encode()).hexdigest()[:32] + ".npz"
