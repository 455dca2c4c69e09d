"""Who takes the decisions of rules on a GPU: CUDA graphs where they can, else the host, and a word says which."""

import contextlib

import jax
import numpy as np
import pytest

from bpevo import doctor
from bpevo.bench import engines
from bpevo.rules import compile
from bpevo.training import Trainer, Training, graphs, slots, trainer
from bpevo.training.kernel import Found

REFUSED = {"xla_gpu_enable_command_buffer": "NONSENSE"}  # by XLA, when it compiles


class Gpu:
    """A device that says it is a GPU."""

    platform, device_kind, id = "gpu", "stand-in", 0

    def memory_stats(self):
        return {}


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """The trial's programs run on the CPU, as if none was tried before."""
    monkeypatch.setattr(graphs.jax, "default_device", lambda device: contextlib.nullcontext())
    graphs._tried.cache_clear()
    yield
    graphs._tried.cache_clear()


def decide(monkeypatch, found):
    """Replaces the trial's program; `found` of the options that it was compiled with."""
    monkeypatch.setattr(graphs, "_decide", found)
    monkeypatch.setattr(graphs.jax, "__version_info__", (0, 12, 0))


def failing(words):
    raise RuntimeError(words)


def test_two_compilations_may_differ_by_one_in_a_hundred(monkeypatch):
    decide(monkeypatch, lambda options: np.full(3, 1.0 + 0.01 * bool(options)))
    assert graphs.graphs(Gpu()).said == "in CUDA graphs"


def test_a_cpu_has_no_graphs():
    assert graphs.graphs(jax.devices("cpu")[0]) == graphs.Graphs({}, "")
    assert "xla_gpu_enable_command_buffer" not in slots.compiler_options(jax.devices("cpu"))


def test_a_gpu_on_which_the_trial_agrees_compiles_with_them(monkeypatch):
    seen = []
    decide(monkeypatch, lambda options: seen.append(dict(options)) or np.ones(3))
    device = Gpu()
    assert graphs.graphs(device) == graphs.Graphs(graphs.COMMAND_BUFFERS, "in CUDA graphs")
    assert seen == [graphs.COMMAND_BUFFERS, {}]
    assert slots.compiler_options([device]) == graphs.COMMAND_BUFFERS and len(seen) == 2  # tried once


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda options: np.full(3, 1.0 + bool(options)), "by the host: a program computed other numbers with them"),
        (lambda options: np.full(3, np.nan if options else 1.0), "by the host: a program computed other numbers with them"),
        (lambda options: np.full(3, 1.0 + 0.03 * bool(options)), "by the host: a program computed other numbers with them"),
        (lambda options: 1 / (not options), "by the host: division by zero"),
        (lambda options: failing("refused\nat line 7"), "by the host: refused"),
        (lambda options: failing(""), "by the host: RuntimeError"),
    ],
)  # fmt: skip
def test_where_the_trial_fails_the_host_decides_and_the_reason_is_told(monkeypatch, found, said):
    decide(monkeypatch, found)
    assert graphs.graphs(Gpu()) == graphs.Graphs({}, said)


def test_an_old_jax_is_not_even_asked(monkeypatch):
    decide(monkeypatch, lambda options: pytest.fail("tried"))
    monkeypatch.setattr(graphs.jax, "__version_info__", (0, 11, 1))
    assert graphs.graphs(Gpu()).said == f"by the host: jax {jax.__version__} cannot, 0.11.2 and later can"


def test_the_oldest_jax_that_can_is_asked(monkeypatch):
    decide(monkeypatch, lambda options: np.ones(3))
    monkeypatch.setattr(graphs.jax, "__version_info__", (0, 11, 2))
    assert graphs.graphs(Gpu()).said == "in CUDA graphs"


def test_what_xla_does_not_know_counts_as_refused(monkeypatch):
    monkeypatch.setattr(graphs, "COMMAND_BUFFERS", REFUSED)
    monkeypatch.setattr(graphs.jax, "__version_info__", (0, 12, 0))
    found = graphs.graphs(Gpu())
    assert found.options == {} and "'NONSENSE' is not a valid enum value" in found.said


@pytest.mark.skipif(jax.__version_info__ < graphs.LEAST, reason="an earlier jax does not know the whole list")
def test_this_jax_knows_every_name_of_the_list():
    assert jax.jit(lambda x: x + 1, compiler_options=graphs.COMMAND_BUFFERS)(1.0) == 2.0


def test_the_trial_decides_in_a_loop_and_gives_numbers_of_order_1():
    found = np.asarray(graphs._decide({}))
    assert np.max(np.abs(found)) == 1 and np.std(found) > 0.1


def test_the_doctor_says_who_decides(monkeypatch):
    decide(monkeypatch, lambda options: np.ones(3))
    monkeypatch.setattr(doctor.jax, "local_devices", lambda: [Gpu()])
    monkeypatch.setattr(doctor.provenance, "versions", lambda: {"jax": "0.12.0", "cores": "2"})
    monkeypatch.setattr(doctor, "kernel_of", lambda device: Found(None, "interpreted"))
    found = {what: state for what, state, _ in doctor.machine()}
    said = "rules run interpreted, their decisions taken in CUDA graphs"
    assert found["device 0"] == f"stand-in, uses the machine's memory, {said}"


SETTING = engines.Setting("tiny", "mlp-8", 8, 1, 16, 2)


def trained(monkeypatch, refused: bool):
    """Results and states of an epoch in two slots, one of which goes on from another trainer's state."""
    task, examples = engines.workload(SETTING, 3)
    rule = compile("unit_fro(g)")
    with monkeypatch.context() as patch:
        if refused:
            patch.setattr(trainer, "graphs", lambda device: graphs.Graphs(REFUSED, "in CUDA graphs"))
            patch.setattr(slots, "compiler_options", lambda devices: REFUSED)
        made = Trainer(task, examples, capacity=2, devices=jax.devices()[:1], rule=rule)
    made.start(0, Training(rule.expression, 0.1))
    before = [np.full(shape, 0.01, dtype) for shape, dtype in made.state_shapes]
    made.start(1, Training(rule.expression, 0.1), 1, before)
    results = made.advance()
    return made, results, [made.state(k) for k in (0, 1)]


def test_a_first_epoch_that_fails_with_graphs_is_run_without_them_and_loses_nothing(monkeypatch):
    _, expected, states = trained(monkeypatch, False)
    with pytest.warns(RuntimeWarning, match="decisions of rules are taken by the host: .*NONSENSE"):
        made, results, found = trained(monkeypatch, True)
    assert results == expected and made.graphs.options == {} and "NONSENSE" in made.graphs.said
    for mine, theirs in zip(found, states, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
