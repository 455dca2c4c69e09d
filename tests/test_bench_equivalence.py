"""The judge of duplicates against autodiff, and duplicates before the judge, at a small size."""

import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from rich.console import Console
from test_evolution import equation

from bpevo import models
from bpevo.bench import engines, equivalence, networks

SMALL = networks.Network("mlp-12-10-12", 0.5, (0, 20), 2, 32)


@pytest.fixture(scope="module")
def judge():
    return networks.Signals(SMALL)


def test_the_judge_sees_the_signals_of_a_network_that_learns(judge):
    """Backprop's are autodiff's, and a running mean is that of the steps so far."""
    variables, images, labels = judge._seen
    model = models.by_name(SMALL.model, 10, None)
    expected: list[list[np.ndarray]] = [[], [], []]
    for t in range(4):
        params = jax.tree.map(lambda x, t=t: x[t], variables["params"])

        def logits(probes, params=params, t=t):
            x = images[t].reshape(len(images[t]), -1)
            for i in range(4):
                layer = params[f"Dense_{i}"]
                x = (x if i == 0 else jax.nn.relu(x + probes[i - 1])) @ layer["kernel"] + layer["bias"]
            return x

        probes = [jnp.zeros((32, n)) for n in (12, 10, 12)]
        loss = lambda p, t=t, f=logits: optax.softmax_cross_entropy_with_integer_labels(f(p), labels[t]).mean()  # noqa: E731
        np.testing.assert_allclose(logits(probes), model.apply({"params": params}, images[t]), rtol=1e-4, atol=1e-5)
        for signals, signal in zip(expected, jax.grad(loss)(probes), strict=True):
            signals.append(np.asarray(signal))
    for actual, signals in zip(judge(equation("g")), expected, strict=True):
        np.testing.assert_allclose(actual, np.stack(signals), rtol=1e-3, atol=1e-7)
    weights = np.array([0.9**3, 0.9**2, 0.9, 1.0])
    for actual, signals in zip(judge(equation("(g - g) + mean(g)")), expected, strict=True):
        mean = np.tensordot(weights / weights.sum(), np.stack(signals).mean(1), 1)
        np.testing.assert_allclose(actual[3], np.broadcast_to(mean, actual[3].shape), rtol=1e-3, atol=1e-8)


def test_the_network_that_is_judged_in_learns_by_gradient_steps_on_different_images(judge):
    """It is looked at from steps 0 and 20 on, for two steps each."""
    variables, images, labels = judge._seen
    model = models.by_name(SMALL.model, 10, None)
    params = [jax.tree.map(lambda x, t=t: np.asarray(x)[t], variables["params"]) for t in range(4)]

    @jax.jit
    @jax.value_and_grad
    def loss(params, t):
        logits = model.apply({"params": params}, images[t])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[t]).mean()

    for t in (0, 2):
        stepped = jax.tree.map(lambda p, g: p - 0.5 * np.asarray(g), params[t], loss(params[t], t)[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), params[t + 1], stepped)
    assert loss(params[2], 0)[0] < loss(params[0], 0)[0] - 0.1
    assert all(len(np.unique(batch.reshape(32, -1), axis=0)) == 32 for batch in np.asarray(images))


def test_noise_is_the_same_for_every_rule_and_makes_a_difference(judge):
    noisy = judge(equation("mul_noise(g, 0.5)"))
    assert networks.distance(noisy, judge(equation("mul_noise(g, 0.5)"))) == 0
    assert networks.distance(noisy, judge(equation("g"))) > 100 * networks.DIFFERENT


def test_rules_are_judged_in_a_dense_and_a_convolutional_network_from_the_first_step_on():
    found = [(n.model, n.learning_rate, n.starts, n.steps, n.batch) for n in networks.NETWORKS]
    assert found == [("mlp-32-24-32", 0.5, (0, 10, 50, 200, 800), 3, 128), ("wrn-10-1", 0.1, (0, 40, 200), 2, 128)]


def test_the_measure_is_the_largest_relative_difference_of_a_unit_and_step():
    one = [np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[1.0], [np.inf]])]
    assert networks.distance(one, one) == 0
    assert networks.distance(one, [np.array([[3.0, 4.5], [0.0, 0.0]]), one[1]]) == pytest.approx(0.5 / 29.25**0.5)
    assert networks.distance(one, [np.array([[3.0, 4.0], [1e-9, 0.0]]), one[1]]) == 1
    assert networks.distance(one, [one[0], np.array([[1.0], [-np.inf]])]) == 1
    assert networks.distance([np.array([[np.nan, 1.0]])], [np.array([[np.nan, 1.0]])]) == 0


