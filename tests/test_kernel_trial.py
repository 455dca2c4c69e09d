"""Whether a device's kernel is used: it is tried once, and a word says what came of it."""

import contextlib

import jax
import pytest

from bpevo import doctor
from bpevo.rules import Kernel
from bpevo.rules.loops import Loop
from bpevo.training import kernel as trial


class Gpu:
    """A device that says it is a GPU."""

    platform, device_kind, id = "gpu", "stand-in", 0

    def memory_stats(self):
        return {}


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """As if no device was tried before; the trial's programs run on the CPU."""
    monkeypatch.setattr(trial.jax, "default_device", lambda device: contextlib.nullcontext())
    trial._tried.cache_clear()
    yield
    trial._tried.cache_clear()


def outcome(monkeypatch, result):
    seen = []

    def agrees(kernel, options):
        seen.append(kernel)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(trial, "agrees", agrees)
    return seen


def test_a_kernel_that_agrees_is_used_and_tried_once(monkeypatch):
    seen, device = outcome(monkeypatch, True), Gpu()
    assert trial.kernel_of(device) == trial.kernel_of(device) == (Kernel("gpu"), "in a kernel")
    assert seen == [Kernel("gpu", floats=trial.FLOATS)]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (False, "interpreted: the kernel computed other numbers"),
        (RuntimeError("no such instruction\nat 7"), "interpreted: no such instruction"),
        (RuntimeError(), "interpreted: RuntimeError"),
    ],
)
def test_a_kernel_that_fails_leaves_the_interpreter_and_a_reason(monkeypatch, result, said):
    outcome(monkeypatch, result)
    assert trial.kernel_of(Gpu()) == (None, said)


def test_a_cpu_has_a_loop_and_nothing_to_tell(monkeypatch):
    seen = outcome(monkeypatch, True)
    found = trial.kernel_of(jax.devices("cpu")[0])
    assert isinstance(found.kernel, Loop) and found.said == "" and not seen


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_trial_needs_more_than_one_tile(platform):
    assert Kernel(platform, floats=trial.FLOATS).layout(*trial.SHAPE).tiles == 3


def test_the_doctor_says_how_rules_run(monkeypatch):
    outcome(monkeypatch, False)
    monkeypatch.setattr(doctor.jax, "local_devices", lambda: [Gpu()])
    monkeypatch.setattr(doctor.provenance, "versions", lambda: {"jax": "0.12.0", "cores": "2"})
    found = {what: state for what, state, _ in doctor.machine()}
    assert "rules run interpreted: the kernel computed other numbers" in found["device 0"]


def test_the_trial_agrees_with_what_it_should_and_notices_what_it_should_not(monkeypatch):
    assert trial.agrees(Kernel("tpu", interpret=True, floats=trial.FLOATS))
    right = trial.TiledRule.signal

    def wrong(self, unit, state):
        signal, state = right(self, unit, state)
        return signal * 1.01, state

    monkeypatch.setattr(trial.TiledRule, "signal", wrong)
    assert not trial.agrees(Kernel("tpu", interpret=True, floats=trial.FLOATS))
