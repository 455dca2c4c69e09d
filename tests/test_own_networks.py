"""Networks of one's own by `--model=package.module:factory`: the numbers of our own, and one clear error for each fault."""

import contextlib
import dataclasses
import functools
import sys
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_networks
import pytest
from flax import nnx
from test_training import CLASSES, PARTS, SEED, SPLIT, make_task, parameters, run, training

from bpevo import data, layers, models
from bpevo.rules import InterpretedRule, blank_program
from bpevo.runs import RunDatabase, RunError
from bpevo.training import Trainer, TrainingSettings, to_examples

SETTINGS = TrainingSettings(model="mlp-6-6", weight_decay=0.1, batch_size=10, epochs=2)
TEXTS = (
    "g",
    "unit_fro(g) + (0.5*h)",
    "whiten(g) * clip(bn(h), 0.5)",
    "fa + bn(dfa)",
    "((abs(S) * W) @ b_next.T).T * dh",
)


def trained(model: str, texts=TEXTS) -> tuple[list, list]:
    settings = dataclasses.replace(SETTINGS, model=model)
    options = {"capacity": len(texts), "max_parts": PARTS, "seed": SEED, "devices": jax.devices()[:1]}
    trainer = Trainer(make_task(settings, measure_alignment=True), to_examples(SPLIT, 10), **options)
    curves = run(trainer, {i: training(text, 0.1) for i, text in enumerate(texts)})
    return [curves[i] for i in range(len(texts))], [parameters(trainer, i) for i in range(len(texts))]


@contextlib.contextmanager
def constants_of(model: str):
    """bpevo.evolve gets the R, S and R_L that the layers of a model of ours draw in the trainings of `trained`."""
    task, key = make_task(dataclasses.replace(SETTINGS, model=model)), jax.random.fold_in(jax.random.key(SEED), 0)
    drawn = task._variables(InterpretedRule(blank_program(PARTS)), key, jnp.zeros((1, 4, 4, 1)))[layers.FEEDBACK]
    copied = lambda key, where, *_: dict(drawn[where.removesuffix("/kernel")])  # noqa: E731
    with mock.patch.object(sys.modules["bpevo.layers.evolve"], "draw_constants", copied):
        yield


@pytest.mark.parametrize(
    "own, ours", [("own_networks:MLP", "mlp-6-6"), pytest.param("own_networks:WRN", "wrn-10-1", marks=pytest.mark.long)]
)
def test_a_plain_flax_network_gives_the_numbers_of_models(own, ours):
    """In the compiled slots with interpreted rules: losses, accuracies, every parameter and the angles of signals."""
    with constants_of(ours):
        curves, found = trained(own)
    expected_curves, expected = trained(ours)
    for curve, theirs in zip(curves, expected_curves, strict=True):
        np.testing.assert_allclose([e.train_loss for e in curve], [e.train_loss for e in theirs], rtol=1e-4)
        np.testing.assert_allclose([e.eval_loss for e in curve], [e.eval_loss for e in theirs], rtol=1e-3)
        for e, their in zip(curve, theirs, strict=True):
            assert {name.removesuffix("/kernel"): None for name in e.alignment} == dict.fromkeys(their.alignment)
            np.testing.assert_allclose(list(e.alignment.values()), list(their.alignment.values()), rtol=1e-2, atol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)
    last = [p["Dense_0"]["kernel"] for p in found]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(last) for b in last[:i])  # the rules differ


def test_an_nnx_network_trains_in_the_slots_as_by_hand():
    """With backprop as the rule: the user's module, autodiff and plain SGD with weight decay on kernels."""
    (curve, other), (found, fa) = trained("own_networks:steady", ("g", "fa"))
    task = make_task(dataclasses.replace(SETTINGS, model="own_networks:steady"))
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    start = task._variables(InterpretedRule(blank_program(PARTS)), key, jnp.zeros((1, 4, 4, 1)))["params"]
    model = own_networks.steady(CLASSES, nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(state, start)
    nnx.update(model, state)
    model.train()
    images = data.normalise(SPLIT.train_images, data.per_pixel_mean(SPLIT.train_images))

    @nnx.jit
    def step(model, x, labels):
        loss = lambda m: optax.softmax_cross_entropy_with_integer_labels(m(x), labels).mean()  # noqa: E731
        value, gradient = nnx.value_and_grad(loss)(model)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        decayed = lambda path, p, g: p - 0.1 * (g + (0.1 * p if path[-1].key == "kernel" else 0))  # noqa: E731
        params = jax.tree.map_with_path(decayed, params, nnx.to_pure_dict(gradient))
        state = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(state, params)
        nnx.update(model, state)
        return value

    for epoch in range(SETTINGS.epochs):
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2), epoch), 50).reshape(5, 10)
        losses = [step(model, images[i], SPLIT.train_labels[i]) for i in order]
        np.testing.assert_allclose(curve[epoch].train_loss, np.mean(losses), rtol=1e-5)
    expected = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), dict(found), expected)
    assert np.abs(fa["first"]["kernel"] - found["first"]["kernel"]).max() > 1e-3 and np.isfinite(other[-1].train_loss)