def test_the_account_of_merges_by_hand(monkeypatch):
    """Of the first release's two true merges, 1 into 0 and 5 into 0, the second is lost; 3 into 2 is false now."""
    seconds = np.array([1, 1, 1, 7, 1, 1]) / 1000
    monkeypatch.setattr(equivalence, "by_function", lambda found: equivalence.Merges([(1, 0), (3, 2)], seconds))
    monkeypatch.setattr(equivalence, "by_digest", lambda found: equivalence.Merges([(1, 0), (4, 2), (5, 0)], seconds))
    distances = {(1, 0): 1e-6, (3, 2): 0.5, (4, 2): 0.9, (5, 0): 2e-5}
    monkeypatch.setattr(equivalence, "judged", lambda found, merges, judges: {m: distances[m] for m in merges})
    console = Console(width=60, record=True, file=io.StringIO())
    equivalence._report(console, "some", 1234, list("abcdef"), [])
    assert console.export_text().splitlines() == [
        "",
        "some: 1,234 equations, 6 different programs",
        "  merged: 2, 1 of them falsely",
        "  by the first release: 3, 1 of them falsely",
        "  of the 2 true ones of these 1 are kept (50.0%)",
        "  processor ms a proposal: mean 2.00, median 1.00, 99 % below 6.70; of a duplicate 4.00",
        "  false merge (5.0e-01): d  ||  c",
        "  lost (2.0e-05): f  ||  a",
    ]


def test_without_merges_nothing_is_kept_or_false_and_no_duplicate_took_time(monkeypatch):
    none = equivalence.Merges([], np.array([0.001, 0.003]))
    monkeypatch.setattr(equivalence, "by_function", lambda found: none)
    monkeypatch.setattr(equivalence, "by_digest", lambda found: none)
    console = Console(width=200, record=True, file=io.StringIO())
    equivalence._report(console, "two", 2, list("ab"), [])
    assert console.export_text().splitlines()[2:] == [
        "  merged: 0, 0 of them falsely",
        "  by the first release: 0, 0 of them falsely",
        "  of the 0 true ones of these 0 are kept (0.0%)",
        "  processor ms a proposal: mean 2.00, median 2.00, 99 % below 2.98; of a duplicate 0.00",
    ]


def test_a_merge_is_false_above_the_difference_that_counts_and_true_at_it():
    at = networks.DIFFERENT
    now, first = equivalence.Merges([(1, 0), (2, 0)], None), equivalence.Merges([(2, 0), (3, 1), (4, 1)], None)
    found = equivalence.verdict(now, first, {(1, 0): at, (2, 0): 2 * at, (3, 1): at, (4, 1): 1.0})
    assert found == equivalence.Verdict([(2, 0)], [(1, 0)], [(2, 0), (4, 1)], [(3, 1)], [(3, 1)])


class Letters:
    """Duplicates by letter, whether small or large."""

    def __init__(self):
        self.stored = {}

    def key(self, text):
        return text.lower()

    def find(self, text, key):
        return self.stored.get(key)

    def add(self, proposal):
        self.stored[proposal.key] = proposal.id


def test_merges_are_with_the_first_of_its_kind_and_each_equations_time_is_taken(monkeypatch):
    found, looks = ["a", "b", "A", "B", "c", "a"], [0, 1, 1, 3, 3, 3, 4, 8, 8, 9, 10, 15]
    merges, took = [(2, 0), (3, 1), (5, 0)], [1, 2, 0, 4, 1, 5]
    monkeypatch.setattr(equivalence, "SameFunction", Letters)
    monkeypatch.setattr(equivalence, "digest", str.lower)
    for by in (equivalence.by_function, equivalence.by_digest):
        clock = iter(looks)
        monkeypatch.setattr(equivalence, "time", types.SimpleNamespace(process_time=lambda clock=clock: next(clock)))
        made = by(found)
        assert made.merges == merges and made.seconds.tolist() == took


def test_the_judges_go_on_until_one_finds_a_difference(monkeypatch):
    monkeypatch.setattr(networks, "distance", lambda one, other: abs(one - other))
    asked = []

    def judge(scale):
        return lambda equation: asked.append((equation, scale)) or equation * scale

    at = networks.DIFFERENT
    found = [0.0, at / 10, 0.0, 1.0, at]
    distances = equivalence.judged(found, [(1, 0), (4, 2), (3, 0), (1, 0)], [judge(2.0), judge(1.0)])
    assert distances == {(1, 0): pytest.approx(at / 5), (3, 0): 2.0, (4, 2): pytest.approx(2 * at)}
    references = [(0.0, 2.0), (0.0, 1.0)]
    assert asked == [*references, (at / 10, 2.0), (at / 10, 1.0), (1.0, 2.0), *references, (at, 2.0)]
    assert equivalence.judged([0.0, at], [(1, 0)], [judge(1.0), judge(3.0)]) == {(1, 0): pytest.approx(3 * at)}


def test_of_equations_that_differ_in_idle_genes_the_first_stays():
    texts = ["left(g, h)", "h", "left(g, relu(fa))", "g + h", "h"]
    assert [str(e) for e in equivalence.distinct([equation(t) for t in texts])] == ["left(g, h)", "h", "g + h"]


