"""Registering components: what is refused, what stays as it is, and how it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import unit_steps

from bpevo import rules
from bpevo.rules import Binary, Operand, Statistic, Unary, components, parse, register


def cube(name="c3", **changes):
    fields = {"spelling": "c3({x})", "latex": "{x}", "doc": "x³", "fn": lambda x, c: x**3} | changes
    return Unary(name, **fields)


def operand(**fields):
    return Operand("p", "p", "an operand", **fields)


WRONG = [
    (cube("g"), "the unary 'g' needs another name: 'g' is taken"),
    (cube("all"), "'all' is taken"),
    (cube("backprop"), "'backprop' is taken"),
    (cube("a-b"), "a name is letters, digits and _"),
    (cube("if"), "a name is letters, digits and _"),
    (cube("é"), "a name is letters, digits and _"),
    (cube(spelling="c3()"), r"must be spelled 'c3\({x}\)' or 'c3\({x}, {c}\)', not 'c3\(\)'"),
    (cube(latex="{y}"), "the latex of the unary 'c3' must hold {x}"),
    (cube(latex=r"\frac{1}{2}"), "double every other brace"),
    (cube(fn=None), "needs exactly one of fn, affine, norm, statistic"),
    (cube(norm=("2", "col")), "needs exactly one of fn, affine, norm, statistic"),
    (cube(constants=(1.0,)), "needs constants if and only if"),
    (cube(spelling="c3({x}, {c})", constants=(2.0,), legal=(0.0, 1.0)), r"constant of c3 must lie in \[0, 1\]"),
    (cube(spelling="c3({x}, {c})", constants=(1e-40,)), "too small, 1e-40"),
    (
        cube(fn=lambda x, c: jnp.sum(x)),
        r"must keep the shape of its argument: the function makes float32\[\] of float32\[6\]",
    ),
    (cube(fn=lambda x, c: x > 0), "makes bool"),
    (cube(fn=lambda x, c: x / jnp.max(x)), "must act element by element"),
    (cube(fn=lambda x: x), "the function raises TypeError"),
    (Unary("n3", "n3({x})", "{x}", "a norm", norm=("3", "col")), "no such norm"),
    (Binary("sum2", "{x} ++ {y}", "{x}{y}", "sum", jnp.add), r"must be spelled 'sum2\({x}, {y}\)'"),
    (Binary("sum2", "sum2({x}, {y})", "{x}{y}", "sum"), r"needs fn=\(x, y\)"),
    (Binary("sum2", "sum2({x}, {y})", "{x}{y}", "sum", lambda x, y: x + jnp.mean(y)), "element by element"),
    (Statistic("s", "{x}", "both", average=lambda m, v: m, divisor=lambda m, v: v), "exactly one of average, divisor"),
    (Statistic("s", "{x}", "a number", average=lambda m, v: jnp.sum(m)), "must keep the shape"),
    (operand(), "needs a formula of other operands, or a draw"),
    (operand(formula="g", base="K"), "has the type X, not K"),
    (operand(formula="g + W"), r"no feasible expression: in g \+ W: .*\[B, I\] and \[I, O\]"),
    (operand(formula="g + gg"), "no feasible expression: there is no operand 'gg'"),
    (operand(formula="g + p"), "no feasible expression: there is no operand 'p'"),
    (operand(formula="W @ b_next.T"), r"is transposed, \[I, B\]: add .T"),
    (operand(formula="g * add_noise(h, 0.1)"), "holds add_noise.*neither draw noise nor keep statistics"),
    (operand(formula="g * mean(h)"), r"holds mean\(h\)"),
    (operand(formula="whiten(g)"), r"holds whiten\(g\)"),
    (operand(draw=lambda gaussian, deviation: gaussian), r"its base is K \[I, O\] or F \[C, I\], not ''"),
    (operand(base="X", draw=lambda gaussian, deviation: gaussian), "not 'X'"),
    (operand(base="K", draw=lambda gaussian, deviation: gaussian[0]), "draw makes float32"),
]


@pytest.mark.parametrize("component, message", WRONG)
def test_wrong_components_are_refused_and_change_nothing(component, message):
    before = rules.extensions(), len(rules.OPERANDS), len(rules.UNARIES)
    with pytest.raises(ValueError, match=message):
        register(component)
    with pytest.raises(ValueError, match=message):
        register(Unary("fine", "fine({x})", "{x}", "nothing", fn=lambda x, c: x), component)
    assert (rules.extensions(), len(rules.OPERANDS), len(rules.UNARIES)) == before


def test_registering_appends_and_its_end_forgets():
    genome, operands = parse("unit_fro(g) + (0.5*h)").to_equation(), list(rules.OPERANDS)
    before = jax.tree.map(np.array, genome)
    with register(operand(formula="gh + h"), cube()):
        assert list(rules.OPERANDS) == [*operands, "p"] and rules.OPERANDS["p"].base == "X"
        assert parse("c3(p)").to_equation().to_parts()[0].left.unary == "c3"
        again = parse("unit_fro(g) + (0.5*h)").to_equation()
        assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(again))) and genome == again
    assert list(rules.OPERANDS) == operands
    with pytest.raises(rules.RuleSyntaxError, match="there is no operand 'p'"):
        parse("p")


def test_registrations_end_in_reverse_order():
    first = register(cube())
    second = register(operand(formula="c3(g)"))
    with pytest.raises(ValueError, match="c3 was not registered last"):
        first.close()
    second.close()
    components.remove(rules.UNARIES["c3"])
    assert not rules.extensions()


def test_programs_of_other_components_are_refused_never_misread():
    """A program's integers mean something else once a product has been registered: nobody may run it then."""
    unit, old = unit_steps((5, 4), (4, 3)), rules.assemble(parse("fa").to_equation())
    traces = []

    @jax.jit
    def run(program):
        traces.append(program)
        rule = rules.InterpretedRule(program)
        return rule.signal(unit.unit(0, jax.random.key(0)), rule.init(unit.shapes))[0]

    before = run(old)
    with register(operand(formula="(h @ W) @ R.T")):
        new = rules.assemble(parse("p").to_equation())
        np.testing.assert_allclose(run(new), unit.run(rules.compile("p"))[0], rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="assemble its equation again"):
            rules.InterpretedRule(old).signal(unit.unit(0), {})
        with pytest.raises(ValueError, match="assemble its equation again"):
            str(old)
    np.testing.assert_array_equal(run(old), before)
    assert len(traces) == 2


def test_a_norm_may_be_registered_by_its_order_and_axis():
    unit = unit_steps((5, 4), (4, 3))
    with register(Unary("length", "length({x})", "{x}", "over the norm of each feature", norm=("2", "col"))):
        found = unit.run(rules.compile("length(g)"))
    np.testing.assert_array_equal(found, unit.run(rules.compile("unit_col2(g)")))
