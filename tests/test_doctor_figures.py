"""The doctor by hand: every figure that it tells of a machine, a folder and a run, and what it finds wrong."""

import collections
import io
import os
import types

import pytest
from rich.console import Console
from test_runs import SETTINGS, StandIn, plan, rows, search

from bpevo import doctor
from bpevo.command import jax_setup, selfcheck
from bpevo.runs import RunDatabase, RunError, provenance
from bpevo.search import SEMANTICS
from bpevo.training import NUMERICS


def told(findings) -> dict[str, tuple[str, str]]:
    return {what: (state, fault) for what, state, fault in findings}


@pytest.mark.parametrize(
    "count, text",
    [
        (None, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (5 * 2**30, "5 GiB"),
        (2**40, "1 TiB"), (2**50, "1024 TiB"),
    ],
)  # fmt: skip
def test_sizes_are_read_at_a_glance(count, text):
    assert doctor._size(count) == text


def test_a_run_is_counted_by_stage_and_end_and_its_proposals_by_whether_they_were_trained(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, plan(40), StandIn(4, interrupt_after=20))
    stored = rows(tmp_path)
    ended = collections.Counter((row[0], row[5]) for row in stored["evaluations"])
    trained = {row[1] for row in stored["evaluations"] if row[0] == "search"}
    waiting = [row for row in stored["proposals"] if row[0] not in trained]
    (tmp_path / "checkpoints").mkdir()
    for name, size in (("a", 1024), ("b", 2048)):
        (tmp_path / "checkpoints" / name).write_bytes(bytes(size))
    found = told(doctor.run(str(tmp_path)))
    assert (
        found["trainings"] == (", ".join(f"{s} {n} {e}" for (s, e), n in sorted(ended.items())), "") and len(ended) > 2
    )
    assert (
        found["proposals"] == (f"{len(stored['proposals'])}, {len(waiting)} of them without a training", "") and waiting
    )
    assert found["checkpoints"] == ("2, 3 KiB", "")
    assert found["database"] == (f"{doctor._size((tmp_path / 'run.sqlite').stat().st_size)}, integrity ok", "")
    assert found["numerics"] == (f"None, {NUMERICS} in this release", "") and "selection" not in found
    (tmp_path / "elsewhere").mkdir()
    with RunDatabase.writing(tmp_path / "elsewhere") as database:
        database.check_settings(SETTINGS, {}, ())
        (tmp_path / "elsewhere" / "checkpoints").symlink_to(tmp_path / "checkpoints")
        found = told(doctor.run(str(tmp_path / "elsewhere")))
        log = doctor._size((tmp_path / "elsewhere" / "run.sqlite-wal").stat().st_size)
        copy = f"; {log} more in run.sqlite-wal: copy the run with --copy_to=FOLDER, not this file alone"
        assert found["database"][0].endswith(f", integrity ok{copy}") and log != "0 B"
        assert f"pid {os.getpid()}," in found["writer"][0] and not found["writer"][0].startswith("none")
    assert found["checkpoints"] == ("0, 0 B", "") and found["trainings"] == ("none", "")
    assert found["proposals"] == ("0, 0 of them without a training", "")


@pytest.mark.parametrize(
    "settings, numerics, selection",
    [
        ({"numerics": NUMERICS}, "", None),
        ({"numerics": "others"}, "this release computes other numbers: use --fork_from", None),
        ({"evolution": {}, "semantics": SEMANTICS}, "", (SEMANTICS, "")),
        ({"evolution": {}}, "", (1, "this release selects otherwise: read it, or go on by --fork_from")),
    ],
)
def test_a_run_of_another_release_is_told(tmp_path, settings, numerics, selection):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings(settings, provenance.versions(), ())
    found = told(doctor.run(str(tmp_path)))
    assert found["numerics"] == (f"{settings.get('numerics')!r}, {NUMERICS} in this release", numerics)
    assert found["last written by"] == ("these versions and this kind of device", "")
    shown = selection and (f"version {selection[0]}, {SEMANTICS} in this release", selection[1])
    assert found.get("selection") == shown


@pytest.fixture
def free(monkeypatch):
    """Bytes that are free on every disk."""
    made = types.SimpleNamespace(free=2**31)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: made)
    return made


