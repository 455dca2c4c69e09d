"""The command `python -m bpevo.launch`: flags, a small search, continuing it, refusing it, interrupting it."""

import copy
import importlib.util
import io
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from rich.console import Console

from bpevo import data, launch
from bpevo.command import definitions, main, plans
from bpevo.rules import NAMED, TABLE_1
from bpevo.runs import RunDatabase
from bpevo.workers import Recipe

REPOSITORY = pathlib.Path(__file__).parents[1]
SMALL = (
    "--dataset=digits", "--model=mlp-8-8", "--train_examples=128", "--batch_size=32", "--epochs=2", "--slots=4",
    "--top=1", "--repeats=2", "--lag=4", "--elite_size=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def start():
    """Starts the command."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_"))}
    environment |= {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "160",
    }
    environment |= {"PYTHONUNBUFFERED": "1"}
    started = []

    def start(*arguments) -> subprocess.Popen:
        command = [sys.executable, "-m", "bpevo.launch", *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def finish(start):
    def finish(*arguments) -> tuple[int, str, str]:
        process = start(*arguments)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors

    return finish


def program(monkeypatch, module) -> tuple[tuple, dict]:
    """What a command's module, as the main program, hands to what all commands share."""
    handed = []
    monkeypatch.setattr(main, "start", lambda *given, **named: handed.append((given, named)))
    runpy.run_path(module.__file__, run_name="__main__")
    (call,) = handed
    return call


def counts(workdir) -> dict[str, int]:
    with RunDatabase.reading(workdir) as database:
        stages = [e.stage for e in database.rows()]
    return {stage: stages.count(stage) for stage in sorted(set(stages))}


def has_leaderboard(output: str) -> bool:
    return "mlp-8-8 on digits" in output and "backprop: g " in output and "zero_signal: g - g " in output


def test_a_search_ends_with_a_leaderboard_continues_and_refuses_other_settings(finish, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    code, output, errors = finish(workdir, *SMALL, "--max_evaluations=6")
    assert code == 0 and has_leaderboard(output), errors
    first = counts(tmp_path / "run")
    assert first["control"] >= 2 and first["search"] == 6 and first["selection"] >= 4
    with RunDatabase.reading(tmp_path / "run") as database:
        before = database.rows()
        assert database.settings()["model"] == "mlp-8-8" and database.versions()["jax"]

    code, output, errors = finish(workdir, *SMALL, "--max_evaluations=6")
    assert code == 0 and has_leaderboard(output), errors
    with RunDatabase.reading(tmp_path / "run") as database:
        assert database.rows() == before

    code, output, errors = finish(workdir, *SMALL, "--max_evaluations=9")
    assert code == 0 and counts(tmp_path / "run")["search"] == 9, errors
    with RunDatabase.reading(tmp_path / "run") as database:
        assert database.rows()[: len(before)] == before

    code, output, errors = finish(workdir, *SMALL, "--max_evaluations=9", "--epochs=3")
    assert code == 2 and "epochs: 2 in the run, 3 now" in errors and "Traceback" not in errors
    assert "compiling" not in output and counts(tmp_path / "run")["search"] == 9


def test_an_interrupt_keeps_what_was_trained_and_shows_the_leaderboard(start, tmp_path):
    process = start(f"--workdir={tmp_path}", *SMALL, "--max_evaluations=100000", "--equivalence=false")
    for line in process.stdout:
        if re.match(r"stage search, evaluations [1-9]", line):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in output and has_leaderboard(output), errors
    assert "Traceback" not in errors and counts(tmp_path)["search"] >= 1


def test_help_lists_the_flags(finish):
    _, output, _ = finish("--help")
    assert "--max_evaluations" in output and "--learning_rates" in output and "continues" in output


def test_bad_flags_end_with_one_line_and_an_exit_code(finish, tmp_path):
    code, output, errors = finish(f"--workdir={tmp_path}", *SMALL, "--operands=gg")
    assert code == 2 and errors.strip() == "bpevo.launch: there is no operand 'gg'; the nearest is 'g'" and not output
    for arguments in (["--epochs=abc"], ["--epoochs=3"]):
        code, output, errors = finish(f"--workdir={tmp_path}", *arguments)
        assert code == 2 and errors.startswith("bpevo.launch: ") and len(errors.splitlines()) == 1 and not output
    code, output, errors = finish("epochs=3")
    assert code and "unknown argument 'epochs=3'" in output + errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


# In this process.


@pytest.fixture(scope="module")
def defined():
    if "max_evaluations" not in flags.FLAGS:
        definitions.define_common()
        definitions.define_search()
    return flags.FLAGS


@pytest.fixture
def parsed(defined):
    def parse(*arguments) -> flags.FlagValues:
        values = copy.deepcopy(defined)
        values.unparse_flags()
        values(["launch", *map(str, arguments)])
        return values

    return parse


BAD = [
    ("--learning_rates=fast", "learning_rates=fast must be a list of numbers, such as 0.1,0.05$"),
    ("--learning_rates=", "--learning_rates= must be different positive numbers"),
    ("--learning_rates=0.1,-0.1", "different positive numbers"),
    ("--learning_rates=0.1,0.1", "different positive numbers"),
    ("--learning_rates=0", "--learning_rates=0 must be different positive numbers up to 1,000,000$"),
    ("--learning_rates=1000001", "--learning_rates=1000001 must be different"),
    ("--learning_rates=inf", "list of numbers"),
    ("--slots=0", "--slots=0 must be at least 1"),
    ("--slots=4097", "--slots=4097 must be at most 4096"),
    ("--train_examples=0", "--train_examples=0 must be at least 1"),
    ("--train_examples=5000", "digits has 1 to 1,197 training examples"),
    ("--batch_size=0", "batch_size and epochs must be at least 1"),
    ("--batch_size=500", "batch_size=500 is larger than the training set of 128"),
    ("--epochs=0", "batch_size and epochs must be at least 1"),
    ("--epochs=2147483648 --batch_size=128", "--epochs=2147483648 is more than 2,147,483,647 steps"),
    ("--max_hours=0", "--max_hours=0 must be above 0 and below 100,000"),
    ("--max_hours=100000", "--max_hours=100000 must be above 0"),
    ("--checkpoint_minutes=-1", "--checkpoint_minutes=-1.0 must be at least 0"),
    ("--checkpoint_minutes=inf", "--checkpoint_minutes=inf must be"),
    ("--weight_decay=2", "weight_decay must lie in"),
    ("--seed=-1", "--seed=-1 must be at least 0"),
    ("--seed=4294967296", r"must be below 2\^32"),
    ("--model=resnet", "no model 'resnet': write wrn-"),
    ("--model=wrn-11-1", "no model 'wrn-11-1'"),
    ("--dataset=no_such_set", "no_such_set"),
    ("--max_evaluations=0", "--max_evaluations=0 must be at least 1"),
    (
        "--max_evaluations=1 --learning_rates=0.1,0.2",
        "less than one equation costs: a trial for each of 2 learning rates, and a training",
    ),
    ("--max_evaluations=1 --model=mlp-8;mlp-4", "1 learning rates, and a training, on each of 2 networks$"),
    ("--model=mlp-8;", "--model=mlp-8; must be a network, or different ones"),
    ("--model=mlp-8;mlp-8", "--model=mlp-8;mlp-8 must be a network"),
    ("--max_parts=9", "--max_parts=9 must be at most 8"),
    ("--elite_size=0", "--elite_size=0 must be at least 1"),
    ("--elite_probability=1.5", r"elite_probability must lie in \[0, 1\]"),
    ("--mutations=0", "not all 0"),
    ("--mutations=one", "--mutations=one must be a list of numbers"),
    ("--lag=0", "--lag=0 must be at least 1"),
    ("--top=0", "--top=0 must be at least 1"),
    ("--repeats=0", "--repeats=0 must be at least 1"),
    ("--repeats=1000", "--repeats=1000 must be at most 999"),
    ("--tournament=0", "--tournament=0 must be at least 1"),
    ("--stop_epochs=0", "--stop_epochs=0 must rise, from 1 to"),
    ("--stop_epochs=1,1 --epochs=3", "--stop_epochs=1,1 must rise"),
    ("--stop_epochs=4 --model=mlp-8;mlp-4", "--stop_epochs=4 must rise, from 1 to below --epochs=2 times 2 networks$"),
    ("--stop_epochs=1 --stop_quantile=0", "--stop_quantile=0.0 must lie between"),
    ("--stop_epochs=2", "--stop_epochs=2 must rise, from 1 to below --epochs=2$"),
    ("--stop_epochs=1.5", "--stop_epochs=1.5 must be a list of numbers, such as 5,10$"),
    ("--stop_epochs=1 --stop_quantile=1", "--stop_quantile=1.0 must lie between"),
    ("--stop_epochs=1 --halving_eta=2", "contradict each other"),
    ("--halving_eta=1", "--halving_eta=1 must be at least 2"),
    ("--operands=gg", "no operand 'gg'; the nearest is 'g'"),
    ("--unaries=rellu", "no unary function 'rellu'; the nearest is 'relu'"),
    ("--binaries=times", "no binary function 'times'"),
    ("--initial={missing}", "--initial: equation 1 of .*missing, which is no file: "),
    ("--initial={folder}", "--initial: equation 1 of .*folder, which is no file: "),
    ("--initial={binary}", "cannot read equations from .*: it is not a UTF-8 text"),
    ("--initial={wrong}", "--initial: line 2 of .*wrong: there is no operand 'q'"),
    ("--initial={long}", "line 1 of .*long: the equation has 2 parts; this search allows 1 to 1"),
    ("--initial={empty}", "holds no equation; write random, known, equations or a file of them"),
    ("--initial=", "holds no equation"),
    ("--initial=g;softsine(g)", "--initial: equation 2 of .*: there is no function 'softsine'; there are abs, "),
    (
        "--initial=unit_fr(g)",
        "--initial: equation 1 of .*, which is no file: .*'unit_fr'; the nearest is 'unit_fro', at",
    ),
    ("--initial=bakprop", "no rule and no operand 'bakprop'; the nearest is 'backprop'"),
    ("--model=mpl-32", "no model 'mpl-32'; the nearest is 'mlp-32': write wrn-"),
    ("--model=wnr-16-2", "no model 'wnr-16-2'; the nearest is 'wrn-16-2': write"),
]


@pytest.fixture
def files(tmp_path):
    contents = {"binary": b"\xff\xfeg", "wrong": b"g\ng + q\n", "long": b"(g + h) + fa", "empty": b"# nothing\n\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    return {name: tmp_path / name for name in (*contents, "folder", "missing")}


@pytest.mark.parametrize("arguments, message", BAD, ids=[a for a, _ in BAD])
def test_flags_that_cannot_be_honoured_are_refused_before_anything_starts(
    parsed, files, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(Recipe, "trainers", lambda _: pytest.fail("compiles"))
    extra = ["--max_parts=1"] if "long" in arguments else []
    values = parsed(f"--workdir={tmp_path / 'run'}", *SMALL, *arguments.format(**files).split(), *extra)
    with pytest.raises((plans.UsageError, data.DataError), match=message):
        launch.run(plans.search_command(values), Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "--slots=4096", "--learning_rates=1000000", "--repeats=999", "--max_hours=99999", "--checkpoint_minutes=0",
        "--max_parts=8", "--seed=4294967295", "--epochs=2147483647 --batch_size=128",
        "--max_evaluations=3 --learning_rates=0.1,0.2 --controller=random", "--halving_eta=2",
        "--stop_epochs=1,3 --epochs=2 --model=mlp-8;mlp-4",
    ],
)  # fmt: skip
def test_flags_may_go_to_their_limits(parsed, arguments):
    values = parsed("--workdir=x", *SMALL, *arguments.split())
    assert plans.search_command(values).max_hours == values.max_hours


def test_flags_that_are_not_given_have_the_defaults_that_their_help_tells():
    def defaults(*define) -> dict:
        made = flags.FlagValues()
        for each in define:
            each(made)
        return {name: made[name].default for name in made}

    common = {
        "workdir": None, "dataset": "cifar10", "data_dir": None, "train_examples": None, "model": "wrn-16-2", "optimizer": "sgd",
        "learning_rates": ["0.1"], "weight_decay": 0.001, "batch_size": 128, "epochs": 20, "schedule": "paper",
        "compute_dtype": "float32", "slots": None, "pool": "local", "ray_address": None, "workers": None, "worker_cpus": None,
        "seed": 0, "max_hours": None, "metrics": None, "selfcheck": True,
    }  # fmt: skip
    assert defaults(definitions.define_common) == common
    assert defaults(definitions.define_search) == {
        "checkpoint_minutes": 10.0, "controller": "paper", "max_evaluations": 1000, "fitness_over": "worst", "max_parts": 3,
        "elite_size": None, "elite_probability": 0.7, "tournament": 10, "mutations": ["1"], "initial": "random", "operands": [],
        "unaries": [], "binaries": [], "lag": None, "stop_epochs": [], "stop_quantile": 0.5, "halving_eta": 0,
        "equivalence": True, "top": 5, "repeats": 5, "fork_from": None,
    }  # fmt: skip
    evaluation = {
        "scenario": "evaluation", "rules": None, "top": 100, "finalists": 10, "tuning_repeats": 1, "selection_repeats": 5,
        "repeats": 10, "eval_examples": None, "ablate": 0, "alignment": False,
    }  # fmt: skip
    assert defaults(definitions.define_evaluation) == evaluation
    funnel = evaluation | {"scenario": "funnel", "stages": None}
    assert defaults(definitions.define_evaluation, definitions.define_funnel) == funnel
    assert defaults(definitions.define_sweep) == {"vary": []}


def test_only_tensorboard_needs_its_package_and_data_that_are_missing_are_no_wrong_flag(parsed, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else pytest.fail(name))
    for arguments in ((), ("--metrics=csv",)):
        assert plans.search_command(parsed("--workdir=x", *SMALL, *arguments))
    with pytest.raises(
        plans.UsageError, match="^--metrics=tensorboard needs tensorboardX: pip install tensorboardX, or"
    ):
        plans.search_command(parsed("--workdir=x", *SMALL, "--metrics=tensorboard"))
    with pytest.raises(data.DataError, match="no_such.npz"):
        plans.search_command(parsed("--workdir=x", *SMALL, "--dataset=no_such.npz"))


def test_a_path_may_begin_with_the_home_directory_where_one_is_known(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert plans.path_of("workdir", "~/runs") == "/home/me/runs" and plans.path_of("workdir", "a/~") == "a/~"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for path in ("~", "~/runs"):
        with pytest.raises(plans.UsageError, match=f"--workdir={path}: no home directory is known"):
            plans.path_of("workdir", path)
    assert plans.path_of("workdir", "~somebody/runs") == "~somebody/runs"  # a name, unless somebody has a home


def test_a_third_of_the_validation_examples_is_kept_for_the_fresh_seeds(parsed, tmp_path):
    def command(count: int, *arguments) -> plans.SearchCommand:
        labels = np.arange(count) % 2
        np.savez(
            tmp_path / "mine.npz", x_train=np.zeros((count, 4, 4), np.uint8), y_train=labels,
            x_test=np.zeros((4, 4, 4), np.uint8), y_test=labels[:4],
        )  # fmt: skip
        given = ("--workdir=x", f"--dataset={tmp_path / 'mine.npz'}", "--model=mlp-4", "--batch_size=2", "--slots=1")
        return plans.search_command(parsed(*given, *arguments))

    assert plans.search_command(parsed("--workdir=x", *SMALL)).training.held_out == 80  # of 240
    assert command(18).training.held_out == 1  # of 3, which is a sixth
    with pytest.raises(plans.UsageError, match="leaves 2 validation examples: a search needs at least 3, for a third"):
        command(12)


def test_a_pools_slots_are_told_or_the_lag_is(parsed):
    for arguments in ((), ("--workers=2",), ("--slots=4",)):
        with pytest.raises(plans.UsageError, match="--pool=ray needs --workers and --slots, or --lag"):
            plans.search_plan(parsed("--pool=ray", *arguments))
    with pytest.raises(plans.UsageError, match="--workers=0 must be at least 1"):
        plans.pool_plan(parsed("--pool=ray", "--workers=0"))
    made = plans.pool_plan(parsed("--pool=ray", "--workers=1", "--worker_cpus=3", "--ray_address=auto"))
    assert (made.address, made.workers, made.cpus) == ("auto", 1, 3) and plans.pool_plan(parsed()) is None


def test_a_workdir_is_needed(parsed):
    with pytest.raises(plans.UsageError, match="--workdir=FOLDER is needed"):
        launch.run(plans.search_command(parsed(*SMALL)), Console(file=io.StringIO()))


def test_a_file_of_equations_may_hold_texts_names_and_comments(parsed, tmp_path):
    (tmp_path / "rules").write_text(
        "\ufeffg  # backprop\n\n# a comment\nsign_symmetry\nunit_fro(g) + (0.5*g)\n", encoding="utf-8"
    )
    found = plans.initial_equations(str(tmp_path / "rules"), 3)
    assert [str(e) for e in found] == ["g", NAMED["sign_symmetry"], "unit_fro(g) + (0.5*g)"]
    assert plans.search_plan(parsed(*SMALL, f"--initial={tmp_path / 'rules'}")).initial == tuple(found)
    assert plans.initial_equations("backprop; sign_symmetry;unit_fro(g) + (0.5*g)", 3) == found
    assert [str(e) for e in plans.initial_equations("b1_sgd", 3)][:2] == ["g", TABLE_1["b1_sgd_1"]]


def test_known_starts_hold_backprop_and_what_fits_into_the_parts(parsed):
    three, one = (plans.search_plan(parsed(*SMALL, "--initial=known", f"--max_parts={n}")).initial for n in (3, 1))
    assert str(three[0]) == str(one[0]) == "g" and len(three) == 5 and len(one) == 3


@pytest.mark.parametrize(
    ("arguments", "lag"),
    [
        ("", 32),
        ("--learning_rates=0.1,0.2,0.3,0.4", 16),
        ("--stop_epochs=1", 64),
        ("--stop_epochs=4", 32),
        ("--lag=3", 3),
        ("--model=mlp-8;mlp-4", 64),  # twice as many trainings under way
        ("--pool=ray --workers=2 --slots=4", 32),  # as 8 slots
        ("--pool=ray --lag=5", 5),
    ],
)
def test_the_lag_grows_with_the_slots_and_with_what_a_full_training_takes(parsed, arguments, lag):
    values = parsed("--slots=8", "--epochs=8", *arguments.split())
    assert plans.search_plan(values).lag == lag


def test_no_learning_rate_is_refused_before_the_lag_is_worked_out_of_it(parsed):
    with pytest.raises(plans.UsageError, match="--learning_rates= must be different positive numbers"):
        plans.search_plan(parsed("--learning_rates="))


@pytest.mark.parametrize("epochs, stops, trial", [(3, "", 1), (7, "", 1), (20, "", 5), (20, "3,9", 3), (1, "", 1)])
def test_a_trial_ends_at_the_first_rung_or_a_quarter_of_the_epochs(parsed, epochs, stops, trial):
    given = parsed(*SMALL, f"--epochs={epochs}", f"--stop_epochs={stops}", "--controller=random")
    assert plans.search_plan(given).trial_epochs == trial


def test_over_several_networks_a_trial_ends_on_the_first_of_them(parsed):
    """The first rung is at the end of the first network, where there are four epochs: the trial is a quarter of these."""
    given = parsed(*SMALL, "--epochs=4", "--stop_epochs=4", "--model=mlp-8;mlp-4", "--controller=random")
    plan = plans.search_plan(given)
    assert (plan.trial_epochs, plan.networks.names, plan.networks.epochs) == (1, ("mlp-8", "mlp-4"), 4)


@pytest.mark.parametrize("rungs, trial", [("--stop_epochs=4,9", 1), ("--stop_epochs=11,14", 3), ("--halving_eta=3", 1)])
def test_over_several_networks_a_trial_ends_before_every_rung_on_any_of_them(parsed, rungs, trial):
    """Rungs at 9 and 11 are those at 1 and 3 on the second; halved are 5 (5 on the first) and 1."""
    given = parsed(*SMALL, "--epochs=8", rungs, "--model=mlp-8;mlp-4", "--controller=random")
    assert plans.search_plan(given).trial_epochs == trial


def test_a_fork_takes_no_initial_equations(parsed):
    with pytest.raises(plans.UsageError, match="--fork_from begins with .* takes no --initial"):
        plans.search_plan(parsed(*SMALL, "--fork_from=x", "--initial=known"))


def test_halving_has_rungs_at_falling_powers_of_eta(parsed):
    plan = plans.search_plan(parsed(*SMALL, "--halving_eta=3", "--epochs=20"))
    assert [(r.epoch, r.quantile) for r in plan.evolution.rungs] == [
        (2, pytest.approx(2 / 3)),
        (6, pytest.approx(2 / 3)),
    ]
    assert plan.rung_epochs == (2, 6)
    assert plans.search_plan(parsed(*SMALL, "--halving_eta=2", "--epochs=8")).rung_epochs == (1, 2, 4)


def test_the_fingerprint_changes_with_every_setting_that_changes_results(parsed):
    def fingerprint(*arguments):
        values = parsed("--workdir=x", *SMALL, *arguments)
        return plans.search_command(values).fingerprint()

    base = fingerprint()
    changes = ["--epochs=3", "--train_examples=130", "--learning_rates=0.2", "--seed=1", "--optimizer=momentum", "--lag=5",
               "--operands=g", "--unaries=relu", "--binaries=add", "--max_parts=2", "--elite_size=7", "--initial=known",
               "--elite_probability=0.5", "--mutations=1,1", "--stop_epochs=1", "--noequivalence", "--schedule=cosine",
               "--compute_dtype=bfloat16", "--weight_decay=0", "--batch_size=16", "--model=mlp-8"]  # fmt: skip
    for change in changes:
        assert fingerprint(change) != base, change
    assert fingerprint("--slots=2", "--top=3", "--max_evaluations=7") == base


@pytest.mark.parametrize("path", sorted((REPOSITORY / "launch").glob("[!e]*.flags")), ids=lambda p: p.name)
def test_flag_files_describe_a_search_that_can_start(parsed, monkeypatch, tmp_path, path):
    def load(name, data_dir=None):
        size, count, pad = (8, 1437, 0) if name == "digits" else (32, 50_000, 4)
        images, labels = np.zeros((count, size, size, 1), np.uint8), np.zeros(count, np.int32)
        return data.Dataset(
            name=name,
            train_images=images,
            train_labels=labels,
            test_images=images[:10],
            test_labels=labels[:10],
            num_classes=10,
            flip=False,
            pad=pad,
            source="made up",
        )

    monkeypatch.setattr(data, "load", load)
    values = parsed(f"--flagfile={path}")
    plan, trainings = plans.search_plan(values), plans.training_plans(values)
    assert plan.max_evaluations >= 10 and all(t.task().steps_per_epoch >= 1 for t in trainings.values())
    assert path.read_text().startswith("# "), "a flag file says what it runs"


# What a budget affords.


@pytest.mark.parametrize(
    ("arguments", "elite_size", "lag"),
    [
        (
            "--max_evaluations=5000 --learning_rates=0.1,0.2,0.3,0.4 --slots=8",
            98,
            16,
        ),  # 981 equations at 5 trainings and a tenth
        ("--max_evaluations=60 --slots=8", 10, 11),  # a quarter of the 44 of 55 that are bred then
        ("--max_evaluations=1000 --slots=4096", 91, 182),  # a quarter of 728 of 910
        ("--max_evaluations=1000 --slots=8 --elite_size=7 --lag=3", 7, 3),
        ("--max_evaluations=45 --slots=64 --initial=known", 10, 9),  # a quarter of 36 of 41
    ],
)
def test_defaults_follow_from_the_budget(parsed, arguments, elite_size, lag):
    plan = plans.search_plan(parsed(*arguments.split()))
    assert (plan.evolution.elite_size, plan.lag) == (elite_size, lag)


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        ("--max_evaluations=1000 --elite_size=1000", 1101),
        ("--max_evaluations=5104 --elite_size=1000 --learning_rates=0.1,0.2,0.3,0.4", 5105),
        ("--max_evaluations=5 --initial=known", 6),
        ("--max_evaluations=100 --lag=100", 111),
    ],
)
def test_a_budget_that_breeds_nothing_is_refused_with_the_least_that_would_do(parsed, arguments, least):
    with pytest.raises(plans.UsageError, match=f"breeds nothing: .*give at least {least}, "):
        plans.search_plan(parsed(*arguments.split()))
    assert plans.search_plan(parsed(*arguments.split(), f"--max_evaluations={least}"))
    assert plans.search_plan(parsed(*arguments.split(), "--controller=random")).controller == "random"


def test_a_start_says_what_the_run_is_and_later_what_it_takes(finish, tmp_path):
    code, output, errors = finish(f"--workdir={tmp_path}", *SMALL, "--max_evaluations=14", "--slots=8", "--epochs=3")
    assert code == 0, errors
    said = " ".join(output.split())
    # 13 equations, a confirmation, 2 controls, (1 + 2) * 2 fresh seeds, 3 epochs each, 4 steps of 32 of 128.
    assert "8 slots; 13 equations: 4 random, 9 bred (N 3, lag 4); about 22 trainings" in said
    assert "66 slot-epochs of 4 steps of 32 examples" in said and "50% of the slots will stand idle: with lag 4" in said
    assert re.search(r"about \d+ (s|min) beside compilation and \d+ MiB of device memory", said)
    assert re.search(r"measured: \S+ s an epoch of all slots, at most \d+ (s|min) of training left", said)
