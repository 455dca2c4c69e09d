"""The self-check and the doctor."""

import io
import os
import pathlib
import subprocess
import sys
import time
import types

import jax
import pytest
from rich.console import Console
from test_launch import program
from test_runs import HOLD, PARTS, StandIn, outcome, plan, python, search

from bpevo import doctor
from bpevo.command import clusters, selfcheck
from bpevo.evolution import Proposal
from bpevo.rules import parse
from bpevo.runs import RunDatabase, RunError, provenance
from bpevo.search import SEMANTICS
from bpevo.training import NUMERICS
from bpevo.workers import Stage

REPOSITORY = pathlib.Path(__file__).parents[1]


def findings(workdir) -> dict[str, tuple[str, str]]:
    return {what: (state, fault) for what, state, fault in doctor.run(str(workdir))}


def test_the_self_check_passes_here_within_two_seconds():
    selfcheck.check()
    best = min(timed(selfcheck.check) for _ in range(3))
    assert best < 2


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize("version", ["0.10.0", "0.10.1", "0.10.2", "0.11.0", "0.11.1"])
def test_broken_releases_of_jax_are_named_and_refused(version):
    with pytest.raises(
        RunError, match=rf"jax {version} (aborts|computes wrong numbers) .*jax issue \d+: install another release"
    ):
        selfcheck.check(version)
    assert f"!={version}" in (REPOSITORY / "setup.cfg").read_text(encoding="utf-8")


def test_wrong_numbers_are_noticed(monkeypatch):
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f: jit(lambda *a: jax.tree.map(lambda x: x * 1.01, f(*a))))
    with pytest.raises(
        selfcheck.SelfCheckError,
        match="computes wrong numbers: a compiled gradient differs .*; a compiled product differs",
    ):
        selfcheck.check()


def test_a_healthy_run_has_no_fault(tmp_path):
    search(tmp_path, plan(12), StandIn(4))
    found = findings(tmp_path)
    assert not any(fault for _, fault in found.values())
    assert "integrity ok" in found["database"][0] and found["proposals"][0].startswith("12, 0 of them")
    assert "control 2 done" in found["trainings"][0] or "control" in found["trainings"][0]
    assert found["writer"][0].startswith("none; the last was host ")


def test_a_running_owner_is_named(tmp_path):
    owner = python(HOLD, tmp_path)
    try:
        assert owner.stdout.readline() == "held\n"
        assert f"pid {owner.pid}," in findings(tmp_path)["writer"][0] and "none" not in findings(tmp_path)["writer"][0]
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    assert findings(tmp_path)["writer"][0].startswith("none; the last was")


def test_a_damaged_database_is_a_fault_and_is_not_touched(tmp_path):
    search(tmp_path, plan(40), StandIn(4))
    path = tmp_path / "run.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    assert findings(tmp_path)["database"][1] and path.read_bytes() == bytes(content)


