"""Nonsense in flags, equations and files: an exit code and one clear message, never a traceback, never trust."""

import ast
import copy
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import fuzz_language
import hypothesis
import hypothesis.strategies as st
import pytest
from absl import flags
from rich.console import Console
from test_faults import edited
from test_runs import StandIn, plan, search

import bpevo
from bpevo import data, launch
from bpevo.command import definitions, plans, process
from bpevo.report import leaderboard, table
from bpevo.rules import parse
from bpevo.runs import RunDatabase, RunError, printable
from bpevo.workers import Recipe

REPOSITORY = pathlib.Path(__file__).parents[1]
SMALL = ("--dataset=digits", "--model=mlp-8-8", "--train_examples=128", "--batch_size=32", "--epochs=2", "--slots=4", "--lag=4",
         "--noselfcheck")  # fmt: skip


class Started(Exception):
    """All flags were accepted."""


@pytest.fixture(scope="module")
def defined():
    if "max_evaluations" not in flags.FLAGS:
        definitions.define_common()
        definitions.define_search()
    return flags.FLAGS


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Paths that are not what a flag expects."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "binary").write_bytes(b"\xff\xfe g")
    (folder / "escapes").write_text("g + \x1b[31mq\n", encoding="utf-8")
    (folder / "empty").write_text("")
    return [str(folder / n) for n in ("", "binary", "escapes", "empty", "missing", "missing/deeper", "empty/inside")]


@pytest.fixture(scope="module")
def quiet_place(tmp_path_factory):
    """A folder to run in, where no trainer is built and nothing is downloaded."""

    def start(*_):
        raise Started

    folder = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Recipe, "trainers", start)
        for name in ("http_proxy", "https_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        yield folder


NAMES = [
    "workdir", "dataset", "data_dir", "train_examples", "model", "optimizer", "learning_rates", "weight_decay", "batch_size",
    "epochs", "schedule", "compute_dtype", "slots", "seed", "checkpoint_minutes", "selfcheck", "max_evaluations", "max_parts",
    "elite_size", "elite_probability", "tournament", "mutations", "initial", "operands", "unaries", "binaries", "lag",
    "stop_epochs", "stop_quantile", "halving_eta", "equivalence", "top", "repeats", "fork_from", "controller", "max_hours",
    "metrics", "fitness_over", "pool", "ray_address", "workers", "worker_cpus",
]  # fmt: skip
VALUES = [
    "", "0", "1", "-1", "2", "3", "1.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e39", "1e-400", "9" * 30, "-" + "9" * 30, "abc",
    "None", "true", "0x10", "1_000", "\u0661", "é", "\udcff", "\x1b[31mred", "a b", "g;h", ",", ",,", "1,2,3", "1,,2", "0.1,0.1",
    "1e308,1e308", "--", "x" * 5000, "a\0b", "/dev/null", "/dev/full", "/proc/self/mem", "wrn-16-0", "wrn-16-999999", "mlp-",
    "mlp-0", "mlp--1", "mlp-99999999999", "wrn-4-1", "digits", "no_such_set", "/etc", "random", "known", "momentum", "cosine",
    "bfloat16", "csv", "g", "relu", "clip:nan", "clip:", "drop:1", "scale:1e999", "add", "W", "mean(g)", "R_L",
    "mlp-8;mlp-4", "mlp-8;", "mean",
]  # fmt: skip


def test_every_flag_is_fuzzed():
    text = pathlib.Path(definitions.__file__).read_text(encoding="utf-8").partition("def define_evaluation")[0]
    assert set(re.findall(r'define\.\w+\(\s*"(\w+)"', text)) == {*NAMES}


@hypothesis.given(draw=st.data())
@hypothesis.settings(max_examples=400)
def test_any_flags_are_taken_or_refused_with_a_message(defined, places, quiet_place, draw):
    chosen = draw.draw(
        st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES + places)), min_size=1, max_size=3)
    )
    attempt(defined, quiet_place, chosen)


@pytest.mark.parametrize("name", ["workdir", "fork_from", "initial"])
def test_any_path_is_taken_or_refused_with_a_message(defined, places, quiet_place, name):
    for value in VALUES + places:
        attempt(defined, quiet_place, [(name, value)])


def attempt(defined, place, chosen) -> None:
    values = copy.deepcopy(defined)
    values.unparse_flags()
    try:
        values(["launch", f"--workdir={place}/run", *SMALL, *(f"--{n}={v}" for n, v in chosen)])
        launch.run(plans.search_command(values), Console(file=io.StringIO()))
    except (flags.Error, plans.UsageError, data.DataError, RunError) as error:
        message = printable(str(error))
        assert message.strip() and "Traceback" not in message
    except Started:
        pass


