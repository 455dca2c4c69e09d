"""The package from outside: lazy rooms, its version, and the examples in its docstrings."""

import configparser
import doctest
import importlib
import pathlib
import subprocess
import sys

import pytest

import bpevo

ROOT = pathlib.Path(bpevo.__file__).parent
WITH_EXAMPLES = [
    ".".join(("bpevo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text()
]


def test_rooms_are_imported_when_they_are_first_asked_for():
    code = (
        "import sys, bpevo; assert not {'jax', 'numpy', 'flax'} & set(sys.modules); "
        "assert str(bpevo.rules.compile('fa')) == 'fa' and 'bpevo.layers' not in sys.modules; "
        "assert bpevo.models.by_name and bpevo.layers.Dense and {'rules', 'report'} < set(dir(bpevo))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_the_one_that_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT.parent / "setup.cfg")
    assert config["metadata"]["version"] == "attr: bpevo.__version__" and bpevo.__version__[0].isdigit()


def test_what_people_type_is_found_where_it_is_made():
    made = importlib.import_module("bpevo.command.python")
    assert [bpevo.Search, bpevo.Evaluation, bpevo.Funnel, bpevo.open] == [
        made.Search,
        made.Evaluation,
        made.Funnel,
        made.open,
    ]
    assert bpevo.evolve is importlib.import_module("bpevo.layers").evolve
    assert set(bpevo.__all__) < set(dir(bpevo)) and dir(bpevo) == sorted(dir(bpevo))


def test_what_is_no_room_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'bpevo' has no attribute 'ruels'"):
        _ = bpevo.ruels


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_hold(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed
