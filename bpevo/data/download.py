"""Downloading one file with a bounded wait and a verified checksum."""

import contextlib
import hashlib
import http.client
import os
import queue
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bpevo.data.errors import DataError, brief
from bpevo.data.progress import Progress

CONNECT_SECONDS = 15.0
STALL_SECONDS = 15.0
CHUNK_BYTES = 1 << 20


def fetch(url: str, target: Path, sha256: str, report: Progress) -> Path:
    """Downloads `url` to `target`, unless a good copy is there already.

    `target` comes into being only when the checksum is right; what was received of a failed download is removed.

    Args:
      url: what to download.
      target: the file to write.
      sha256: expected checksum, in hexadecimal.
      report: progress in bytes.

    Returns:
      `target`.

    Raises:
      DataError: no answer within `CONNECT_SECONDS`, nothing received for `STALL_SECONDS`, an interrupted transfer, a
        wrong checksum, or a `target` that cannot be written.
    """
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    by_hand = f"Check the network, or put the file there by hand: {url} as {target}."
    try:
        if target.exists():
            with target.open("rb") as file:
                _check(hashlib.file_digest(file, "sha256").hexdigest(), sha256, target, f"rm {target} and run again")
            return target
        with _create(partial) as file, _open(url) as response:
            received, total, digest = _copy(response, file, lambda *done: report(f"Downloading {target.name}", *done))
        if received < total:
            raise DataError(
                f"{target}: the download was cut off after {received:,} of {total:,} bytes. Run again. {by_hand}"
            )
        _check(digest, sha256, target, f"run again, or get a good copy of {url} by hand; nothing was kept")
        os.replace(partial, target)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{target}: cannot download {url}: {brief(error)}. {by_hand}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return target


def _check(actual: str, expected: str, target: Path, repair: str) -> None:
    if actual != expected:
        raise DataError(f"{target}: wrong checksum: expected sha256 {expected}, got {actual}. To repair, {repair}.")


def _create(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be written: {brief(error)}. Give another --data_dir.") from error


def _open(url: str) -> Any:
    """The response to a GET of `url`, within `CONNECT_SECONDS` even where name resolution hangs."""
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "bpevo"})
            answers.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except urllib.error.HTTPError as error:
            error.close()
            answers.put(error)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _copy(response: Any, file: BinaryIO, report: Callable[[int, int], None]) -> tuple[int, int, str]:
    """Returns bytes received, bytes announced (0 where unknown), and the SHA-256 of what was received."""
    total = int(response.headers.get("Content-Length") or 0)
    digest = hashlib.sha256()
    received = 0
    while chunk := response.read(CHUNK_BYTES):
        file.write(chunk)
        digest.update(chunk)
        received += len(chunk)
        report(received, max(total, received))
    return received, total, digest.hexdigest()
