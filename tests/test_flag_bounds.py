"""The bounds of flags: what lies on one is taken, what lies beyond is refused with it."""

import numpy as np
import pytest
from absl import flags

from bpevo import data
from bpevo.command import definitions, plans
from bpevo.command.pools import PoolPlan

SMALL = (
    "--dataset=digits", "--model=mlp-8", "--train_examples=128", "--batch_size=32", "--epochs=4", "--slots=4", "--lag=2",
    "--elite_size=2", "--workdir=x",
)  # fmt: skip


def values(*arguments: str, kind: str = "search") -> flags.FlagValues:
    made = flags.FlagValues()
    for name in ("common", kind):
        getattr(definitions, f"define_{name}")(made)
    made(["x", *SMALL[: None if kind == "search" else 5], "--workdir=x", *arguments])
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        "--slots=4096 --seed=4294967295 --learning_rates=1000000,1e-300 --max_hours=99999 --train_examples=1197 --max_parts=8",
        "--slots=1 --seed=0 --max_hours=1e-9 --max_parts=1 --checkpoint_minutes=0 --weight_decay=0 --tournament=1 --lag=1",
        "--stop_epochs=1,3 --stop_quantile=0.001 --repeats=999 --top=1 --elite_probability=0 --elite_size=1",
        "--stop_quantile=0.999 --repeats=1 --elite_probability=1 --mutations=0,1 --halving_eta=2 --weight_decay=0.999",
        "--epochs=536870911 --train_examples=128",  # 4 steps each: 3 below 2^31 - 1
        "--model=mlp-8;mlp-4 --stop_epochs=7 --train_examples=32",
        "--max_evaluations=3 --learning_rates=0.1,0.2 --controller=random",
        "--max_evaluations=2 --controller=random --model=mlp-8;mlp-4",
    ],
)
def test_values_on_their_bounds_are_taken(arguments):
    assert plans.search_command(values(*arguments.split()))


STOPS = "must rise, from 1 to below --epochs=4"
RATES = "must be different positive numbers up to 1,000,000"
HOURS = "must be above 0 and below 100,000"
COSTS = "is less than one equation costs: a trial for each of"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--slots=4097", "--slots=4097 must be at most 4096"),
        ("--slots=0", "--slots=0 must be at least 1"),
        ("--seed=4294967296", "--seed=4294967296 must be below 2^32"),
        ("--seed=-1", "--seed=-1 must be at least 0"),
        ("--learning_rates=1000001", f"--learning_rates=1000001 {RATES}"),
        ("--learning_rates=0", f"--learning_rates=0 {RATES}"),
        ("--learning_rates=0.1,x", "--learning_rates=0.1,x must be a list of numbers, such as 0.1,0.05"),
        ("--stop_epochs=x", "--stop_epochs=x must be a list of numbers, such as 5,10"),
        ("--max_hours=100000", f"--max_hours=100000 {HOURS}"),
        ("--max_hours=0", f"--max_hours=0 {HOURS}"),
        ("--train_examples=1198", "train_examples=1198: digits has 1 to 1,197 training examples."),
        ("--max_parts=9", "--max_parts=9 must be at most 8"),
        ("--max_parts=0", "--max_parts=0 must be at least 1"),
        ("--checkpoint_minutes=-1", "--checkpoint_minutes=-1.0 must be at least 0"),
        ("--checkpoint_minutes=inf", "--checkpoint_minutes=inf must be at least 0"),
        ("--tournament=0", "--tournament=0 must be at least 1"),
        ("--lag=0", "--lag=0 must be at least 1"),
        ("--top=0", "--top=0 must be at least 1"),
        ("--elite_size=0", "--elite_size=0 must be at least 1"),
        ("--repeats=0", "--repeats=0 must be at least 1"),
        ("--repeats=1000", "--repeats=1000 must be at most 999"),
        ("--stop_quantile=0", "--stop_quantile=0.0 must lie between 0 and 1"),
        ("--stop_quantile=1", "--stop_quantile=1.0 must lie between 0 and 1"),
        ("--stop_epochs=4", f"--stop_epochs=4 {STOPS}"),
        ("--stop_epochs=0", f"--stop_epochs=0 {STOPS}"),
        ("--stop_epochs=2,1", f"--stop_epochs=2,1 {STOPS}"),
        ("--stop_epochs=1,1", f"--stop_epochs=1,1 {STOPS}"),
        ("--stop_epochs=8 --model=mlp-8;mlp-4", f"--stop_epochs=8 {STOPS} times 2 networks"),
        ("--halving_eta=1", "--halving_eta=1 must be at least 2"),
        ("--halving_eta=2 --stop_epochs=1", "--halving_eta and --stop_epochs contradict each other: give one of them"),
        ("--elite_probability=1.5", "elite_probability must lie in [0, 1], not 1.5"),
        ("--epochs=536870912", "--epochs=536870912 is more than 2,147,483,647 steps"),
        ("--train_examples=31", "batch_size=32 is larger than the training set of 31 examples"),
        (
            "--max_evaluations=2 --learning_rates=0.1,0.2 --controller=random",
            f"--max_evaluations=2 {COSTS} 2 learning rates, and a training",
        ),
        (
            "--max_evaluations=1 --controller=random --model=mlp-8;mlp-4",
            f"--max_evaluations=1 {COSTS} 1 learning rates, and a training, on each of 2 networks",
        ),
        ("--model=mlp-8;", "--model=mlp-8; must be a network, or different ones separated by ';'"),
        ("--workers=2", "--workers=2 is of a pool: give --pool=ray too"),
        ("--worker_cpus=0", "--worker_cpus=0 must be at least 1"),
        ("--ray_address=auto", "--ray_address=auto is of a pool: give --pool=ray too"),
    ],
)
def test_values_beyond_their_bounds_are_refused_with_them(arguments, message):
    with pytest.raises((plans.UsageError, data.DataError)) as caught:
        plans.search_command(values(*arguments.split()))
    assert str(caught.value) == message