def test_a_folder_has_a_gibibyte_free_and_can_be_written_or_is_wrong(tmp_path, free, monkeypatch):
    look, missing = doctor._folder, tmp_path / "a" / "b"
    assert look(None) == ("none", "") and look(tmp_path) == (f"{tmp_path}, 2 GiB free", "")
    assert look(missing) == (f"{missing} (not there yet), 2 GiB free", "")
    free.free = 2**30
    assert look(tmp_path) == (f"{tmp_path}, 1 GiB free", "")
    free.free = 2**29
    assert look(tmp_path) == (f"{tmp_path}, 512 MiB free", "less than 1 GiB free")
    free.free = 2**30 - 1
    assert look(tmp_path)[1] == "less than 1 GiB free"
    (tmp_path / "file").write_text("")
    assert look(tmp_path / "file" / "below") == (f"{tmp_path / 'file' / 'below'}", f"{tmp_path / 'file'} is no folder")
    with monkeypatch.context() as patch:
        patch.setattr(doctor.os, "access", lambda place, mode: False)
        assert look(tmp_path)[1] == f"{tmp_path} cannot be written"
    for flags, fault in (
        (os.ST_RDONLY | 4096, f"{missing.parent.parent} cannot be written"),
        (4096, "less than 1 GiB free"),
    ):
        monkeypatch.setattr(doctor.os, "statvfs", lambda place, flags=flags: types.SimpleNamespace(f_flag=flags))
        assert look(missing)[1] == fault


VERSIONS = {"bpevo": "not installed", "jax": "0.10.2", "flax": "1", "cores": "8"}


def test_a_machine_is_told_by_its_devices_its_memory_and_its_packages(monkeypatch):
    monkeypatch.setattr(provenance, "versions", lambda: dict(VERSIONS))
    monkeypatch.setattr(provenance, "MACHINE", ("cores",))
    full = {"bytes_limit": 2**30, "bytes_in_use": 3 * 2**20}
    devices = [
        types.SimpleNamespace(id=0, device_kind="H100", memory_stats=lambda: full),
        types.SimpleNamespace(id=1, device_kind="TPU", memory_stats=lambda: {"bytes_limit": 2**31}),
        types.SimpleNamespace(id=2, device_kind="cpu", memory_stats=lambda: None),
    ]
    monkeypatch.setattr(doctor.jax, "local_devices", lambda: devices)
    said = {0: "in graphs", 1: "", 2: ""}
    monkeypatch.setattr(doctor, "graphs", lambda device: types.SimpleNamespace(said=said[device.id]))
    monkeypatch.setattr(doctor, "kernel_of", lambda device: types.SimpleNamespace(said="in a kernel"))
    monkeypatch.setattr(doctor.os, "sysconf", {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 2**12}.get)
    monkeypatch.setattr(selfcheck, "check", lambda: None)
    assert list(doctor.machine()) == [
        ("versions", "bpevo not installed, jax 0.10.2, flax 1", ""),
        ("device 0", "H100, 3 MiB of 1 GiB in use, rules run in a kernel, their decisions taken in graphs", ""),
        ("device 1", "TPU, 0 B of 2 GiB in use", ""),
        ("device 2", "cpu, uses the machine's memory", ""),
        ("memory", "16 GiB, 8 cores", ""),
        ("self-check", "compiled and eager gradients agree", ""),
    ]

    def wrong():
        raise selfcheck.SelfCheckError("wrong")

    monkeypatch.setattr(selfcheck, "check", wrong)
    known = "jax 0.10.2 computes wrong numbers on CPU, jax issue 39103"
    assert list(doctor.machine())[-1] == ("self-check", known, "wrong")
    monkeypatch.setattr(
        provenance, "versions", lambda: VERSIONS | {"jax": "9", "flax": "not installed", "optax": "not installed"}
    )
    found = told(doctor.machine())
    assert found["self-check"] == ("", "wrong")
    assert found["packages"] == ("flax, optax", "not installed: pip install . in a clone of bpevo")


