"""Registering components: what is refused, what stays as it is, and how it ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import unit_steps

from bpevo import rules
from bpevo.rules import Binary, Operand, Statistic, Unary, components, parse, program, register


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
    (cube(fn=lambda x, c: x + jnp.min(x)), "must act element by element"),
    (cube(fn=lambda x, c: x - jnp.sum(jnp.minimum(x, 0))), "must act element by element"),  # of negative ones alone
    (cube(fn=lambda x: x), "the function raises TypeError"),
    (cube(fn=lambda x, c: x[:, 0]), "the function raises"),
    (cube(structure="transpose"), "needs exactly one of fn, affine, norm, statistic"),
    (cube(noisy=True, fn=None, affine=lambda c: rules.Affine()), r"is noisy: it needs fn=\(x, c, uniform\) -> array"),
    (cube(noisy=True, fn=lambda x, c, uniform: x + jnp.mean(uniform)), "must act element by element"),
    (cube(fn=None, affine=lambda c: (1.0, 0.0)), r"affine\(c\) must return an Affine"),
    (cube(fn=None, statistic=Statistic("s", "", "", average=lambda m, v: m)), "needs a statistic with a divisor"),
    (cube(fn=None, statistic=Statistic("s", "", "", divisor=lambda m, v: jnp.max(m) + v)), "element by element"),
    (cube(spelling="c3({x}, {c})"), r"needs constants if and only if its spelling has {c}, not \(\)"),
    (Unary("n3", "n3({x})", "{x}", "a norm", norm=("3", "col")), r"no such norm: \('3', 'col'\)"),
    (Unary("n3", "n3({x})", "{x}", "a norm", norm=("2", "diagonal")), "no such norm"),
    (Binary("sum2", "{x} ++ {y}", "{x}{y}", "sum", jnp.add), r"must be spelled 'sum2\({x}, {y}\)'"),
    (Binary("sum2", "sum2({x}, {y})", "{x}{y}", "sum"), r"needs fn=\(x, y\)"),
    (Binary("sum2", "sum2({x}, {y})", "{x}{y}", "sum", jnp.add, structure="left"), r"needs fn=\(x, y\)"),
    (Binary("sum2", "sum2({x}, {y})", "{y}", "sum", jnp.add), "the latex of the binary 'sum2' must hold {x}"),
    (Statistic("s", "m", "no x", average=lambda m, v: m), "the latex of the statistic 's' must hold {x}"),
    (Statistic("s", "{x}", "neither"), "exactly one of average, divisor"),
    (Statistic("s", "{x}", "joined", average=lambda m, v: m + jnp.max(v)), "element by element"),
    (Binary("sum2", "sum2({x}, {y})", "{x}{y}", "sum", lambda x, y: x + jnp.mean(y)), "element by element"),
    (Statistic("s", "{x}", "both", average=lambda m, v: m, divisor=lambda m, v: v), "exactly one of average, divisor"),
    (Statistic("s", "{x}", "a number", average=lambda m, v: jnp.sum(m)), "must keep the shape"),
    (operand(), "needs a formula of other operands, or a draw"),
    (operand(formula="g", draw=lambda gaussian, deviation: gaussian), "needs a formula of other operands, or a draw"),
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


def test_what_is_right_at_its_edges_is_registered_outside_the_papers_space():
    """A norm of any order and axis, a root of what may be negative, noise, a formula whose type is said, too."""
    norms = [
        Unary(f"n_{order}_{axis}", f"n_{order}_{axis}({{x}})", "{x}", "a norm", norm=(order, axis))
        for order, axis in (("0", "elem"), ("1", "row"), ("inf", "mat"), ("ninf", "col"))
    ]
    root = Unary("root", "root({x})", "{x}", "its root", fn=lambda x, c: jnp.sqrt(x))
    flip = Unary(
        "flip", "flip({x}, {c})", "{x}", "", fn=lambda x, c, u: jnp.where(u < c, -x, x), constants=(0.5,), noisy=True
    )
    gap, far = Binary("gap", "gap({x}, {y})", "{x}{y}", "", lambda x, y: x - y), operand(formula="g", base="X")
    spread = Statistic("spread", "{x}", "its variance", average=lambda m, var: var)
    with register(*norms, root, flip, gap, far, spread):
        own = (*norms, root, flip, gap, spread)
        assert rules.extensions()[:7] == (*norms, root, flip, gap) and rules.OPERANDS["p"].base == "X"
        assert not any(c.paper for c in rules.extensions()) and len(rules.extensions()) == len(own) + 1
        assert root.legal == (-1e6, 1e6) and parse("gap(g, h)").key != parse("gap(h, g)").key  # not said to commute
        for text in ("n_inf_mat(root(g))", "gap(p, spread(h))", "flip(g, 0.5)"):
            assert str(parse(text)) == text
        assert str(rules.assemble(parse("flip(g, 0.5)").to_equation())) == "0 load g, flip constant=0.5 number=0"
        of_constant = rules.assemble(
            parse("b_next @ spread(R).T").to_equation()
        )  # whose mean is itself, with no variance
        assert str(of_constant) == "0 load b_next\n1 load R, spread of a constant, @ YK"
        assert program.codes().elementwise[-1].fn(jnp.float32(7), 0) == 0


def test_keys_spell_short_formulas_as_the_operand():
    """Where the formula of an operand is one function of a value of the unit, the operand stands for it in keys."""
    with register(
        Operand("n", "n", "", formula="unit_fro(h)"),
        Operand("u", "u", "", formula="unit_fro(g)"),
        Operand("one", "i", "", formula="1.0*h"),
    ):
        assert parse("unit_elem2(h) * dh").key == parse("n * dh").key == "dh * n"
        assert parse("unit_elem2(g)").key == parse("u").key == "unit_elem2((b_next @ W.T) * dh)"
        assert parse("one").key == "h"


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
    with pytest.raises(ValueError, match="c3 was not registered last: undo registrations in reverse order"):
        components.remove(cube())


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
