"""The machine on tiles as a CPU's loop and, interpreted, as kernels of a GPU and of a TPU: it agrees with specialised rules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import STEPS, UnitSteps

from bpevo import layers, rules
from bpevo.bench import sample
from bpevo.evolution import SearchSpace
from bpevo.rules import NAMED, Kernel, Operand, TiledRule, assemble, kernels, register, takes, tile_programs
from bpevo.rules import program as p
from bpevo.rules.loops import Loop
from bpevo.rules.tile_programs import made_of, reads_both_products, stored
from bpevo.rules.tiles import Layout, divisors, halves, joined, merged, nothing, uniform

KEY = jax.random.key(5)
SLOTS = 8
# On a GPU the batch of 5 is padded to 8 and tiles are of two features; on a TPU tiles of seven features do not divide all.
KERNELS = {
    ("gpu", "dense"): Kernel("gpu", True, 10),
    ("tpu", "conv_stride_2"): Kernel("tpu", True, 28),
    ("cpu", "dense"): Loop(),  # all of the unit is one tile
    ("cpu", "conv_stride_2"): Loop(28),
}


def equation(text: str) -> rules.Equation:
    return rules.resolve(text).to_equation()


@functools.cache
def kernel_signals(platform: str, geometry: str, steps: UnitSteps):
    """Stacked programs -> signals [SLOTS, STEPS, …]: one compiled function for every SLOTS equations."""

    def run(program):
        rule = TiledRule(program, KERNELS[platform, geometry])

        def step(state, inputs):
            index, values = inputs
            signal, state = rule.signal(steps.unit_of(values, jax.random.fold_in(KEY, index)), state)
            return state, signal

        return jax.lax.scan(step, rule.init(steps.shapes), (jnp.arange(STEPS), steps.values))[1]

    return jax.jit(functools.partial(jax.lax.map, run) if platform == "cpu" else jax.vmap(run))


def components() -> list[str]:
    """Every function of the language with each of its constants, every statistic and every operand of type X."""
    texts = [f"{name} * dh" for name in ("hp", "h", "gh", "g", "fah", "fa", "dfah", "dfa", "dh")]
    texts += [f"{statistic}({x}) + g" for statistic in rules.STATISTICS for x in ("g", "h", "dfa", "dh")]
    for u in rules.UNARIES.values():
        if u.structure != "transpose":
            texts += [u.spelling.format(x="g", c=f"({c})" if c < 0 else c) for c in u.constants or (0.0,)]
            if u.norm:  # of an average; of what is transposed; twice, so that one pass more is needed
                texts += [f"g + {u.name}(mean(gh))", f"{u.name}({u.name}(fa) - dfa)"]
    texts += [b.spelling.format(x="g", y="sgn(fa)") for b in rules.BINARIES.values() if b.structure != "product"]
    texts += ["mul_noise(mean(gh), 0.5) + g", "add_noise(drop(g, 0.3), 0.1)", "whiten(std(gh)) + whiten(g)"]
    texts += [name for name in sorted(set(NAMED.values()))]
    return [t for t in dict.fromkeys(texts) if takes(assemble(equation(t)))]


def chains(number: int) -> list[str]:
    """Feasible random equations that the machine takes."""
    rng, space, found = np.random.default_rng(11), SearchSpace(), []
    while len(found) < number:
        drawn = space.random(rng)
        try:
            program = assemble(drawn)
        except rules.InfeasibleEquation:
            continue
        if takes(program):
            found.append(str(drawn))
    return found


@functools.cache
def expected(geometry: str, text: str, steps: UnitSteps) -> tuple[np.ndarray, float] | None:
    """A specialised rule's signals and how far rounding may take others; None where rounding is blown up."""
    rule = rules.compile(text)
    signals = steps.run(rule, KEY)
    scale = np.abs(signals).max()
    sensitivity = np.abs(steps.run(rule, KEY, perturbed=1e-5) - signals).max()
    if not np.isfinite(signals).all() or sensitivity > 3e-3 * scale:
        return None
    return signals, 3 * sensitivity + 2e-5 * scale