def test_mutations_are_those_of_each_chain_once_and_of_no_tree(monkeypatch):
    space = types.SimpleNamespace(
        max_parts=3, padded=lambda rng, chain: f"{chain} padded", neighbours=lambda padded: [padded + "!", padded + "?"]
    )
    monkeypatch.setattr(equivalence, "SearchSpace", lambda: space)
    monkeypatch.setattr(equivalence, "feasible", lambda text: not text.endswith("?"))
    tree = "(b_next @ W.T) * dh * relu(g + h) * relu(fa + h)"
    monkeypatch.setattr(equivalence, "NAMED", {"tree": tree, "one": "fa", "two": "fa", "three": "h"})
    fa, h = (f"{equation(text)} padded" for text in ("fa", "h"))
    assert equivalence.mutations(["tree", "one", "two", "three"]) == [fa, f"{fa}!", h, f"{h}!"]


@pytest.mark.parametrize("arguments, told", [
    (("--equations=3", "--seed=7"), [("random equations of seed 7", 3, 2), ("named rules and their single mutations", 4, 3)]),
    (("--equations=0",), [("named rules and their single mutations", 4, 3)]),
    (("--equations=1", "--nomutations"), [("random equations of seed 1", 1, 0)]),
])  # fmt: skip
def test_the_command_reports_on_what_it_is_asked_for(given, monkeypatch, arguments, told):
    reported, consoles = [], []

    def console(width):
        consoles.append(Console(width=width, record=True, file=io.StringIO()))
        return consoles[-1]

    monkeypatch.setattr(equivalence, "configure_jax", lambda: None)
    monkeypatch.setattr(equivalence, "versions", lambda: {"jax": "1", "cores": "2"})
    monkeypatch.setattr(equivalence, "Console", console)
    monkeypatch.setattr(networks, "Signals", lambda network: f"judge of {network.model}")
    monkeypatch.setattr(equivalence, "random_equations", lambda count, seed: [seed] * count)
    monkeypatch.setattr(equivalence, "mutations", lambda: list("abcd"))
    monkeypatch.setattr(equivalence, "distinct", lambda drawn: drawn[1:])
    monkeypatch.setattr(
        equivalence,
        "_report",
        lambda console, name, drawn, found, judges: reported.append((name, drawn, len(found), judges)),
    )
    given(equivalence, *arguments)
    equivalence.main([])
    judges = [f"judge of {network.model}" for network in networks.NETWORKS]
    assert reported == [(*each, judges) for each in told] and consoles[0].width == 150
    lines = consoles[0].export_text().splitlines()
    assert lines[0] == "jax 1, cores 2" and lines[1:] == [f"judge: {network}" for network in networks.NETWORKS]


def test_the_flags_and_their_bounds(given):
    values = given(equivalence)
    assert (values.equations, values.seed, values.mutations) == (20_000, 1, True)
    with pytest.raises(flags.IllegalFlagValueError):
        values(["", "--equations=-1"])


def test_merges_are_true_and_what_the_first_release_truly_merged_is_kept(judge):
    """At a small size and on one network; `python -m bpevo.bench.equivalence` does it at the real one.

    A network of this size tells fewer rules apart than one of any size does, so a few more seem lost.
    """
    found = equivalence.distinct([*engines.equations(500, 11), *equivalence.mutations(["a1_sgd_1", "a1_sgd_3"])])
    now, first = equivalence.by_function(found), equivalence.by_digest(found)
    verdict = equivalence.verdict(now, first, equivalence.judged(found, now.merges + first.merges, [judge]))
    assert [(str(found[i]), str(found[j])) for i, j in verdict.false] == []
    assert len(verdict.true) > 20 and len(verdict.first_false) > 5  # the judge does find different ones
    assert len(verdict.lost) < 0.2 * len(verdict.first_true)


def test_the_distance_of_signals_is_relative_to_the_larger_one_and_the_largest_over_units_and_steps():
    def signals(*steps):
        return np.array(steps, np.float32)[:, None]

    near = [signals([3.0, 4.0], [0.0, 0.0])], [signals([3.0, 4.0], [0.0, 0.0])]
    assert networks.distance(*near) == 0
    assert networks.distance(near[0], [signals([3.0, 1.0], [0.0, 0.0])]) == pytest.approx(3 / 5)
    assert networks.distance([signals([3.0, 1.0], [0.0, 0.0])], near[0]) == pytest.approx(3 / 5)
    assert networks.distance(near[0], [signals([3.0, 4.0], [0.0, 0.1])]) == 1
    wild = [signals([np.inf, np.nan, -np.inf, 3.0])]
    assert networks.distance(wild, wild) == 0
    assert networks.distance(wild, [signals([np.inf, np.nan, np.inf, 3.0])]) == 1
    both = [*near[0], signals([1.0, 0.0])], [*near[1], signals([1.0, 1.0])]
    assert networks.distance(*both) == pytest.approx(2**-0.5)
