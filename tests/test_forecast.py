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
    assert "(trials of 1 epochs at 3 learning rates), 514 slot-epochs of 100 steps" in said[0]


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
    assert made.measured(2.0, done=50).startswith("measured: 2 s an epoch of all slots, at most 50 s of training left")
    assert made.measured(60.0, done=50).startswith(
        "measured: 60 s an epoch of all slots, at most 25 min of training left"
    )


def estimated(monkeypatch, plan, *trainers) -> list[str]:
    """The lines at a start, on devices that move 30 MiB a second."""
    monkeypatch.setattr(forecast, "_bandwidth", lambda device: float(30 * 2**20))
    said = []
    Forecast(plan, trainers, said.append).start()
    return said


def test_the_lines_at_the_start_tell_every_figure(monkeypatch):
    # 514 slot-epochs of 100 steps that move 30 MiB: 51,400 seconds.
    assert estimated(monkeypatch, plan(50, rates=(0.1, 0.2, 0.3), top=4, repeats=5), trainer(capacity=36)) == [
        "1 x cpu, 36 slots; 12 equations: 12 random, 0 bred (N 10, lag 12); about 85 trainings with controls and fresh seeds "
        "(trials of 1 epochs at 3 learning rates), 514 slot-epochs of 100 steps of 64 examples",
        "about 14 h beside compilation and 32 MiB of device memory, by a rough estimate that is refined after the first epochs",
    ]
    # A tenth of the equations and one more: 19 and a confirmation, 2 controls, 5 rules on 2 fresh seeds.
    given = plan(20, lag=4, initial=[parse(text).to_equation(3) for text in ("g", "fa")])
    assert estimated(monkeypatch, given, trainer(steps=1_000, epochs=50))[0] == (
        "1 x cpu, 8 slots; 19 equations: 2 initial, 17 bred (N 10, lag 4); about 32 trainings with controls and fresh seeds "
        "(1 learning rate), 1,600 slot-epochs of 1,000 steps of 64 examples"
    )
    random = dataclasses.replace(plan(20_000, lag=1_000, elite_size=1_000), controller="random")
    said = estimated(monkeypatch, random, trainer())[0]
    assert "; 18,182 equations: 18,182 random, 0 bred (N 1,000, lag 1,000); about 20,012 trainings with " in said


def test_slots_that_will_stand_idle_are_told(monkeypatch):
    # 12 equations at 3 learning rates are at most 36 trainings at once.
    few = plan(50, rates=(0.1, 0.2, 0.3))
    for capacity, share in ((36, None), (40, "10%"), (144, "75%")):
        said = estimated(monkeypatch, few, trainer(capacity=capacity))
        line = f"{share} of the slots will stand idle: with lag 12 no more equations train at once"
        assert said[1:-1] == ([line] if share else [])


def test_an_epochs_estimate_is_the_networks_mean_and_shared_by_the_devices(monkeypatch):
    monkeypatch.setattr(forecast, "_bandwidth", lambda device: float(30 * 2**20))
    one, other = trainer(), trainer(steps=20, needed=(2**20, 15 * 2**19))
    for slots, seconds in (([one], 100.0), ([one, other], 75.0)):
        assert Forecast(plan(20), slots, print)._epoch_estimate() == seconds
    one.devices = jax.local_devices()[:1] * 4
    assert Forecast(plan(20), [one], print)._epoch_estimate() == 25.0


def test_what_was_measured_is_said_once_after_the_second_epoch(monkeypatch):
    times = iter((1000.0, 1004.0))
    monkeypatch.setattr(forecast, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    said, search = [], types.SimpleNamespace(rows=types.SimpleNamespace(slot_epochs=50))
    made = Forecast(plan(20, top=1, repeats=1), [trainer()], said.append)
    made(search, [])
    assert not said
    made(search, []), made(search, []), made(search, [])
    assert said == ["measured: 4 s an epoch of all slots, at most 100 s of training left"]  # (250 - 50) / 8 * 4
    assert made.measured(4.0, done=251) == "measured: 4 s an epoch of all slots, at most 0 s of training left"
    assert made.measured(0.0125, done=250) == "measured: 0.013 s an epoch of all slots, at most 0 s of training left"


def test_a_device_that_tells_its_memory_is_asked():
    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 3 * 2**30}

    slots = trainer()
    slots.devices = [Device(), Device()]
    assert Forecast(plan(20), [slots], print).measured(1.0, 0).endswith(", 6.0 GiB of device memory in use")


def test_the_bandwidth_of_a_device_is_measured():
    assert 10**7 < forecast._bandwidth(jax.local_devices()[0], 2**18) < 10**13


def test_a_bandwidth_is_that_of_the_quickest_of_five_sums(monkeypatch):
    ends = (3.0, 2.0, 0.5, 4.0, 5.0)
    times = iter([t for end in ends for t in (100.0, 100.0 + end)])
    monkeypatch.setattr(forecast, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    assert forecast._bandwidth(jax.local_devices()[0], 2**10) == 2 * 4 * 2**10 / 0.5  # reads and writes float32
    assert list(times) == []


@pytest.mark.parametrize(
    ("count", "text"), [(2**20, "1 MiB"), (2**30 - 1, "1,024 MiB"), (2**30, "1.0 GiB"), (1500 * 2**30, "1,500.0 GiB")]
)
def test_sizes_are_read_at_a_glance(count, text):
    assert forecast._size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(119.4, "119 s"), (120, "2 min"), (150, "2 min"), (151, "3 min"), (7199, "120 min"), (7200, "2 h")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert forecast._duration(seconds) == text


def test_memory_that_a_device_does_not_tell_is_not_said():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1}

    slots = trainer()
    slots.devices = [Device()]
    assert "memory" not in Forecast(plan(20), [slots], print).measured(1.0, 0)