@pytest.mark.parametrize(("platform", "geometry"), KERNELS)
def test_kernels_agree_with_specialised_rules_and_the_oracle(units, platform, geometry):
    steps, texts = units[geometry], [*components(), *chains(40)]
    texts += ["g"] * (-len(texts) % SLOTS)
    run, compared = kernel_signals(platform, geometry, _hashable(steps)), 0
    for first in range(0, len(texts), SLOTS):
        some = texts[first : first + SLOTS]
        stacked = jax.tree.map(lambda *x: np.stack(x), *(assemble(equation(t)) for t in some))
        for text, signals in zip(some, np.asarray(run(stacked)), strict=True):
            right = expected(geometry, text, _hashable(steps))
            if right is not None:
                compared += 1
                np.testing.assert_allclose(signals, right[0], rtol=0, atol=right[1], err_msg=text)
                if not rules.compile(text).needs_noise:
                    reference = oracle.Rule(str(rules.compile(text)))
                    by_numpy = np.stack([reference(steps.oracle(step)) for step in range(STEPS)])
                    np.testing.assert_allclose(signals, by_numpy, rtol=0, atol=2 * right[1], err_msg=text)
    assert compared > 0.8 * len(texts)


def _hashable(steps: UnitSteps) -> UnitSteps:
    steps.__class__.__hash__ = object.__hash__  # a test's data: itself and nothing else
    return steps


def test_of_programs_that_need_one_product_each_no_other_is_computed(units):
    """Beside the users' own, which may be made of gh and fah, or of W."""
    steps, products = units["conv_stride_2"], []

    def counted(signal, weight):
        products.append(weight.shape)
        return steps.backward(signal, weight)

    def signals(both: bool) -> np.ndarray:
        def one(program, values):
            rule = TiledRule(program, KERNELS["tpu", "conv_stride_2"], both)
            unit = dataclasses.replace(steps.unit_of(values, KEY), backward=counted)
            return rule.signal(unit, rule.init(steps.shapes))[0]

        return np.asarray(jax.jit(jax.vmap(one))(stacked, values))

    def own(name: str, formula: str) -> Operand:
        return Operand(name, name, "made of products", formula=formula)

    with register(own("of_fah", "unit_fro(fah)"), own("of_signs", "b_next @ sgn(W).T")):
        texts = ["g", "unit_fro(fah) + hp", "gh - dh", "mul_noise(fa, 0.5)", "dfa", "of_fah", "fa + of_signs"]
        programs = [assemble(equation(t)) for t in texts]
        assert not any(map(reads_both_products, programs)) and reads_both_products(assemble(equation("of_fah + gh")))
        stacked = jax.tree.map(lambda *x: np.stack(x), *programs)
        values = jax.tree.map(lambda x: np.repeat(x[:1], len(texts), 0), steps.values)  # as in training, slots' own
        alone = signals(both=False)
        assert len(products) == 2 and np.abs(alone).max((*range(1, alone.ndim),)).min() > 0
        np.testing.assert_array_equal(alone, signals(both=True))
        assert len(products) == 2 + 3


def test_a_kernel_in_a_layer_of_bfloat16_is_the_specialised_rule_there():
    """Rules compute in float32 whatever the layer's dtype: of the same bfloat16 values, up to one rounding of the signal."""
    text, rng = "mul_noise(unit_row1(fa), 0.1) + bn(dfa)", np.random.default_rng(0)
    x, cotangent, logits = (jnp.bfloat16(rng.normal(size=(5, n))) for n in (6, 4, 3))

    def signal(rule):
        layer = layers.Dense(4, rule, dtype=jnp.bfloat16)
        variables = layer.init(jax.random.key(0), x, 0 * logits)
        _, pull = jax.vjp(lambda h: layer.apply(variables, h, 0 * logits, rngs={"noise": KEY}), x)
        return jax.jit(pull)((cotangent, logits))[0]

    found = signal(TiledRule(assemble(equation(text)), KERNELS["gpu", "dense"]))
    assert found.dtype == jnp.bfloat16 and np.abs(np.float32(found)).max() > 0.01
    np.testing.assert_allclose(np.float32(found), np.float32(signal(rules.compile(text))), rtol=2**-7, atol=0)


