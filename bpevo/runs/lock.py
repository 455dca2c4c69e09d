"""One writer at a time: a lock on `<workdir>/lock`, which the kernel frees when its owner dies."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from bpevo.runs.errors import RunError, printable

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # another process has it; anything else is no answer


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Holds the lock of a folder, made if need be. Yields a check that raises RunError once the lock was taken away.

    Raises RunError if another process holds it, or the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise unwritable(folder, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _refused(folder, lock, error) from None
        try:
            os.ftruncate(lock, 0)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            os.pwrite(lock, f"host {socket.gethostname()}, pid {os.getpid()}, since {now}\n".encode(), 0)
        except OSError as error:
            raise unwritable(folder, error) from error

        def check() -> None:
            if not same(folder / "lock", os.fstat(lock)):
                raise RunError(
                    f"{folder / 'lock'} was deleted or replaced while this process wrote in {folder}: another one may write "
                    "there too, so this one stops. What was stored is kept; when no other process writes, the same command "
                    "continues"
                )

        yield check
    finally:
        os.close(lock)


def same(path: pathlib.Path, opened: os.stat_result) -> bool:
    """Whether the file of that name is still the opened one."""
    try:
        now = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (opened.st_dev, opened.st_ino)


def _refused(folder: pathlib.Path, lock: int, error: OSError) -> RunError:
    if error.errno not in _HELD:
        return RunError(
            f"the file system of {folder} cannot lock files ({error.strerror}), so nothing would keep two processes from "
            "writing at once: put --workdir on a local disk"
        )
    owner = printable(os.pread(lock, 1000, 0).decode("utf-8", "replace").strip()) or "unknown"
    return RunError(f"another process writes in {folder}: {owner}; wait for it or choose another --workdir")


def unwritable(folder: pathlib.Path, error: Exception) -> RunError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return RunError(f"cannot write in the workdir {folder}: {reason}; choose another --workdir")