def command(module: str, *arguments, **options) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_"))}
    environment |= {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    whole = [sys.executable, "-m", module, *arguments]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs=abc"], "flag --epochs=abc: invalid literal"),
        (["--epoochs=3"], "Unknown command line flag 'epoochs'. Did you mean: epochs"),
        (["epochs=3"], "unknown argument 'epochs=3': settings are flags"),
        (["--flagfile={missing}"], "cannot read the flag file"),
        (["--flagfile={folder}"], "cannot read the flag file"),
        (["--flagfile={binary}"], "is not a UTF-8 text"),
        (["--flagfile={null}"], "embedded null byte"),
        (["--workdir={file}", *SMALL], "cannot write in the workdir"),
        (["--workdir={file}/below", *SMALL], "cannot write in the workdir"),
        (["--workdir={new}", *SMALL, "--fork_from={folder}"], "there is no run in"),
        (["--workdir={new}", *SMALL, "--epochs=3000000000"], "steps"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_the_command_ends_with_one_message_and_its_exit_code(tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"--epochs=3\n\xff\xfe\n")
    (tmp_path / "null").write_bytes(b"--workdir=a\0b\n" + "\n".join(SMALL).encode())
    (tmp_path / "file").write_text("")
    names = {n: tmp_path / n for n in ("folder", "binary", "null", "file", "missing", "new")}
    done = command("bpevo.launch", *(a.format(**names) for a in arguments), cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == process.EXIT_ERROR and not done.stdout, done.stderr
    assert len(lines) == 1 and lines[0].startswith("bpevo.launch: ") and message in lines[0]


# The language.


def test_the_fuzzers_inputs_break_no_promise():
    seen = fuzz_language.fuzz((15_000, 0))
    assert sum(seen.values()) == 15_000 and all(
        seen[k] > 50 for k in ("RuleSyntaxError", "InfeasibleEquation", "chain", "tree")
    )


@hypothesis.given(st.text(max_size=60) | st.text("ghWRSbnd_LTf.()+-*/@,0123456789e \x1b\\'", max_size=80))
@hypothesis.settings(max_examples=500)
def test_any_text_is_an_expression_or_one_of_two_errors(text):
    fuzz_language.check(text)


@pytest.mark.parametrize(
    "thing", [None, 1, b"g", ["g"], "g" * 10**6, "(" * 10**6, "-" * 900, "g" + ".T" * 400, "relu(" * 199]
)
def test_things_that_are_no_equations_are_refused_at_once(thing):
    with pytest.raises(ValueError):
        parse(thing)


# No trust.


def sources():
    return sorted(pathlib.Path(bpevo.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_nothing_unpickles_or_evaluates(path):
    """But for the bench of a pool's head, which counts what travels to workers that it simulates itself."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml", "imp"}
    calls = {"eval", "exec", "__import__", "system", "popen", "literal_eval", "rmtree", "removedirs"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            allowed = {"pickle"} if path.match("bpevo/bench/head.py") else set()
            assert not {n.split(".")[0] for n in names} & modules - allowed, ast.unparse(node)
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            assert name not in calls, ast.unparse(node)
            if name == "load" and "np" in ast.unparse(node.func):
                assert "allow_pickle=False" in ast.unparse(node), ast.unparse(node)
            assert all(k.arg != "shell" for k in node.keywords), ast.unparse(node)


def test_texts_of_a_database_are_data_in_sql_and_in_the_terminal(tmp_path):
    search(tmp_path, plan(5), StandIn(4))
    with RunDatabase.writing(tmp_path) as database:
        assert len(database.rows("'; DROP TABLE evaluations; --")) == 0
        assert database.rows()
    edited(tmp_path, "UPDATE evaluations SET reason = '[bold red]not markup[/]' WHERE stage = 'control'")
    with RunDatabase.reading(tmp_path) as database:
        output = io.StringIO()
        Console(file=output, width=200).print(table(leaderboard(database.rows(), 3), "title"))
    assert "[bold red]not markup[/]" in output.getvalue()


def test_settings_with_escapes_are_shown_harmlessly(tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings({"dataset": "\x1b]0;owned\x07"}, {}, ())
        with pytest.raises(RunError) as error:
            database.check_settings({"dataset": "digits"}, {}, ())
    assert "\x1b" not in str(error.value) and "owned" in str(error.value)


def test_an_owner_with_escapes_is_shown_harmlessly(tmp_path):
    with RunDatabase.writing(tmp_path):
        (tmp_path / "lock").write_bytes(b"host \x1b[2J\xff, pid 1")
        with pytest.raises(RunError, match="another process writes") as error, RunDatabase.writing(tmp_path):
            pass
    assert str(error.value).isprintable()


def test_what_fails_is_printed_without_control_characters(capsys):
    assert process.fail("bpevo.launch", "one\x1b[31m\ntwo\u202e", 7) == 7
    assert capsys.readouterr().err == "bpevo.launch: one\\x1b[31m\ntwo\\u202e\n"
    assert json.loads(json.dumps(printable("é ± …"))) == "é ± …"