def test_at_least_99_of_100_random_equations_are_taken_and_products_are_not():
    rng, space, taken, feasible = np.random.default_rng(0), SearchSpace(), 0, 0
    while feasible < 1000:
        drawn = space.random(rng)
        try:
            program = assemble(drawn)
        except rules.InfeasibleEquation:
            continue
        feasible, taken = feasible + 1, taken + takes(program)
    assert taken >= 0.99 * feasible
    four_passes_more = "unit_fro(unit_row2(g) + unit_mat1(fa)) * unit_elem_inf(dfa)"
    for text in ("(b_next @ W.T) * dh", "(g @ R_L.T) @ R_L", four_passes_more):
        assert not takes(assemble(equation(text)))
    assert takes(assemble(equation("unit_fro(unit_row2(g) + unit_mat1(fa)) * unit_col_inf(dfa)")))


def test_noise_in_a_tile_is_that_of_jax_bit_for_bit():
    key = jax.random.fold_in(jax.random.key(3, impl="threefry2x32"), 4)
    entries = jnp.arange(1000, dtype=jnp.uint32)
    found = uniform(tuple(jax.random.key_data(key)), entries)
    np.testing.assert_array_equal(found, jax.random.uniform(key, (1000,), jnp.float32))


def test_arrays_are_the_operands_that_no_tile_can_make():
    """b_L @ R_L is made in the tile, for programs that read it."""
    assert stored() == ["R_L", "hp", "h", "b_L", "gh", "fah", "dh"]


def test_what_a_program_reads_of_those_arrays_and_which_norms_end_its_passes():
    """Orders are 0, 1, 2, largest, smallest; axes entries, columns, rows; a matrix norm takes the largest or smallest sum."""
    gate, length = Operand("gate", "", "", formula="relu(hp) * dh"), Operand("length", "", "", formula="unit_fro(h)")
    first, through = Operand("first", "", "", formula="left(h, W)"), Operand("through", "", "", formula="b_next @ S.T")
    with register(gate, length, first, through):
        own = {
            name: set(made_of(name)) for name in ("gate", "length", "first", "through", "W", "dfa", "g", "accumulator")
        }
    assert own == {
        "gate": {"hp", "dh"}, "length": {"length"}, "first": {"h"}, "through": {"through"}, "W": set(),
        "dfa": {"b_L", "R_L", "dh"}, "g": {"gh", "dh"}, "accumulator": set(),
    }  # fmt: skip
    program = assemble(equation("(unit_row2(g) + unit_mat1(fa)) + h"))
    assert list(tile_programs.used(program)) == [0, 0, 1, 0, 1, 1, 1]
    assert list(tile_programs.norms(program)) == [2, 2, 0, 1, 1, 1, *6 * [0]]
    other = assemble(equation("unit_elem_ninf(unit_col2(dfa) + hp)"))
    assert list(tile_programs.used(other)) == [1, 1, 0, 1, 0, 0, 1]
    assert list(tile_programs.norms(other)) == [4, 0, 0, *9 * [0]]  # that of columns is local
    integers, floats, keys = tile_programs.pack(program, {"step": jnp.float32(6), "uses": jnp.float32(2)}, KEY)
    read = tile_programs.Scalars(0, integers[None], floats[None], keys[None])
    for t in (0, 1):
        assert (read.integer("length", t), read.integer("ends", t), read.integer("statistics", t)) == (3, 2, 0)
        assert read.real("uses", t) == 2 and read.real("weight", t) == pytest.approx(0.1 / (1 - 0.9**4))
    assert [read.integer("turns", t) for t in range(6)] == [1, 1, 0, 0, 0, 0]
    assert [read.integer("detail", 1, i) for i in range(6)] == [1, 1, 1, 0, 0, 0] and read.norm(1) == (1, 1, 1)
    assert [read.real("affine", 0, i) for i in range(5)] == [0, 1, 0, -np.inf, np.inf]
    np.testing.assert_array_equal(read.key(2), jax.random.key_data(jax.random.fold_in(KEY, 2)))


