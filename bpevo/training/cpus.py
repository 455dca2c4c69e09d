"""How many CPUs this process may use: what `taskset`, containers and batch systems leave of the machine."""

import math
import os
import pathlib
from collections.abc import Iterator


def usable_cpus(cgroups: str | os.PathLike = "/sys/fs/cgroup", own: str | os.PathLike = "/proc/self/cgroup") -> int:
    """CPUs in the affinity mask, or the whole number above the CPU time that the control groups allow, if that is less.

    Args:
      cgroups: where the control groups are mounted.
      own: the file that says in which of them this process is.

    Returns:
      At least 1.
    """
    # macOS has no affinity masks.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(pathlib.Path(cgroups), pathlib.Path(own)))]))


def _quotas(root: pathlib.Path, own: pathlib.Path) -> Iterator[float]:
    """CPUs that the process's control groups and those above them allow, where they say; versions 1 and 2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [root / controllers, root / "cpu"] if controllers else [root]
        for mount in mounts:
            # A container sees its own group as the root, though it is named by its path outside.
            group = mount / path.lstrip("/")
            for folder in (group, *(p for p in group.parents if p == mount or mount in p.parents)):
                quota = _quota_v1(folder) if controllers else _quota_v2(folder)
                if quota is not None:
                    yield quota


def _quota_v2(folder: pathlib.Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: pathlib.Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return None if quota < 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
