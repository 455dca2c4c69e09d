"""What is installed, what it runs on, how a run is, and what is wrong: `python -m bpevo.doctor --workdir=runs/quickstart`.

Changes nothing. Exit code 0 if nothing is wrong, 1 if something is.
"""

import collections
import os
import pathlib
import shutil
from collections.abc import Iterator

from bpevo.command import main  # isort: skip (before jax)
import jax
from absl import flags
from rich.console import Console

from bpevo.command import clusters, jax_setup, process, selfcheck
from bpevo.command.clusters import Finding
from bpevo.command.plans import path_of
from bpevo.data import DataError
from bpevo.data.tfds_reader import data_root
from bpevo.runs import RunDatabase, RunError, printable, provenance
from bpevo.search import SEMANTICS
from bpevo.training import NUMERICS
from bpevo.training.graphs import graphs
from bpevo.training.kernel import kernel_of

EXIT_WRONG = 1
LEAST_FREE = 2**30  # bytes on a disk below which it is told


def machine() -> Iterator[Finding]:
    """Versions, devices, memory, and whether they compute right numbers."""
    versions = provenance.versions()
    broken = selfcheck.BROKEN.get(versions["jax"], "")
    yield "versions", ", ".join(f"{k} {v}" for k, v in versions.items() if k not in provenance.MACHINE), ""
    missing = [k for k, v in versions.items() if v == "not installed" and k != "bpevo"]
    if missing:
        yield "packages", ", ".join(missing), "not installed: pip install . in a clone of bpevo"
    for device in jax.local_devices():
        memory = device.memory_stats() or {}
        limit, used = memory.get("bytes_limit"), memory.get("bytes_in_use", 0)
        state = f"{_size(used)} of {_size(limit)} in use" if limit else "uses the machine's memory"
        said = graphs(device).said
        decisions = f", rules run {kernel_of(device).said}, their decisions taken {said}" if said else ""
        yield f"device {device.id}", f"{device.device_kind}, {state}{decisions}", ""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield "memory", f"{_size(pages)}, {versions['cores']} cores", ""
    try:
        selfcheck.check()
        yield "self-check", "compiled and eager gradients agree", ""
    except selfcheck.SelfCheckError as error:
        yield "self-check", broken and f"jax {versions['jax']} {broken}", str(error)


def environment() -> Iterator[Finding]:
    """What the environment says about jax that is not heeded, or that changes numbers."""
    ignored = jax_setup.not_heeded()
    kept = ", ".join(f"{name}={os.environ[name]} is not heeded: {value} holds" for name, value in ignored.items())
    yield "environment", kept or "nothing that bpevo has to overrule", ""
    versions = provenance.versions()
    yield "numbers", f"matmul precision {versions['matmul precision']}, XLA_FLAGS {versions['XLA_FLAGS'] or 'none'}", ""


def folders(data_dir: str | None) -> Iterator[Finding]:
    """Compilation cache and data directory."""
    cache = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 (made at run time, so unknown to mypy)
    if cache is None:
        yield "compilation cache", "none: no home directory is known; set XDG_CACHE_HOME to keep compiled programs", ""
    else:
        yield "compilation cache", *_folder(cache)
    try:
        root = data_root(data_dir)
    except DataError as error:
        yield "data", "unusable", str(error)
        return
    state, fault = _folder(root)
    prepared = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    yield "data", f"{state}; holds {', '.join(prepared) or 'nothing yet'}", fault


def run(workdir: str) -> Iterator[Finding]:
    """The database of a workdir; reads only."""
    folder = pathlib.Path(workdir)
    yield "workdir", *_folder(folder)
    yield "writer", _owner(folder / "lock"), ""
    try:
        with RunDatabase.reading(folder) as database:
            fault = database.fault()
            log = database.path.with_name(database.path.name + "-wal")
            size = f"{_size(database.path.stat().st_size)}, integrity {'broken' if fault else 'ok'}"
            pending = log.stat().st_size if log.is_file() else 0
            hint = f"; {_size(pending)} more in {log.name}: copy the run with --copy_to=FOLDER, not this file alone"
            yield "database", size + (hint if pending else ""), fault
            proposals, evaluations = database.proposals(), database.rows()
            first, versions, settings = database.first_versions(), database.versions(), database.settings()
    except RunError as error:
        yield "database", "unusable", str(error)
        return
    ended = collections.Counter((e.stage, e.status) for e in evaluations)
    counts = ", ".join(f"{stage} {n} {status}" for (stage, status), n in sorted(ended.items()))
    known = {e.proposal for e in evaluations}
    yield "proposals", f"{len(proposals)}, {sum(p.id not in known for p in proposals)} of them without a training", ""
    yield "trainings", counts or "none", ""
    if changed := provenance.changed_numerics(first, versions):
        yield "begun by", printable(changed), ""
    changed = provenance.changed_numerics(versions, provenance.versions())
    yield "last written by", printable(changed) or "these versions and this kind of device", ""
    numerics = settings.get("numerics")
    wrong = "" if numerics in (None, NUMERICS) else "this release computes other numbers: use --fork_from"
    yield "numerics", f"{numerics!r}, {NUMERICS} in this release", wrong
    if "evolution" in settings:  # a search
        older = settings.get("semantics", 1)
        wrong = "" if older == SEMANTICS else "this release selects otherwise: read it, or go on by --fork_from"
        yield "selection", f"version {older}, {SEMANTICS} in this release", wrong
    checkpoints = folder / "checkpoints"
    files = list(checkpoints.iterdir()) if checkpoints.is_dir() and not checkpoints.is_symlink() else []
    yield "checkpoints", f"{len(files)}, {_size(sum(f.lstat().st_size for f in files))}", ""


