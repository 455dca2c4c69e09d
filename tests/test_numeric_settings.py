"""Settings of jax that a user may have switched on: layers work under them, and importing the package changes none."""

import contextlib
import functools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpevo import layers, models, rules

SETTINGS = {
    "x64": functools.partial(jax.enable_x64, True),
    "strict dtypes": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "strict ranks": functools.partial(jax.numpy_rank_promotion, "raise"),
}
TEXT = "(drop(bn(dfa) + whiten(g), 0.3)) * relu(std(dh))"  # drawn constants, noise, statistics, a carrier
FAST = {"xla_backend_optimization_level": 0}  # to compile
IMAGES = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype(np.float32)


class Small(nn.Module):
    """A convolution of each kind: the stem, a unit, a head."""

    rule: object

    @nn.compact
    def __call__(self, x):
        carrier = layers.carrier(x.shape[0], 3)
        x, carrier = layers.Conv(3, activation=None)(x, carrier)
        x, carrier = layers.Conv(3, strides=2, rule=self.rule)(x, carrier)
        x, carrier = layers.PooledDense(3, self.rule)(x, carrier)
        return x + carrier


NETS = {
    "compiled mlp": (functools.partial(models.MLP, (6, 5), 3), rules.compile),
    "compiled convolutions": (Small, rules.compile),
    "interpreted mlp": (
        functools.partial(models.MLP, (6,), 3),
        lambda t: rules.InterpretedRule.of(rules.parse(t).to_equation()),
    ),
}


def two_steps(name):
    """Initial variables, and gradients and states of two steps."""
    net, rule = NETS[name]
    net = net(rule=rule(TEXT))
    keys = {"params": jax.random.key(0), "feedback": jax.random.key(1)}
    variables = jax.jit(net.init, compiler_options=FAST)(keys, IMAGES)
    params, state = variables["params"], variables[layers.OVERWRITE]
    fixed = {k: v for k, v in variables.items() if k not in ("params", layers.OVERWRITE)}

    def loss(params, state):
        collections = {"params": params, layers.OVERWRITE: state, **fixed}
        logits = net.apply(collections, IMAGES, mutable=["batch_stats"], rngs={"noise": jax.random.key(2)})[0]
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    step = jax.jit(jax.grad(loss, (0, 1)), compiler_options=FAST)
    _, state = step(params, state)
    return variables, step(params, state)


plain = functools.cache(two_steps)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", NETS)
def test_networks_train_to_the_same_bits_in_float32_under(setting, name):
    expected = plain(name)
    with SETTINGS[setting]():
        actual = two_steps(name)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype == jnp.float32
        np.testing.assert_array_equal(a, e)


class Ordinary(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        return nn.Dense(3)(nn.relu(nn.Conv(3, (3, 3), 2)(x)).mean((1, 2)))


def evolved_step():
    """Parameters' gradients and the next state of an ordinary Flax network under a rule."""
    net = layers.evolve(Ordinary().apply, TEXT)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), Ordinary().init(jax.random.key(0), IMAGES))
    state = jax.jit(net.init, compiler_options=FAST)(jax.random.key(1), params, IMAGES)
    loss = lambda p, s: -jnp.mean(jax.nn.log_softmax(net(p, s, IMAGES))[:, 0])  # noqa: E731
    return jax.jit(jax.grad(loss, (0, 1)), compiler_options=FAST)(params, state)


def test_evolved_networks_train_to_the_same_bits_in_float32_under_every_setting():
    expected = evolved_step()
    for setting in SETTINGS.values():
        with setting():
            actual = evolved_step()
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert a.dtype == e.dtype == jnp.float32
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("setting", [None, *SETTINGS])
def test_the_compute_dtype_is_that_of_floating_inputs_and_else_float32(setting):
    layer = layers.Dense(3, "bn(g)")
    with SETTINGS[setting]() if setting else contextlib.nullcontext():
        for given, computed in (
            ("float32", "float32"),
            ("bfloat16", "bfloat16"),
            ("int32", "float32"),
            ("uint8", "float32"),
        ):
            x = jnp.arange(8, dtype=given).reshape(2, 4)
            variables = layer.init(jax.random.key(0), x)
            y = layer.apply(variables, x)
            assert y.dtype == computed and {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
            expected = jax.nn.relu(x.astype(computed)) @ variables["params"]["kernel"].astype(computed)
            np.testing.assert_allclose(np.float32(y), np.float32(expected), rtol=1e-2)


def test_under_x64_a_float64_network_gets_its_signal_in_float64_from_a_rule_in_float32():
    seen = []

    class Recorded:
        needs_noise, reads, equation_is_data = False, frozenset(), False

        def init(self, shapes):
            return {}

        def signal(self, unit, state):
            seen.extend(v.dtype for v in jax.tree.leaves(unit.values))
            return unit.backward(unit.values.b_next, unit.values.W) * unit.values.dh, state

    jax.tree_util.register_static(Recorded)
    with jax.enable_x64(True):
        x = jnp.linspace(-1, 1, 8, dtype=jnp.float64).reshape(2, 4)
        layer = layers.Dense(3, Recorded())
        variables = layer.init(jax.random.key(0), x)
        dx = jax.grad(lambda x: jnp.sum(layer.apply(variables, x)))(x)
        assert dx.dtype == jnp.float64 and set(seen) == {jnp.dtype("float32")}
        np.testing.assert_allclose(dx, variables["params"]["kernel"].sum(1) * (x > 0), rtol=1e-6)


def test_importing_the_package_changes_no_setting_of_jax():
    code = (
        "import jax, numpy; before = dict(jax.config.values), numpy.geterr(); "
        "import bpevo; [getattr(bpevo, room) for room in bpevo.__all__]; "
        "after = dict(jax.config.values), numpy.geterr(); "
        "assert before == after, {k for k in after[0] if before[0].get(k) != after[0][k]}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