def command(*arguments) -> tuple[int, str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_"))}
    environment |= {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    whole = [sys.executable, "-m", "bpevo.doctor", *arguments]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_says_what_is_wrong(tmp_path):
    search(tmp_path, plan(4), StandIn(4))
    code, output, errors = command(f"--workdir={tmp_path}", f"--data_dir={tmp_path}")
    assert code == 0 and output.endswith("nothing is wrong\n") and not errors, output + errors
    for word in ("versions", "device 0", "memory", "self-check", "compilation cache", "data", "database", "trainings"):
        assert word in output
    code, output, errors = command(f"--workdir={tmp_path / 'missing'}")
    assert code == 1 and "wrong:\ndatabase: there is no run in" in output and not errors
    code, output, errors = command("--workdirr=x")
    assert code == 2 and errors.startswith("bpevo.doctor: Unknown command line flag") and not output


# In this process, each finding by itself.


@pytest.mark.parametrize(
    "count, shown",
    [(None, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (2**20, "1 MiB"), (2**30, "1 GiB"),
     (5 * 2**40, "5 TiB")],
)  # fmt: skip
def test_sizes_are_told_in_the_largest_unit_of_which_there_is_one(count, shown):
    assert doctor._size(count) == shown


def device(number: int, kind: str, memory: dict | None) -> types.SimpleNamespace:
    return types.SimpleNamespace(id=number, device_kind=kind, memory_stats=lambda: memory)


VERSIONS = {
    "python": "3.11", "bpevo": "not installed", "jax": "9.9", "flax": "not installed", "optax": "not installed",
    "device": "2 x T", "cores": "5", "matmul precision": "high", "XLA_FLAGS": "", "registered": "",
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """A machine of which all is known."""
    devices = [device(0, "T", {"bytes_limit": 3 * 2**30, "bytes_in_use": 2**20}), device(1, "U", {"bytes_limit": 2**30}),
               device(2, "cpu", None)]  # fmt: skip
    said = {"T": "said of graphs", "U": "", "cpu": ""}
    monkeypatch.setattr(provenance, "versions", lambda: VERSIONS)
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(doctor, "graphs", lambda device: types.SimpleNamespace(said=said[device.device_kind]))
    monkeypatch.setattr(doctor, "kernel_of", lambda device: types.SimpleNamespace(said="said of kernels"))
    monkeypatch.setattr(doctor.os, "sysconf", {"SC_PHYS_PAGES": 3 * 2**18, "SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setattr(selfcheck, "check", lambda: None)


def test_a_machine_is_its_versions_devices_memory_and_self_check(machine):
    assert list(doctor.machine()) == [
        ("versions", "python 3.11, bpevo not installed, jax 9.9, flax not installed, optax not installed", ""),
        ("packages", "flax, optax", "not installed: pip install . in a clone of bpevo"),
        ("device 0", "T, 1 MiB of 3 GiB in use, rules run said of kernels, their decisions taken said of graphs", ""),
        ("device 1", "U, 0 B of 1 GiB in use", ""),
        ("device 2", "cpu, uses the machine's memory", ""),
        ("memory", "3 GiB, 5 cores", ""),
        ("self-check", "compiled and eager gradients agree", ""),
    ]


def test_a_self_check_that_fails_is_a_fault_with_what_is_known_of_the_release(machine, monkeypatch):
    def check():
        raise selfcheck.SelfCheckError("why")

    monkeypatch.setattr(selfcheck, "check", check)
    assert list(doctor.machine())[-1] == ("self-check", "", "why")
    monkeypatch.setitem(selfcheck.BROKEN, "9.9", "is broken")
    assert list(doctor.machine())[-1] == ("self-check", "jax 9.9 is broken", "why")


def test_the_environment_is_what_is_not_heeded_and_what_changes_numbers(machine, monkeypatch):
    for name in [n for n in os.environ if n.startswith("JAX_")]:
        monkeypatch.delenv(name)
    numbers = "matmul precision high, XLA_FLAGS none"
    assert list(doctor.environment()) == [
        ("environment", "nothing that bpevo has to overrule", ""),
        ("numbers", numbers, ""),
    ]
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("JAX_DISABLE_JIT", "on")
    assert next(doctor.environment())[1] == (
        "JAX_ENABLE_X64=1 is not heeded: False holds, JAX_DISABLE_JIT=on is not heeded: False holds"
    )


@pytest.fixture
def free(monkeypatch):
    """A disk with just room enough; returns what sets how much."""

    def set_to(count: int) -> None:
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=count))

    set_to(2**30)
    return set_to


def cache_in(monkeypatch, folder: str | None) -> None:
    config = types.SimpleNamespace(jax_compilation_cache_dir=folder)
    monkeypatch.setattr(doctor, "jax", types.SimpleNamespace(config=config))


def test_folders_are_told_with_what_they_hold_and_what_is_free(tmp_path, monkeypatch, free):
    place, cache = tmp_path / "data", tmp_path / "a" / "b"
    place.mkdir()
    cache_in(monkeypatch, str(cache))
    assert list(doctor.folders(str(place))) == [
        ("compilation cache", f"{cache} (not there yet), 1 GiB free", ""),
        ("data", f"{place}, 1 GiB free; holds nothing yet", ""),
    ]
    for name in ("b", "a"):
        (place / name).mkdir()
    (place / "c").write_text("no set")
    free(2**30 - 1)
    low = "less than 1 GiB free"
    assert list(doctor.folders(str(place)))[1] == ("data", f"{place}, 1024 MiB free; holds a, b", low)
    cache_in(monkeypatch, None)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "later"))
    assert list(doctor.folders(None)) == [
        ("compilation cache", "none: no home directory is known; set XDG_CACHE_HOME to keep compiled programs", ""),
        ("data", f"{tmp_path / 'later'} (not there yet), 1024 MiB free; holds nothing yet", low),
    ]
    what, state, fault = list(doctor.folders(str(tmp_path / "missing")))[1]
    assert (what, state) == ("data", "unusable") and "there is no such folder" in fault


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch, free):
    (tmp_path / "file").write_text("")
    assert doctor._folder(tmp_path / "file" / "x") == (
        str(tmp_path / "file" / "x"),
        f"{tmp_path / 'file'} is no folder",
    )
    assert doctor._folder(None) == ("none", "")
    state, fault = f"{tmp_path}, 1 GiB free", f"{tmp_path} cannot be written"
    assert doctor._folder(tmp_path) == (state, "")
    with monkeypatch.context() as patch:
        patch.setattr(doctor.os, "access", lambda path, mode: mode != os.W_OK)
        assert doctor._folder(tmp_path) == (state, fault)
    monkeypatch.setattr(doctor.os, "statvfs", lambda path: types.SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID))
    assert doctor._folder(tmp_path) == (state, fault)
    monkeypatch.setattr(doctor.os, "statvfs", lambda path: types.SimpleNamespace(f_flag=os.ST_NOSUID))
    assert doctor._folder(tmp_path) == (state, "")