@pytest.mark.parametrize("model", ["own_networks:gelu", "own_networks:NNX"])
def test_running_averages_dropout_and_seeds_reach_the_users_network(model):
    """Averages move in training only; dropout depends on the key; another seed starts from other weights."""
    network = models.by_name(model, CLASSES, InterpretedRule(blank_program(1)))
    x = jax.random.normal(jax.random.key(0), (12, 4, 4, 1)) + 2
    first, other = (
        network.init({"params": jax.random.key(i), "feedback": jax.random.key(9)}, x[:1], train=False) for i in (1, 2)
    )
    assert not any(np.array_equal(a, b) for a, b in zip(*map(_kernels, (first, other)), strict=True))

    def logits(train, key):
        out, updated = network.apply(
            first, x, train=train, mutable=["batch_stats"], rngs={"noise": jax.random.key(key)}
        )
        return out, updated.get("batch_stats", first["batch_stats"])

    (a, stats), (b, _), (c, kept) = logits(True, 3), logits(True, 4), logits(False, 3)
    assert a.shape == (12, CLASSES) and a.dtype == jnp.float32 and not np.allclose(a, b)
    moved = [
        float(jnp.abs(p - q).max()) for p, q in zip(*map(jax.tree.leaves, (stats, first["batch_stats"])), strict=True)
    ]
    assert max(moved) > 0.01
    jax.tree.map(np.testing.assert_array_equal, kept, first["batch_stats"])
    np.testing.assert_array_equal(c, logits(False, 4)[0])  # no dropout
    standard = models.by_name(model, CLASSES).apply(first, x, train=False, mutable=False)
    np.testing.assert_allclose(c, standard, rtol=1e-5, atol=1e-6)


def _kernels(variables):
    return [p for p in jax.tree.leaves(variables["params"]) if p.ndim > 1]


def test_the_fingerprint_follows_the_parameters_shapes():
    shape = (4, 4, 1)
    first = models.fingerprint("own_networks:gelu", 4, shape)
    assert first == models.fingerprint("own_networks:gelu", 4, shape)
    assert set(first) == {"model_crc32", "model_code_crc32"}
    assert models.fingerprint("own_networks:gelu", 5, shape) != first
    assert models.fingerprint("own_networks:NNX", 4, shape) != first
    assert models.fingerprint("mlp-8", 4, shape) == {}


def test_the_fingerprint_follows_what_is_computed():
    shape, first = (4, 4, 1), models.fingerprint("own_networks:gelu", 4, (4, 4, 1))
    initial = lambda *_: nn.initializers.constant(0.5)  # noqa: E731
    for name, other in (("gelu", nn.relu), ("BatchNorm", functools.partial(nn.BatchNorm, momentum=0.5))):
        with mock.patch.object(own_networks.nn, name, other):
            changed = models.fingerprint("own_networks:gelu", 4, shape)
        assert (
            changed["model_crc32"] == first["model_crc32"] and changed["model_code_crc32"] != first["model_code_crc32"]
        )
    before = models.fingerprint("own_networks:MLP", 4, shape)
    with mock.patch.object(own_networks.nn.initializers, "normal", initial):
        after = models.fingerprint("own_networks:MLP", 4, shape)
    assert after["model_crc32"] == before["model_crc32"] and after != before


