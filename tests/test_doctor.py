"""The self-check and the doctor."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest
from test_runs import HOLD, StandIn, plan, python, search

from bpevo import doctor
from bpevo.command import selfcheck
from bpevo.runs import RunError

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
