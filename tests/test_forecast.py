"""What the start of a search says of its time and memory, on figures made up."""

import dataclasses
import types

import jax
import pytest
from test_runs import plan

from bpevo.evolution import Networks
from bpevo.report import forecast
from bpevo.report.forecast import Forecast
from bpevo.rules import parse


def trainer(capacity=8, epochs=10, steps=100, needed=(2**20, 3 * 2**20), estimated=2**25):
    task = types.SimpleNamespace(settings=types.SimpleNamespace(epochs=epochs, batch_size=64), steps_per_epoch=steps)
    return types.SimpleNamespace(
        capacity=capacity, task=task, devices=jax.local_devices()[:1], bytes_needed=needed, bytes_estimated=estimated
    )


def test_trainings_count_trials_confirmations_controls_and_fresh_seeds():
    made = Forecast(plan(50, rates=(0.1, 0.2, 0.3), top=4, repeats=5), [trainer()], print)
    # 10 equations cost 3 trials and a training each, and a confirmation; 9 trainings more afford 2 equations.
    assert made.trainings == 12 * 4 + 1 + 2 * 3 + (4 + 2) * 5
    # Of 10 epochs a trial takes 1, its training the 9 that are left.
    assert made.slot_epochs == 12 * (3 + 9) + 10 * (1 + 2 * 3 + (4 + 2) * 5)
    said = []
    made._say = said.append
    made.start()
    assert (
        "12 equations" in said[0]
        and "(trials of 1 epochs at 3 learning rates), 514 slot-epochs of 100 steps" in said[0]
    )


def test_over_several_networks_everything_counts_on_each(monkeypatch):
    monkeypatch.setattr(forecast, "_bandwidth", lambda device: float(30 * 2**20))
    networks = Networks(names=("a", "b"), epochs=10)
    both = dataclasses.replace(plan(50, rates=(0.1, 0.2, 0.3), top=4, repeats=5), networks=networks)
    said = []
    made = Forecast(both, [trainer(), trainer()], said.append)
    made.start()
    # An equation costs 8 trainings, so 50 afford 6 and no confirmation.
    assert made.trainings == 6 * 8 + 2 * (2 * 3 + (4 + 2) * 5)
    assert made.slot_epochs == 2 * (6 * (3 + 9) + 10 * (2 * 3 + (4 + 2) * 5))
    assert "16 slots over 2 networks, fitness over the worst; 6 equations" in said[0] and "64 MiB" in said[-1]


def test_the_first_estimate_is_memory_moved_over_bandwidth(monkeypatch):
    monkeypatch.setattr(forecast, "_bandwidth", lambda device: float(30 * 2**20))
    said = []
    Forecast(plan(20, top=1, repeats=1, lag=16), [trainer()], said.append).start()
    # 24 trainings, 10 epochs, 100 steps that move 10 times 3 MiB at 30 MiB a second: 24,000 seconds.
    assert "about 7 h beside compilation and 32 MiB of device memory" in said[-1]
    # 19 of 20 trainings are equations, one of them a confirmation; 2 controls, 3 rows on a fresh seed.
    assert "19 equations: 16 random, 3 bred (N 10, lag 16); about 25 trainings" in said[0]


def test_the_measured_time_left_counts_epochs_of_all_slots():
    made = Forecast(plan(20, top=1, repeats=1), [trainer()], print)
    # 19 equations, a confirmation, 2 controls, 3 on a fresh seed: 250 slot-epochs; (250 - 50) / 8 * 2 s.
    assert made.measured(2.0, done=50).startswith("measured: 2 s an epoch of all slots, at most 50 s left")
    assert made.measured(60.0, done=50).startswith("measured: 60 s an epoch of all slots, at most 25 min left")


def test_a_device_that_tells_its_memory_is_asked():
    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 3 * 2**30}

    slots = trainer()
    slots.devices = [Device(), Device()]
    assert Forecast(plan(20), [slots], print).measured(1.0, 0).endswith(", 6.0 GiB of device memory in use")


def test_the_bandwidth_of_a_device_is_measured():
    assert 10**7 < forecast._bandwidth(jax.local_devices()[0], 2**18) < 10**13


@pytest.mark.parametrize(("seconds", "text"), [(119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")])
def test_durations_are_read_at_a_glance(seconds, text):
    assert forecast._duration(seconds) == text


def test_what_is_said_at_the_start_tells_random_initial_and_idle(monkeypatch):
    monkeypatch.setattr(forecast, "_bandwidth", lambda device: float(30 * 2**20))
    said = []
    alone = plan(20, top=1, repeats=1, lag=16)
    Forecast(dataclasses.replace(alone, controller="random"), [trainer(capacity=64)], said.append).start()
    assert said[0] == (
        f"1 x {jax.local_devices()[0].device_kind}, 64 slots; 19 equations: 19 random, 0 bred (N 10, lag 16); about 25 trainings "
        "with controls and fresh seeds (1 learning rate), 250 slot-epochs of 100 steps of 64 examples"
    )
    assert said[1] == "75% of the slots will stand idle: with lag 16 no more equations train at once"
    del said[:]
    initial = [parse(text).to_equation(3) for text in ("fa", "dfa")]
    Forecast(plan(20, lag=16, initial=initial), [trainer(capacity=16)], said.append).start()
    assert "19 equations: 2 initial, 17 bred" in said[0] and len(said) == 2  # as many slots as the lag: none is idle


def test_the_estimate_is_the_mean_over_networks_and_shared_by_the_devices(monkeypatch):
    """Steps move 30 and 90 MiB, 100 and 200 of them an epoch: 3,000 and 18,000 MiB, at 30 MiB a second on each of two."""
    monkeypatch.setattr(forecast, "_bandwidth", lambda device: float(30 * 2**20))
    small, large = trainer(), trainer(steps=200, needed=(2**20, 9 * 2**20), estimated=2**30)
    small.devices = large.devices = jax.local_devices()[:1] * 2
    made = Forecast(plan(20), [small, large], print)
    assert made._epoch_estimate() == (3000 + 18000) / 2 / 30 / 2


def test_figures_are_measured_on_the_second_epoch_and_said_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(forecast, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    said = []
    made = Forecast(plan(20, top=1, repeats=1), [trainer()], said.append)
    search = types.SimpleNamespace(rows=types.SimpleNamespace(slot_epochs=50))
    for _ in range(4):
        now[0] += 2.0
        made(search, [])
    assert said == ["measured: 2 s an epoch of all slots, at most 50 s left"]  # (250 - 50) / 8 * 2 s
    assert (
        made.measured(0.25, 251) == "measured: 0.25 s an epoch of all slots, at most 0 s left"
    )  # more than was planned


def test_the_bandwidth_is_that_of_the_fastest_of_some_runs(monkeypatch):
    """A run takes 5, 3, 2, 4 and 6 seconds; 1,024 numbers of 4 bytes are read and written."""
    times = iter([0, 5, 10, 13, 20, 22, 30, 34, 40, 46])
    monkeypatch.setattr(forecast, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    assert forecast._bandwidth(jax.local_devices()[0], 1024) == 2 * 4 * 1024 / 2


def test_memory_that_a_device_does_not_tell_is_not_said():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1}

    slots = trainer()
    slots.devices = [Device()]
    assert "memory" not in Forecast(plan(20), [slots], print).measured(1.0, 0)


@pytest.mark.parametrize(
    ("count", "text"), [(2**30 - 1, "1,024 MiB"), (2**30, "1.0 GiB"), (1.5 * 2**40, "1,536.0 GiB")]
)
def test_sizes_are_read_at_a_glance(count, text):
    assert forecast._size(count) == text