ORDER = {name: p.ORDERS.index(name) for name in p.ORDERS}
LINE = [4.0, 9.0, 16.0]


@pytest.mark.parametrize(
    ("norm", "line", "expected"),
    [
        ((ORDER["2"], 2, 0), LINE, [2, 3, 4]),  # of each row
        ((ORDER["1"], 2, 0), LINE, LINE),
        ((ORDER["inf"], 2, 0), LINE, LINE),
        ((ORDER["ninf"], 2, 0), [-4.0, -9.0, -16.0], LINE),  # the smallest is the largest of negatives
        ((ORDER["2"], 0, 0), LINE, 29**0.5),  # of all entries
        ((ORDER["0"], 0, 0), LINE, 29),
        ((ORDER["inf"], 0, 0), LINE, 16),
        ((ORDER["ninf"], 0, 0), [-4.0, -9.0, -16.0], 4),
        ((ORDER["1"], 2, 1), LINE, 16),  # the largest and the smallest sum of a row
        ((ORDER["1"], 2, 2), LINE, 4),
        ((ORDER["1"], 1, 1), [16.0] * 3, 16),  # and of a column, which comes in every place
        ((ORDER["1"], 1, 2), [-4.0] * 3, 4),
    ],
)
def test_what_a_norm_divides_by_of_the_lines_of_its_tiles(norm, line, expected):
    """Three samples and one of padding, which holds what is least where the largest counts."""
    norm = p.Norm(*norm)
    least = -np.inf if norm.axis == 1 or norm.order >= ORDER["inf"] else 0.0
    found = divisors(jnp.array([*line, least]), norm, 3)[:3]
    np.testing.assert_allclose(found, np.broadcast_to(expected, 3), rtol=1e-6)
    neutral = nothing(norm, found)
    assert np.all(neutral == least)
    np.testing.assert_array_equal(joined(neutral, found, norm), found)
    largest = least == -np.inf
    for both in (merged(jnp.stack([found, 2 * found]), norm), joined(found, 2 * found, norm)):
        np.testing.assert_allclose(both, (2 if largest else 3) * found, rtol=1e-6)


def test_lines_of_more_tiles_than_are_read_at_once_are_joined_and_those_beyond_the_last_left_out(monkeypatch):
    """Five tiles in chunks of two: the sixth is padding. The sum of 0 to 4 times 1, 2, 3; their largest; no norm at all."""
    monkeypatch.setattr(kernels, "_chunk", lambda layout: 2)
    layout, state = Layout(3, 10, 4, 2), {"step": jnp.float32(0), "uses": jnp.float32(1)}
    programs = [assemble(equation(text)) for text in ("unit_row1(g)", "unit_elem_inf(g)", "g")]
    integers = jnp.stack([tile_programs.pack(program, state, KEY)[0] for program in programs])
    lines = np.arange(6.0)[:, None] * np.array([1, 2, 3, 0])
    lines[5] = 1000
    partial = np.stack([lines, lines - [0, 0, 0, np.inf], lines])[:, :, None].astype(np.float32)
    found = kernels._divide(layout, True, 0, integers, jnp.array(partial), jnp.ones((3, 4, 4)))
    np.testing.assert_allclose(found[:, 0, :3], [[10, 20, 30], [12, 12, 12], [1, 1, 1]], rtol=1e-6)
    assert np.all(found[:, 1:] == 1)


