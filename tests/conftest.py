"""Shared by the tests of the language, the layers and the models: small units and random chains."""

# ruff: noqa: E402
import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import tempfile
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before jax loads: XLA prints pages about programs from its cache

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from absl import flags

from bpevo import rules
from bpevo.layers import convolution
from bpevo.layers.linear import ConvMap, DenseMap, Linear, PooledDenseMap
from bpevo.rules.equation import Argument, Part
from bpevo.rules.expression import BinaryNode, OperandNode

hypothesis.settings.register_profile(
    "bpevo", deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("bpevo")

MOST_KEPT = 2**30  # bytes of compiled programs; then the cache starts anew

# A shell's background jobs ignore SIGINT, nohup SIGHUP, and so would the searches that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config):
    """The tests and the commands that they start share one cache of compiled programs: a second run compiles little."""
    cache = config.cache.mkdir("compiled") if hasattr(config, "cache") else pathlib.Path(tempfile.mkdtemp())
    programs = cache / "bpevo" / "jax"  # where commands keep theirs
    first = not hasattr(config, "workerinput")  # not one of xdist's
    if first and programs.exists() and sum(p.stat().st_size for p in programs.iterdir()) > MOST_KEPT:
        shutil.rmtree(programs)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    for name, value in {
        "jax_compilation_cache_dir": str(programs),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_modifyitems(config, items):
    """What takes long runs only when it is asked for by its marker."""
    reasons = {
        "soak": "an hour: run with -m soak -s -n 0",
        "long": "minutes: run with -m long -n 0",
        "cluster": "minutes: run with -m cluster -n 0",
        "slow": "a minute: run with -m slow",
    }
    for name, reason in reasons.items():
        for item in items:
            if name not in config.option.markexpr and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def given(monkeypatch):
    """Flags that a command's `define_flags` defines, with the values that arguments give them; its own from then on."""

    def parsed(command, *arguments: str) -> flags.FlagValues:
        values = flags.FlagValues()
        define = {n: functools.partial(getattr(flags, n), flag_values=values) for n in dir(flags) if n[:7] == "DEFINE_"}
        monkeypatch.setattr(command, "flags", types.SimpleNamespace(FLAGS=values, **define))
        command.define_flags()
        values(["command", *arguments])
        return values

    return parsed


STEPS = 3


class PooledUnit(oracle.Unit):
    """The oracle's unit whose linear map is the mean over positions, then a matrix product."""

    def linear(self, kernel):
        positions = np.shape(self.hp)[1] * np.shape(self.hp)[2]
        return np.tile(kernel, (positions, 1)) / positions


@dataclasses.dataclass
class UnitSteps:
    """One unit with the activation ReLU over three steps of training: float32 arrays with a leading axis of steps."""

    values: dict[str, np.ndarray]
    linear: Linear

    def __post_init__(self):
        self.forward, self.backward = jax.jit(self.linear.forward), jax.jit(self.linear.input_gradient)  # traced once

    def unit(self, step: int, key=None) -> rules.Unit:
        return self.unit_of({name: v[step] for name, v in self.values.items()}, key)

    def unit_of(self, values, key=None) -> rules.Unit:
        return rules.Unit(values_of(values), self.forward, self.backward, key)

    def oracle(self, step: int) -> oracle.Unit:
        geometry, kind = {}, PooledUnit if isinstance(self.linear, PooledDenseMap) else oracle.Unit
        if isinstance(self.linear, ConvMap):
            geometry = {"strides": self.linear.window.strides, "padding": self.linear.window.padding}
        return kind(**{name: v[step] for name, v in self.values.items()}, **geometry)

    @property
    def shapes(self) -> rules.UnitShapes:
        return self.unit(0).shapes

    def run(self, rule: rules.Rule, key=None, perturbed: float = 0.0) -> np.ndarray:
        """The rule's signals over the steps, without jit; optionally with inputs changed by that relative error."""
        state, signals = rule.init(self.shapes), []
        random = np.random.default_rng(1)
        for step in range(STEPS):
            values = {name: v[step] for name, v in self.values.items()}
            noise = {n: (1 + perturbed * random.choice([-1, 1], v.shape)).astype(np.float32) for n, v in values.items()}
            values = {name: v * noise[name] for name, v in values.items()}
            fresh = None if key is None else jax.random.fold_in(key, step)
            signal, state = rule.signal(self.unit_of(values, fresh), state)
            signals.append(signal)
        return np.stack(signals)


def values_of(arrays) -> rules.Values:
    """The Values of a mapping from operands to arrays."""
    arrays = {name: jnp.asarray(v) for name, v in arrays.items()}
    constants = {name: arrays.pop(name) for name in list(arrays) if rules.OPERANDS[name].draw}
    return rules.Values(constants=constants, **arrays)


def unit_steps(x_shape, w_shape, strides=None, padding=None, classes=7, seed=0) -> UnitSteps:
    """Every column of hp has both signs in every step, so that no column of h or dh is constant."""
    random = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * random.normal(size=shape)).astype(np.float32)

    if strides is None:
        linear = DenseMap() if len(x_shape) == 2 else PooledDenseMap(x_shape[1:3])
    else:
        window = convolution.window(x_shape[1:3], w_shape[:2], strides, padding)
        linear = ConvMap(x_shape[1:3], w_shape[:2], window)
    hp = normal(STEPS, *x_shape)
    hp[:, 0], hp[:, 1] = np.abs(hp[:, 0]) + 0.1, -np.abs(hp[:, 1]) - 0.1
    w = normal(STEPS, *w_shape, scale=0.5)
    h = np.maximum(hp, 0)
    hp_next = np.stack([linear.forward(jnp.asarray(h[i]), jnp.asarray(w[i])) for i in range(STEPS)]) + np.float32(0.1)

    def fixed(x):
        return np.broadcast_to(x, (STEPS, *x.shape)).copy()

    values = {
        "hp": hp,
        "h": h,
        "dh": (hp > 0).astype(np.float32),
        "hp_next": hp_next,
        "b_next": normal(*hp_next.shape, scale=0.3),
        "b_L": normal(STEPS, x_shape[0], classes, scale=0.2),
        "W": w,
        "R": fixed(normal(*w_shape, scale=0.5)),
        "S": fixed(np.where(random.random(w_shape) < 0.5, 0.5, -0.5).astype(np.float32)),
        "R_L": fixed(normal(classes, *x_shape[1:], scale=classes**-0.5)),
    }
    return UnitSteps(values, linear)


GEOMETRIES = {
    "dense": ((5, 4), (4, 3)),
    "pooled": ((4, 3, 2, 5), (5, 3)),
    "conv_same": ((4, 4, 3, 2), (3, 3, 2, 3), (1, 1), "SAME"),
    "conv_stride_2": ((4, 5, 4, 2), (3, 3, 2, 3), (2, 2), "SAME"),
    "conv_valid": ((4, 5, 4, 2), (3, 3, 2, 3), (1, 1), "VALID"),
    "conv_1x1_stride_2": ((4, 5, 4, 2), (1, 1, 2, 3), (2, 2), "SAME"),
}


@pytest.fixture(scope="session")
def units() -> dict[str, UnitSteps]:
    return {name: unit_steps(*geometry) for name, geometry in GEOMETRIES.items()}


ALL_OPERANDS = [OperandNode(name, statistic) for name in rules.OPERANDS for statistic in ("", *rules.STATISTICS)]
ALL_UNARIES = [("identity", 0.0)] + [
    (u.name, float(np.float32(c))) for u in rules.UNARIES.values() for c in (u.constants or (0.0,))
]


@st.composite
def chains(draw, max_parts: int = 3, exclude: tuple[str, ...] = ()) -> rules.Equation:
    """Feasible random chains of 1 to 3 parts over the full flat lists of components."""
    unaries = [u for u in ALL_UNARIES if u[0] not in exclude]
    parts, result = [], None
    for i in range(draw(st.integers(1, max_parts))):
        left = Argument(None if i else draw(st.sampled_from(ALL_OPERANDS)), *draw(st.sampled_from(unaries)))
        binary = draw(st.sampled_from(sorted(rules.BINARIES)))
        unary = draw(st.sampled_from(unaries))
        fitting = []
        for operand in ALL_OPERANDS:
            part = Part(binary, left, Argument(operand, *unary))
            try:
                _ = expression_of(part, result).type
            except rules.InfeasibleEquation:
                continue
            fitting.append(part)
        hypothesis.assume(fitting)
        parts.append(draw(st.sampled_from(fitting)))
        result = expression_of(parts[-1], result)
    equation = rules.Equation.from_parts(parts, max_parts)
    try:
        return equation.check()
    except rules.InfeasibleEquation:
        hypothesis.reject()


def expression_of(part: Part, previous):
    return BinaryNode(part.binary, part.left.expression(previous), part.right.expression())