def stored(folder, settings: dict, versions: dict) -> None:
    """A run of four proposals, of which one has no training."""
    with RunDatabase.writing(folder) as database:
        database.check_settings({"max_parts": PARTS} | settings, versions, ())
        for i in range(4):
            database.add_proposal(Proposal(id=i, equation=parse("g").to_equation(PARTS), key=f"key {i}"))
        database.add_rows([outcome("g", stage=Stage.CONTROL, proposal=None), outcome("g"), outcome("h"), outcome("dh")])
        database.add_rows([outcome("fa", "diverged", proposal=2), outcome("fa", stage=Stage.TRIAL, proposal=1)])
        database.add_rows([outcome("g", stage=Stage.CONFIRMATION, proposal=1)])


def test_a_run_is_told_with_its_counts_and_what_wrote_it(tmp_path, free):
    now = provenance.versions()
    stored(tmp_path, {"numerics": NUMERICS, "evolution": {}, "semantics": SEMANTICS}, now)
    (tmp_path / "checkpoints").mkdir()
    for name, size in (("a", 1000), ("b", 2072)):
        (tmp_path / "checkpoints" / name).write_bytes(bytes(size))
    size = (tmp_path / "run.sqlite").stat().st_size
    owner = (tmp_path / "lock").read_text().strip()
    assert list(doctor.run(str(tmp_path))) == [
        ("workdir", f"{tmp_path}, 1 GiB free", ""),
        ("writer", f"none; the last was {owner}", ""),
        ("database", f"{size / 1024:.4g} KiB, integrity ok", ""),
        ("proposals", "4, 1 of them without a training", ""),
        ("trainings", "confirmation 1 done, control 1 done, search 1 diverged, search 3 done, trial 1 done", ""),
        ("last written by", "these versions and this kind of device", ""),
        ("numerics", f"{NUMERICS}, {NUMERICS} in this release", ""),
        ("selection", f"version {SEMANTICS}, {SEMANTICS} in this release", ""),
        ("checkpoints", "2, 3 KiB", ""),
    ]


def test_what_another_release_has_written_is_told(tmp_path, free):
    now = provenance.versions()
    stored(tmp_path / "other", {"numerics": NUMERICS + 1, "evolution": {}}, now | {"jax": "0.1"})
    found = findings(tmp_path / "other")
    assert found["last written by"] == (f"jax 0.1 then, {now['jax']} now", "") and "begun by" not in found
    for versions in (now, now):  # two sessions later it still says who began
        with RunDatabase.writing(tmp_path / "other") as database:
            database.check_settings(database.settings(), versions, ())
        again = findings(tmp_path / "other")
        assert again["begun by"] == (f"jax 0.1 then, {now['jax']} now", "")
        assert again["last written by"] == ("these versions and this kind of device", "")
    assert found["numerics"] == (
        f"{NUMERICS + 1}, {NUMERICS} in this release", "this release computes other numbers: use --fork_from"
    )  # fmt: skip
    assert found["selection"] == (
        f"version 1, {SEMANTICS} in this release", "this release selects otherwise: read it, or go on by --fork_from"
    )  # fmt: skip
    assert found["checkpoints"] == ("0, 0 B", "")
    stored(tmp_path / "newer", {"evolution": {}, "semantics": SEMANTICS + 1}, now)
    assert findings(tmp_path / "newer")["selection"][1].startswith("this release selects otherwise")
    stored(tmp_path / "evaluation", {}, now)
    (tmp_path / "evaluation" / "checkpoints").symlink_to(tmp_path / "other")
    found = findings(tmp_path / "evaluation")
    assert found["numerics"] == (f"None, {NUMERICS} in this release", "") and "selection" not in found
    assert found["checkpoints"] == ("0, 0 B", "")