def _runs(workdir: str | None) -> list[str]:
    """The workdir of a search, or the scenarios of an evaluation without one."""
    if not workdir or (pathlib.Path(workdir) / "run.sqlite").exists():
        return [workdir] if workdir else []
    return [str(path.parent) for path in sorted(pathlib.Path(workdir).glob("*/run.sqlite"))] or [workdir]


def _folder(path: str | os.PathLike | None) -> tuple[str, str]:
    """(state, fault) of a folder that is to be written in; one that is yet to be made is judged by its parent."""
    if not path:
        return "none", ""
    place = pathlib.Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return str(path), f"{place} is no folder"
    free = shutil.disk_usage(place).free
    state = f"{path}{'' if place == pathlib.Path(path) else ' (not there yet)'}, {_size(free)} free"
    if not os.access(place, os.W_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        return state, f"{place} cannot be written"
    return state, f"less than {_size(LEAST_FREE)} free" if free < LEAST_FREE else ""


def _owner(lock: pathlib.Path) -> str:
    """Whoever holds the lock, told from the kernel's table: taking it, even for a moment, could refuse a search."""
    try:
        owner = printable(lock.read_bytes()[:1000].decode("utf-8", "replace").strip())
        held = f":{lock.stat().st_ino} " in pathlib.Path("/proc/locks").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return owner if held else f"none; the last was {owner}"


def _size(count: float | None) -> str:
    value = float(count or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def examine(values: flags.FlagValues, console: Console, interruption: process.Interruption) -> int:
    """Prints what was found; returns the exit code."""
    workdir, data_dir, copy_to = (
        (given := getattr(values, name)) and path_of(name, given) for name in ("workdir", "data_dir", "copy_to")
    )
    if copy_to:
        return _copy(workdir, copy_to, console)
    findings = [machine(), environment(), folders(data_dir)] + [run(folder) for folder in _runs(workdir)]
    if values.ray_address:
        findings.append(clusters.cluster(values.ray_address, interruption))
    wrong = []
    for what, state, fault in (finding for group in findings for finding in group):
        console.out(f"{what:>18}  {printable(state)}", highlight=False)
        wrong += [f"{what}: {printable(fault)}"] if fault else []
    console.out("\n".join(["", "wrong:", *wrong] if wrong else ["", "nothing is wrong"]), highlight=False)
    return EXIT_WRONG if wrong else 0


def _copy(workdir: str | None, target: str, console: Console) -> int:
    """Complete copies of a workdir's databases, also of runs in progress."""
    if not workdir:
        raise RunError("--copy_to=FOLDER needs --workdir=FOLDER: the run to copy")
    source = pathlib.Path(workdir)
    databases = [p for p in (source / "run.sqlite", *sorted(source.glob("*/run.sqlite"))) if p.is_file()]
    if not databases:
        raise RunError(f"there is no run in {workdir} to copy")
    for path in databases:
        folder = pathlib.Path(target) / path.parent.relative_to(source)
        with RunDatabase.reading(path.parent) as database:
            database.copy_to(folder)
        console.out(f"{path} -> {folder / path.name}", highlight=False)
    return 0


def define() -> None:
    flags.DEFINE_string("workdir", None, "A run's folder, to look at its database.")
    flags.DEFINE_string("data_dir", None, "TFDS directory. Default: TFDS's own.")
    flags.DEFINE_string(
        "ray_address", None, "A Ray cluster to look at, HOST:PORT or auto: a worker of each node checks itself."
    )
    flags.DEFINE_string(
        "copy_to", None, "Only copy the runs of --workdir, complete, also while they are running, into this new folder."
    )


if __name__ == "__main__":
    main.start("bpevo.doctor", (define,), examine, lambda values: bool(values.ray_address))
