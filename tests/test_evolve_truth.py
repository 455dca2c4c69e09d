"""One truth: a rule on plain Flax networks gives the numbers of bpevo.models and of the NumPy oracle."""

import functools
import re
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import chains
from test_models import PlainMLP, PlainWRN

from bpevo import layers, models, rules
from bpevo.layers import evaluation, modules
from bpevo.layers.evolve import evolve

CLASSES, STEPS = 4, 2
SMALLEST = tuple(u for u in rules.UNARIES if u.endswith("_ninf"))  # they divide by what may be rounding alone
NAMES = [n for n in rules.NAMED if not n.endswith("baseline")]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def largest(tree):
    return max(float(np.max(np.abs(np.where(np.isfinite(x), x, 0)), initial=0)) for x in jax.tree.leaves(tree))


def assert_close(actual, expected, tolerance, what, spread=0.0):
    """Of one tree, relative to its largest entry and to its `spread`; entries that are not finite are so in both."""
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        message = f"{what} {jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * largest(expected) + spread, err_msg=message)


def layer_state(state):
    """A state of `evolve` as the collections of bpevo.layers, and the noise keys of this step by layer."""
    collections: dict = {layers.OVERWRITE: {}, layers.FEEDBACK: {}}
    keys = {}
    for path, entry in state.items():
        layer = path.removeprefix("params/").removesuffix("/kernel")
        collections[layers.OVERWRITE][layer] = {"rule": entry["rule"]["rule"]}
        collections[layers.FEEDBACK][layer] = dict(entry["constants"])
        keys[layer] = jax.random.split(evaluation._key(entry["rule"]["noise"]))[0]
    return collections, keys


def both(plain, ours):
    """One compiled step of a program on both networks: gradients and next states."""

    def step(program, params, others, state, x, labels):
        rule = rules.InterpretedRule(program)
        net = evolve(functools.partial(plain.apply, mutable=["batch_stats"]), rule)

        def transformed(params, state):
            return cross_entropy(net({"params": params, **others}, state, x)[0], labels)

        def layered(params, collections, keys):
            noise = mock.patch.object(modules._RuleLayer, "make_rng", lambda self, _: keys[self.path[-1]])
            with noise:
                variables = {"params": params, **others, **collections}
                logits, _ = ours(rule).apply(variables, x, mutable=["batch_stats"], rngs={"noise": jax.random.key(0)})
            return cross_entropy(logits, labels)

        collections, keys = layer_state(state)
        gradient, following = jax.grad(transformed, (0, 1))(params, state)
        expected, renewed = jax.grad(layered, (0, 1))(params, collections, keys)
        return gradient, expected, following, renewed

    return jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})


class Network:
    """A plain network and ours, with parameters, data and one compiled step for every chain."""

    def __init__(self, plain, ours, shape, batch):
        self.plain, self.labels = plain, jnp.arange(batch) % CLASSES
        self.images = [normal(1 + i, batch, *shape) for i in range(STEPS)]
        variables = jax.eval_shape(plain.init, jax.random.key(0), self.images[0])
        shapes = dict(variables).pop("params")
        self.params = jax.tree.map(lambda p: 0.3 * normal(p.size, *p.shape) + 0.5 * (len(p.shape) == 1), shapes)
        self.others = {
            k: jax.tree.map(lambda v: jnp.full(v.shape, 0.5), v) for k, v in variables.items() if k != "params"
        }
        self.step = both(plain, ours)
        blank = rules.InterpretedRule(rules.blank_program())
        net = evolve(functools.partial(plain.apply, mutable=["batch_stats"]), blank)
        self.state = net.init(jax.random.key(5), {"params": self.params, **self.others}, self.images[0])

    def check(self, equation, tolerance):
        """Rounding may be amplified by a chain (1 / mean(hp)): as a relative change of the images by 4e-6."""
        program, state = rules.assemble(equation), self.state
        for x in self.images:
            step = functools.partial(self.step, program, self.params, self.others, state)
            gradient, expected, state, renewed = step(x, self.labels)
            actual = gradient, layer_state(state)[0][layers.OVERWRITE]
            wanted, near = (expected, renewed[layers.OVERWRITE]), None
            if tolerance > 1e-5:
                _, near, _, renewed = step(x * (1 + 1e-6 * jnp.sign(normal(9, *x.shape))), self.labels)
                near = near, renewed[layers.OVERWRITE]
            for i in range(2):
                spread = 0.0 if near is None else 4 * largest(jax.tree.map(jnp.subtract, near[i], wanted[i]))
                assert_close(actual[i], wanted[i], tolerance, str(equation), spread)


@pytest.fixture(scope="module")
def mlp():
    return Network(PlainMLP((6, 5)), lambda rule: models.MLP((6, 5), CLASSES, rule), (3, 2), 8)


@pytest.fixture(scope="module")
def wide_resnet():
    return Network(PlainWRN(10, 1), lambda rule: models.WideResNet(10, 1, CLASSES, rule), (8, 8, 1), 2)


@pytest.mark.parametrize("name", NAMES)
def test_plain_mlp_has_the_numbers_of_ours_for_named_rules(mlp, name):
    mlp.check(rules.parse(rules.NAMED[name]).to_equation(), 1e-5)


@hypothesis.given(equation=chains())
@hypothesis.settings(max_examples=60)
def test_plain_mlp_has_the_numbers_of_ours_for_random_chains(mlp, equation):
    mlp.check(equation, 1e-4)


@pytest.mark.slow
def test_plain_wide_resnet_has_the_numbers_of_ours_for_named_rules(wide_resnet):
    for name in NAMES:
        wide_resnet.check(rules.parse(rules.NAMED[name]).to_equation(), 1e-4)


@pytest.mark.slow
@hypothesis.given(equation=chains(exclude=SMALLEST))
@hypothesis.settings(max_examples=30)
def test_plain_wide_resnet_has_the_numbers_of_ours_for_random_chains(wide_resnet, equation):
    wide_resnet.check(equation, 1e-4)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA's CPU backend needs")
def test_convolutions_of_plain_networks_are_fast_in_loops():
    """XLA's CPU backend runs a convolution inside a loop fast only if it is a canonical forward convolution."""
    plain, images, labels = PlainWRN(10, 1), normal(1, 2, 4, 16, 16, 3), jnp.arange(4) % CLASSES
    variables = jax.eval_shape(plain.init, jax.random.key(0), images[0])
    net = evolve(functools.partial(plain.apply, mutable=["batch_stats"]), "unit_fro(g)")
    state = jax.eval_shape(net.init, jax.random.key(0), variables, images[0])

    def step(variables, state, x):
        loss = lambda *args: cross_entropy(net(*args, x)[0], labels)  # noqa: E731
        return jax.grad(loss, (0, 1))(variables, state)

    loop = jax.jit(lambda v, s, xs: jax.lax.scan(lambda c, x: (c, step(v, s, x)), 0, xs)[1])
    convolutions = re.findall(r"= \S+ convolution\(.*", loop.lower(variables, state, images).compile().as_text())
    assert len(convolutions) >= 12
    for line in convolutions:
        assert "dim_labels=b01f_01io->b01f" in line and "group_count" not in line, line