def test_of_a_run_that_is_being_written_the_log_beside_the_database_is_told(tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings({"max_parts": PARTS}, {}, ())
        log = (tmp_path / "run.sqlite-wal").stat().st_size
        state, fault = findings(tmp_path)["database"]
        assert not fault and state.partition("; ")[2] == (
            f"{doctor._size(log)} more in run.sqlite-wal: copy the run with --copy_to=FOLDER, not this file alone"
        )
        assert findings(tmp_path)["trainings"][0] == "none"


def test_without_a_run_there_is_no_writer_and_no_more_to_say(tmp_path, free):
    missing = tmp_path / "missing"
    (first, writer, last) = doctor.run(str(missing))
    assert first == ("workdir", f"{missing} (not there yet), 1 GiB free", "") and writer == ("writer", "unknown", "")
    assert last[:2] == ("database", "unusable") and "there is no run in" in last[2]


@pytest.fixture
def examined(monkeypatch):
    """Examines with findings made up; returns the exit code and what is printed."""
    monkeypatch.setattr(doctor, "machine", lambda: [("a", "first", "")])
    monkeypatch.setattr(doctor, "environment", lambda: [])
    monkeypatch.setattr(doctor, "folders", lambda data_dir: [("data", str(data_dir), "")])
    monkeypatch.setattr(doctor, "run", lambda folder: [("run", folder, "bad\x1b" if "bad" in folder else "")])
    monkeypatch.setattr(clusters, "cluster", lambda address, interruption: [("cluster", address, "")])

    def examine(**given) -> tuple[int, str]:
        values = dict(workdir=None, data_dir=None, ray_address=None, copy_to=None) | given
        console = Console(file=io.StringIO(), width=20)
        code = doctor.examine(types.SimpleNamespace(**values), console, None)
        return code, console.file.getvalue()

    return examine


def test_findings_are_printed_one_a_line_and_faults_once_more_at_the_end(examined, tmp_path, monkeypatch):
    assert examined(ray_address="auto") == (
        0, f"{'':17}a  first\n{'':14}data  None\n{'':11}cluster  auto\n\nnothing is wrong\n"
    )  # fmt: skip
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.sqlite").touch()
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    code, output = examined(workdir="~", data_dir="x")  # an evaluation's scenarios
    assert code == 1 and output.splitlines()[1:] == [
        f"{'':14}data  x", f"{'':15}run  {tmp_path}/bad", f"{'':15}run  {tmp_path}/good", "", "wrong:", "run: bad\\x1b"
    ]  # fmt: skip
    assert f"run  {tmp_path}/good\n" in examined(workdir=str(tmp_path / "good"))[1]
    assert examined(workdir=str(tmp_path / "none"))[1].count("run  ") == 1  # to say that there is none


def test_copies_are_of_every_run_in_a_folder(examined, tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("", "b", "a"):
        stored(source / name, {"name": name}, {})
    code, output = examined(workdir=str(source), copy_to=str(target))
    assert (code, output) == (
        0,
        "".join(f"{source}{n}/run.sqlite -> {target}{n}/run.sqlite\n" for n in ("", "/a", "/b")),
    )
    for name in ("", "a", "b"):
        with RunDatabase.reading(target / name) as database:
            assert database.settings()["name"] == name and len(database.rows()) == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    assert examined(workdir="~/source", copy_to="~/third")[0] == 0 and (tmp_path / "third" / "run.sqlite").exists()
    with pytest.raises(RunError, match=f"^there is no run in {target}/none to copy$"):
        examined(workdir=f"{target}/none", copy_to=str(tmp_path / "fourth"))
    with pytest.raises(RunError, match="--copy_to=FOLDER needs --workdir=FOLDER"):
        examined(copy_to=str(target))


def test_the_doctor_takes_no_accelerator_where_it_looks_at_a_cluster(monkeypatch):
    (name, (define,), examine, elsewhere), named = program(monkeypatch, doctor)
    assert (name, define.__name__, examine.__name__, named) == ("bpevo.doctor", "define", "examine", {})
    assert [elsewhere(types.SimpleNamespace(ray_address=a)) for a in (None, "auto")] == [False, True]
