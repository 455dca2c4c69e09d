"""The doctor's look at a cluster: what nodes say is judged here; a real Ray is looked at with -m cluster."""

import os
import secrets
import subprocess
import sys

import pytest
from test_runs import REPOSITORY

from bpevo.command import clusters, pools, process

EXPECTED = {"bpevo": "0.1", "jax": "1", "XLA_FLAGS": "none"}
LIKE = EXPECTED | {"device": "cpu", "rules": "interpreted"}


def judged(**said) -> dict[str, str]:
    """What is wrong with each node, by what it said."""
    return {what: fault for what, _, fault in clusters.compared(EXPECTED, said)}


def test_nodes_that_agree_with_this_machine_and_each_other_have_no_fault():
    assert judged(a=LIKE, b=LIKE) == {"worker a": "", "worker b": ""}
    (_, state, _), *_ = clusters.compared(EXPECTED, {"a": LIKE})
    assert state == "computes right numbers: bpevo 0.1, jax 1, device cpu, rules interpreted"


def test_what_differs_from_this_machine_or_from_the_first_node_is_named_with_what_to_do():
    wrong = judged(a=LIKE, b=LIKE | {"jax": "2"}, c=LIKE | {"device": "H100"})
    assert wrong["worker a"] == ""
    assert wrong["worker b"].startswith("jax is 2, not 1: a run would leave it out. Install the same releases")
    assert wrong["worker c"].startswith("device is H100, not cpu: ")


def test_a_node_that_cannot_begin_says_why_and_settles_nothing():
    wrong = judged(a="SelfCheckError: wrong numbers", b="ModuleNotFoundError: No module named 'bpevo'", c=LIKE)
    assert wrong["worker a"] == "SelfCheckError: wrong numbers" and wrong["worker c"] == ""
    assert wrong["worker b"].startswith("ModuleNotFoundError: No module named 'bpevo': install bpevo there")


@pytest.fixture(scope="module")
def address():
    """A cluster on this machine, whose token is in this process's environment."""
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        with pools.connected(None, process.Interruption()) as cluster:
            yield cluster.address


def doctor(address: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bpevo.doctor", f"--ray_address={address}"]
    own = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)


@pytest.mark.cluster
def test_the_doctor_tells_what_a_cluster_has_and_that_its_workers_are_sound(address):
    ended = doctor(address)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{address}: 1 nodes, guarded by a token" in ended.stdout and "nothing is wrong" in ended.stdout
    assert "room for 1" in ended.stdout and "computes right numbers: bpevo" in ended.stdout


@pytest.mark.cluster
def test_the_doctor_names_a_token_that_is_wrong_and_an_address_where_nothing_is(address):
    ended = doctor(address, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert ended.returncode == 1 and "wrong:" in ended.stdout
    assert "its token is missing here, or another one" in ended.stdout
    ended = doctor("127.0.0.1:9")
    assert ended.returncode == 1 and "cannot reach a Ray cluster at 127.0.0.1:9" in ended.stdout
