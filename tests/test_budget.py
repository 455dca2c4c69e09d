"""What a budget affords, against whole searches and brute force; the CPUs that a process may use."""

import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
from test_evolution import equation
from test_runs import StandIn, plan, search

from bpevo.evolution import Rung, budget
from bpevo.training import cpus

SMALL = st.integers(1, 60)


@hypothesis.given(st.integers(1, 10**6))
def test_the_default_elite_is_a_tenth_of_the_equations_from_10_to_1000(equations):
    size = budget.default_elite_size(equations)
    assert 10 <= size <= 1000
    assert (
        size == equations // 10 or (size, equations < 110) == (10, True) or (size, equations > 10_000) == (1000, True)
    )


def test_equations_cost_a_trial_a_rate_and_a_training_and_one_in_ten_a_confirmation():
    assert [budget.equations(n, 4) for n in (4, 5, 9, 50, 54, 56, 25_500)] == [0, 1, 1, 10, 10, 11, 5000]
    assert [budget.equations(n, 1) for n in (1, 10, 11, 12)] == [1, 10, 10, 11]
    assert (budget.charge(1), budget.charge(4)) == (1, 5)
    assert (budget.epochs_of(1, 20, 5), budget.epochs_of(4, 20, 5), budget.epochs_of(2, 1, 1)) == (20, 35, 3)


def test_the_figures_of_a_budget_by_hand_also_over_several_networks():
    assert (budget.charge(2), budget.charge(1, 3), budget.charge(4, 3)) == (3, 3, 15)
    assert [budget.equations(n, 1, 3) for n in (33, 62, 66, 68, 69)] == [10, 19, 20, 20, 21]  # ten of 3, and 3 confirm
    assert budget.epochs_of(1, 3, 5) == 3  # one rate has no trials
    assert [budget.default_elite_size(n) for n in (1, 109, 110, 10_000, 10_020)] == [10, 10, 11, 1000, 1000]
    assert (
        budget.bred(5, elite_size=10, initial=0, lag=3) == 0 and budget.bred(12, elite_size=10, initial=4, lag=30) == 8
    )
    assert budget.least_budget(4, elite_size=20, initial=0, lag=16, networks=2) == 21 * 10 + 2 * 2
    assert budget.least_budget(1, elite_size=5, initial=0, lag=30) == 31 + 3


@pytest.mark.parametrize(
    "evaluations, elite_size, lag, initial, rates",
    [
        (40, 10, 4, (), 1),
        (40, 4, 12, (), 1),
        (40, 10, 12, ("g", "fa"), 1),
        (40, 10, 4, (), 2),
        (12, 12, 4, (), 1),
        (13, 12, 4, (), 1),
        (13, 4, 13, (), 1),
        (14, 4, 13, (), 1),
    ],
)
def test_a_search_breeds_as_many_as_are_foretold(tmp_path, evaluations, elite_size, lag, initial, rates):
    rules = tuple(equation(text, 2) for text in initial)
    learning_rates = (0.1, 0.2)[:rates]
    made = search(
        tmp_path,
        plan(evaluations, rates=learning_rates, lag=lag, initial=rules, elite_size=elite_size, seed=1),
        StandIn(4),
    )
    count = budget.equations(evaluations, rates)
    foretold = budget.bred(count, elite_size=elite_size, initial=len(initial), lag=lag)
    spared = lag // budget.CONFIRM_EVERY + 1  # as long as there is nothing to confirm
    assert 0 <= sum(p.confirms is None for p in made.proposals) - count <= spared
    assert 0 <= sum(bool(p.changes) for p in made.proposals) - foretold <= spared
    least = budget.least_budget(rates, elite_size=elite_size, initial=len(initial), lag=lag)
    assert (evaluations >= least) == (foretold > 0)


@hypothesis.given(st.integers(1, 300), SMALL, st.integers(0, 20))
def test_the_largest_lag_is_a_quarter_of_what_is_bred_with_it(equations, elite_size, initial):
    def fits(lag):
        return 4 * lag <= budget.bred(equations, elite_size=elite_size, initial=initial, lag=lag)

    expected = max((lag for lag in range(1, equations + 1) if fits(lag)), default=1)
    assert budget.largest_lag(equations, elite_size=elite_size, initial=initial) == expected


@hypothesis.given(SMALL, SMALL, st.integers(0, 20), st.integers(1, 4))
def test_the_least_budget_breeds_one_equation_and_one_training_less_none(elite_size, lag, initial, rates):
    least = budget.least_budget(rates, elite_size=elite_size, initial=initial, lag=lag)

    def bred(evaluations):
        return budget.bred(budget.equations(evaluations, rates), elite_size=elite_size, initial=initial, lag=lag)

    assert (bred(least), bred(least - 1)) == (1, 0)


def test_a_short_lag_leaves_the_foretold_share_of_slots_idle(tmp_path):
    assert (
        budget.idle_share(16, 1, 4) == 0.75 and budget.idle_share(16, 2, 4) == 0.5 and budget.idle_share(4, 1, 4) == 0
    )
    trainer = StandIn(16)
    search(tmp_path, plan(40, lag=4, top=1, repeats=1), trainer)
    assert trainer.most == 4 + 4  # and the two controls, at a higher and a lower rate, which no lag holds back


def test_the_lag_keeps_slots_busy_while_one_equation_trains_to_its_end():
    """Eight slots, 20 epochs: ten times the first rung's two; without rungs, or with a late one, four times; at least 16."""
    early, late = (Rung(2, 0.5), Rung(4, 0.5)), (Rung(10, 0.5),)
    assert [budget.busy_lag(8, 1, 20, rungs) for rungs in (early, late, ())] == [80, 32, 32]
    assert [budget.busy_lag(8, rates, 20, early) for rates in (3, 8)] == [27, 16]
    assert budget.busy_lag(8, 1, 21, early) == 8 * 11


# CPUs.


def test_taskset_leaves_fewer_cpus():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from bpevo.training.cpus import usable_cpus; print(usable_cpus())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight CPUs, and control groups of one's own: usable(own, {file: text})."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def usable(own: str, files: dict[str, str]) -> int:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cpus.usable_cpus(tmp_path / "cgroup", tmp_path / "own")

    return usable


@pytest.mark.parametrize(
    "own, files, expected",
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/docker/abc\n", {"cpu.max": "400000 100000\n"}, 4),  # in a container
        ("0::/\n", {"cpu.max": "nonsense"}, 8),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 8),
        ("0::/\n", {"cpu.max": "0 100000\n"}, 1),
        ("0::/\n", {"../cpu.max": "100000 100000\n"}, 8),  # above where the groups are mounted
        ("0::/a:b\n", {"a:b/cpu.max": "200000 100000\n"}, 2),
        ("5:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "0", "cpu/x/cpu.cfs_period_us": "100000"}, 1),
        ("5:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "0"}, 8),
        ("5:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "nonsense", "cpu/x/cpu.cfs_period_us": "100000"}, 8),
        ("5:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 8),
        ("5:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "150000", "cpu/x/cpu.cfs_period_us": "50000"}, 3),
        ("4:memory:/x\n3:cpuset:/\n5:cpu:/y/z\n", {"cpu/y/cpu.cfs_quota_us": "200000", "cpu/y/cpu.cfs_period_us": "100000",
                                         "memory/x/cpu.cfs_quota_us": "1", "memory/x/cpu.cfs_period_us": "100000"}, 2),
        ("", {}, 8),
    ],
)  # fmt: skip
def test_quotas_of_control_groups_of_both_versions_and_of_those_above_are_obeyed(machine, own, files, expected):
    assert machine(own, files) == expected


def test_without_control_groups_the_affinity_counts(machine, tmp_path):
    assert cpus.usable_cpus(tmp_path / "nowhere", tmp_path / "nothing") == 8


@pytest.mark.parametrize("counted, expected", [(6, 6), (None, 1)])
def test_without_affinity_masks_all_cpus_count(monkeypatch, tmp_path, counted, expected):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert cpus.usable_cpus(tmp_path / "nowhere", tmp_path / "nothing") == expected