def test_an_environment_is_told_with_what_is_not_heeded(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setattr(jax_setup, "not_heeded", lambda: {"JAX_ENABLE_X64": "False"})
    monkeypatch.setattr(provenance, "versions", lambda: {"matmul precision": "highest", "XLA_FLAGS": ""})
    assert list(doctor.environment()) == [
        ("environment", "JAX_ENABLE_X64=1 is not heeded: False holds", ""),
        ("numbers", "matmul precision highest, XLA_FLAGS none", ""),
    ]
    monkeypatch.setattr(jax_setup, "not_heeded", dict)
    assert next(doctor.environment())[1] == "nothing that bpevo has to overrule"


def test_folders_are_the_caches_and_the_datas_with_what_it_holds(monkeypatch, tmp_path, free):
    cached = types.SimpleNamespace(jax_compilation_cache_dir=None)
    monkeypatch.setattr(doctor, "jax", types.SimpleNamespace(config=cached))
    none = "none: no home directory is known; set XDG_CACHE_HOME to keep compiled programs"
    assert told(doctor.folders(str(tmp_path))) == {
        "compilation cache": (none, ""),
        "data": (f"{tmp_path}, 2 GiB free; holds nothing yet", ""),
    }
    for name in ("cifar100", "cifar10"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    cached.jax_compilation_cache_dir = f"{tmp_path}/cache"
    assert told(doctor.folders(str(tmp_path))) == {
        "compilation cache": (f"{tmp_path}/cache (not there yet), 2 GiB free", ""),
        "data": (f"{tmp_path}, 2 GiB free; holds cifar10, cifar100", ""),
    }


def examined(**values) -> tuple[int, list[str]]:
    given = types.SimpleNamespace(**{"workdir": None, "data_dir": None, "ray_address": None, "copy_to": None} | values)
    console = Console(file=io.StringIO(), width=80)
    return doctor.examine(given, console, None), console.file.getvalue().splitlines()


def test_findings_are_aligned_and_what_is_wrong_follows_with_its_exit_code(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "machine", lambda: [("memory", "1 GiB", ""), ("device 0", "cpu", "")])
    monkeypatch.setattr(doctor, "environment", lambda: [("environment", "a\x1b", "")])
    monkeypatch.setattr(doctor, "folders", lambda data_dir: [("data", data_dir, "")])
    plain = [
        "            memory  1 GiB",
        "          device 0  cpu",
        "       environment  a\\x1b",
        "              data  there",
    ]
    assert examined(data_dir="there") == (0, [*plain, "", "nothing is wrong"])
    monkeypatch.setattr(
        doctor, "run", lambda folder: [("database", folder, f"{folder} is broken"), ("writer", "none", "")]
    )
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.sqlite").write_text("")
    own = [
        line for name in ("a", "b") for line in (f"          database  {tmp_path}/{name}", "            writer  none")
    ]
    code, lines = examined(data_dir="there", workdir=str(tmp_path))
    assert code == 1 and lines == [
        *plain, *own, "", "wrong:", f"database: {tmp_path}/a is broken", f"database: {tmp_path}/b is broken",
    ]  # fmt: skip
    assert doctor._runs(None) == [] and doctor._runs(f"{tmp_path}/a") == [f"{tmp_path}/a"]
    assert doctor._runs(f"{tmp_path}/c") == [f"{tmp_path}/c"]


def test_a_copy_is_of_all_runs_below_and_needs_one(tmp_path):
    with pytest.raises(RunError, match="^--copy_to=FOLDER needs --workdir=FOLDER: the run to copy$"):
        examined(copy_to=str(tmp_path))
    with pytest.raises(RunError, match="^there is no run in .* to copy$"):
        examined(copy_to=f"{tmp_path}/to", workdir=str(tmp_path))
    for name in ("from", "from/a"):
        with RunDatabase.writing(tmp_path / name) as database:
            database.check_settings({"name": name}, {}, ())
    source, target = f"{tmp_path}/from", f"{tmp_path}/to"
    code, lines = examined(copy_to=target, workdir=source)
    assert code == 0 and "".join(lines).replace("\n", "") == "".join(
        f"{source}/{name}run.sqlite -> {target}/{name}run.sqlite" for name in ("", "a/")
    )
    with RunDatabase.reading(tmp_path / "to" / "a") as database:
        assert database.settings() == {"name": "from/a"}