def test_lines_are_read_8192_numbers_at_once_in_powers_of_two():
    assert [kernels._power(n) for n in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]
    chunks = {(128, 79): 64, (128, 64): 64, (128, 33): 64, (128, 3): 4, (4, 1): 1, (8192, 9): 1, (16384, 9): 1}
    assert {(rows, tiles): kernels._chunk(Layout(rows, 10 * tiles, rows, 10)) for rows, tiles in chunks} == chunks


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_switch_by_halves_takes_the_branch_of_the_index(count):
    branches = [lambda i=i: jnp.float32(10 * i) for i in range(count)]
    assert [halves(jnp.int32(i), branches) for i in range(count)] == [10 * i for i in range(count)]


def test_the_account_of_a_kernel_by_hand():
    """One slot has no norm and reads gh and dh (for g) and a statistic; another ends a pass after g and reads what makes dfah."""
    programs = [assemble(equation(t)) for t in ("g + mean(dh)", "unit_fro(g) + dfah")]
    found = sample.kernels(programs)
    rows = 10  # of state, with up to three parts
    at_once, first, second, third = (found[name] for name in ("rule", "rule_pass_0", "rule_pass_1", "rule_pass_2"))
    assert stored() == ["R_L", "hp", "h", "b_L", "gh", "fah", "dh"]
    assert first.operands[6:13] == [0, 0, 0, 0, (1 + 1) / 2, 0, (2 + 1) / 2]  # dh: for g and for its mean; for g
    assert first.operands[5] == pytest.approx(1 / rows / 2) == first.results[2] and first.results[:2] == [0.5, 1]
    assert second.operands[6:13] == [0.5, 0, 0, 0.5, 0.5, 0, 0.5] and second.results == [0.5, 0.5, 0]
    assert not any(third.operands[5:]) and not any(third.results)
    norm = found["rule_norm_0"]  # reads every line of the slot whose pass ended, writes one of four rows
    assert norm.operands == [1, 1, 0.5, 0] and norm.results == [0.5 / 4]
    assert len(first.operands) + 2 == len(second.operands)  # no signals and lines of passes before
    assert at_once.operands[3:] == [0.5, 2 / 2, 0, 0, 2 / 2, (1 + 2) / 2, 0, (1 + 2) / 2] and at_once.results == [
        1,
        0.5,
    ]


@pytest.mark.parametrize(
    ("platform", "floats", "batch", "features", "rows", "tile"),
    [
        ("tpu", 128_000, 128, 300, 128, 300),  # all of it fits
        ("tpu", 128_000, 128, 5000, 128, 896),  # 7 times 128 lanes: below 1,000
        ("tpu", 128_000, 128, 1000, 128, 1000),  # exactly
        ("tpu", 128_000, 128, 1001, 128, 896),
        ("tpu", 0, 128, 5000, 128, 512),  # 65,536 unless it is told
        ("tpu", 10, 128, 5000, 128, 128),
        ("gpu", 0, 128, 5000, 128, 32),  # 4,096
        ("gpu", 8192, 128, 5000, 128, 64),  # exactly 64 a sample
        ("gpu", 8192, 129, 5000, 256, 32),  # 63
        ("gpu", 1, 1, 1, 1, 1),
        ("gpu", 8192, 100, 5000, 128, 64),  # 81 a sample
        ("gpu", 8192, 100, 40, 128, 64),
        ("gpu", 8192, 100, 20, 128, 32),
    ],
)
def test_a_block_is_as_large_as_its_platform_lets_it(platform, floats, batch, features, rows, tile):
    layout = Kernel(platform, floats=floats).layout(batch, features)
    assert (layout.rows, layout.tile) == (rows, tile) and layout.tiles == -(-features // tile)


@pytest.mark.parametrize(
    ("loop", "features", "tiles", "tile"),
    [
        (Loop(), 512, 1, 512),  # 65,536 entries of a batch of 128
        (Loop(), 513, 2, 257),
        (Loop(), 5000, 10, 500),  # of one size
        (Loop(1280), 95, 10, 10),
        (Loop(10), 5000, 5000, 1),  # a sample and more
    ],
)
def test_tiles_of_a_loop_are_of_one_size(loop, features, tiles, tile):
    layout = loop.layout(128, features)
    assert (layout.batch, layout.rows, layout.tiles, layout.tile) == (128, 128, tiles, tile)