def test_halving_stops_where_less_than_an_epoch_is_left_and_counts_over_the_networks():
    def rungs(*arguments: str) -> list[tuple[int, float]]:
        return [(r.epoch, r.quantile) for r in plans.search_plan(values(*arguments)).evolution.rungs]

    assert rungs("--halving_eta=2", "--epochs=8") == [(1, 0.5), (2, 0.5), (4, 0.5)]
    assert rungs("--halving_eta=4", "--epochs=4") == [(1, 0.75)] and rungs("--halving_eta=4", "--epochs=3") == []
    assert rungs("--halving_eta=2", "--epochs=2", "--model=mlp-8;mlp-4") == [(1, 0.5), (2, 0.5)]
    assert rungs("--stop_epochs=1,3", "--stop_quantile=0.25") == [(1, 0.25), (3, 0.25)]


def test_a_pools_flags_and_what_the_lag_follows_from():
    def lag(*arguments: str, slots: bool = True) -> int:
        given = values("--epochs=8", "--max_evaluations=100000", *arguments)
        given.lag, given.slots = None, given.slots if slots else None
        return plans.search_plan(given).lag

    pooled = values("--pool=ray", "--workers=1", "--worker_cpus=1", "--ray_address=h:1")
    assert plans.pool_plan(pooled) == PoolPlan(address="h:1", workers=1, cpus=1)
    assert plans.pool_plan(values()) is None
    # Four times the slots of all workers and networks.
    assert (lag("--slots=8"), lag("--slots=8", "--model=mlp-8;mlp-4"), lag("--slots=1")) == (32, 64, 16)
    assert lag("--slots=3", "--workers=5", "--pool=ray") == 60
    for given, slots in ((["--slots=3"], True), (["--workers=3"], False)):
        with pytest.raises(plans.UsageError, match="^--pool=ray needs --workers and --slots, or --lag: "):
            lag("--pool=ray", *given, slots=slots)


def test_a_third_of_the_validation_examples_is_held_out_and_three_are_needed(tmp_path):
    def command(count: int) -> plans.SearchCommand:
        arrays = {"x_train": np.zeros((count, 4, 4), np.uint8), "y_train": np.arange(count) % 2}
        path = tmp_path / f"{count}.npz"
        np.savez(path, x_test=np.zeros((2, 4, 4), np.uint8), y_test=np.arange(2), **arrays)
        return plans.search_command(values(f"--dataset={path}", "--train_examples=10", "--batch_size=2"))

    assert [command(count).training.held_out for count in (18, 30, 31, 36)] == [1, 1, 2, 2]  # of a sixth, rounded up
    with pytest.raises(plans.UsageError, match="leaves 2 validation examples: a search needs at least 3, for a third"):
        command(12)
    assert plans.search_command(values()).training.held_out == 80


def test_the_bounds_of_an_evaluation():
    def command(*arguments: str) -> plans.EvaluationCommand:
        return plans.evaluation_command(values("--rules=g", *arguments, kind="evaluation"))

    for name, least in (
        ("top", 1), ("finalists", 1), ("tuning_repeats", 1), ("selection_repeats", 1), ("eval_examples", 1), ("repeats", 0),
        ("ablate", 0),
    ):  # fmt: skip
        with pytest.raises(plans.UsageError, match=f"^--{name}={least - 1} must be at least {least}$"):
            command(f"--{name}={least - 1}")
    for scenario in ("a" * 65, "", "a b", "_a", "a/b"):
        with pytest.raises(plans.UsageError, match="must be a name of letters, digits, _ and -$"):
            command(f"--scenario={scenario}")
    for scenario in ("report", "checkpoints"):
        with pytest.raises(plans.UsageError, match=f"^--scenario={scenario} is the name of a folder that runs use"):
            command(f"--scenario={scenario}")
    made = command(
        "--top=1", "--finalists=1", "--tuning_repeats=1", "--selection_repeats=1", "--eval_examples=1", "--repeats=0",
        "--ablate=0", f"--scenario={'a' * 64}",
    )  # fmt: skip
    assert (
        len(made.training.split.eval_labels) == 1 == len(made.test_split().eval_labels) and made.folder.name == "a" * 64
    )