def test_a_networks_trace_is_compared_within_one_release_of_jax(tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings({"model_code_crc32": 1}, {"jax": "1", "flax": "1"}, ())
        with pytest.raises(RunError, match="model_code_crc32: 1 in the run, 2 now"):
            database.check_settings({"model_code_crc32": 2}, {"jax": "1", "flax": "1"}, ())
        database.check_settings({"model_code_crc32": 2}, {"jax": "2", "flax": "1"}, ())


@pytest.mark.parametrize(
    "name, message",
    [
        ("own_networks:gelus", "the module own_networks has no gelus"),
        ("own_network:gelu", "there is no module own_network; start where"),
        ("own networks:gelu", "write package.module:name"),
        (":gelu", "write package.module:name"),
        ("own_networks:raises", "fails: RuntimeError: no weights found .*own_networks.py, line"),
        ("own_networks:nothing", "returns a int, no Linen or NNX module"),
        ("own_networks:instance", "is a GELU: name a function"),
        ("own_networks:unseeded", "needs an argument rngs"),
        ("own_networks:numpy", "fails when it is traced on .*TracerArrayConversionError.*own_networks.py, line"),
        ("own_networks:integers", "its parameter shift is int32"),
        ("own_networks:scalar", r"returns float32 \[\] for float32 \[3, 4, 4, 1\], no logits \[3, 4\]"),
        ("own_networks:features", r"returns float32 \[3, 7\]"),
        ("own_networks:whole", r"returns int32 \[3, 4\] for float32 \[3, 4, 4, 1\], no logits \[3, 4\]: one number"),
        ("own_networks:pair", "returns tuple for float32"),
        ("own_networks:Growing", r"keeps beside parameters \(batch_stats\) changes its form while it trains"),
        ("own_networks.deeper:gelu", "there is no module own_networks.deeper; start where"),
        ("no_such.deeper:gelu", "there is no module no_such; start where"),
        ("builtins:int", "returns a int, no Linen or NNX module"),
        ("own_networks:__name__", "is a str: name a function that makes a network"),
    ],
)
def test_what_is_no_network_gets_one_clear_error(name, message):
    with pytest.raises(ValueError, match=message) as error:
        models.fingerprint(name, 4, (4, 4, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line, message",
    [
        ("raise OSError('no weights')", "cannot be imported: OSError: no weights .*broken_networks.py, line 2"),
        (
            "raise ModuleNotFoundError('odd')",
            "cannot be imported: ModuleNotFoundError: odd .*broken_networks.py, line 2",
        ),
        ("import no_such_library", "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_the_reason(tmp_path, monkeypatch, line, message):
    (tmp_path / "broken_networks.py").write_text(f"\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"--model=broken_networks:build: broken_networks {message}"):
        models.fingerprint("broken_networks:build", 4, (4, 4, 1))


@pytest.mark.parametrize(
    "name, message",
    [
        ("own_networks:one_layer", "has no unit"),
        (
            "own_networks:wide",
            r"R_L of the unit layers_2/kernel would map the logits \[2, 4\] to hp \[2, 21000000\]: 84 mil",
        ),
    ],
)
def test_a_network_whose_units_take_no_rule_is_refused(name, message):
    task = make_task(dataclasses.replace(SETTINGS, model=name))
    with pytest.raises(ValueError, match=message):
        task.blank(InterpretedRule(blank_program(1)), (4, 4, 1))


def test_bfloat16_needs_a_factory_that_takes_the_dtype():
    with pytest.raises(ValueError, match="needs an argument dtype"):
        models.by_name("own_networks:gelu", 4, None, jnp.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        network = models.by_name("own_networks:typed", 3, None, dtype)
        x = jnp.ones((2, 4, 4, 1))
        variables = network.init({"params": jax.random.key(0)}, x)
        assert network.network.apply(False, variables["params"], {}, x, jax.random.key(0))[0].dtype == dtype
        assert network.apply(variables, x, train=False, mutable=False).dtype == jnp.float32
    assert models.by_name("own_networks:gelu", 4, None, jnp.float32).classes == 4


def test_networks_are_told_whether_they_train_by_the_names_that_they_know():
    x = jnp.ones((2, 4, 4, 1))
    linen, other = (models.by_name(f"own_networks:{name}", 4) for name in ("Told", "ToldNNX"))
    variables = linen.init({"params": jax.random.key(0)}, x)
    assert variables["batch_stats"] == {}  # what it sows is no state
    (told, after), (evaluated, _) = (linen.apply(variables, x, train=train) for train in (True, False))
    assert told.tolist() == [[1, 1, 0, 0]] * 2 and evaluated.tolist() == [[0, 0, 1, 1]] * 2
    assert after == {"batch_stats": {}}
    variables = other.init({"params": jax.random.key(0)}, x)
    assert other.apply(variables, x, train=False, mutable=False).tolist() == [[0, 1, 0, 1]] * 2
    assert other.apply(variables, x, train=True, mutable=False).tolist() == [[0, 0, 0, 0]] * 2  # dropped


def test_an_error_is_told_by_its_first_line_and_the_users_last_line_that_led_to_it():
    from bpevo.models.importing import first_line

    assert first_line(ValueError("\n one\ntwo")) == "ValueError: one" and first_line(OSError()) == "OSError"
    assert first_line(ValueError("x" * 301)) == f"ValueError: {'x' * 300}"

    def deeper():
        np.linalg.inv(np.zeros((2, 2)))  # which raises in a library

    with pytest.raises(np.linalg.LinAlgError) as error:
        deeper()
    line = deeper.__code__.co_firstlineno + 1
    assert first_line(error.value) == f"LinAlgError: Singular matrix ({__file__}, line {line})"
