"""A rule as a few lines of JAX that need nothing of this package."""

from bpevo.rules import expression as ex
from bpevo.rules import formulas
from bpevo.rules.canonical import without_idle
from bpevo.rules.compiled import CompiledRule, compile
from bpevo.rules.components import BINARIES, EPSILON, UNARIES
from bpevo.rules.equation import Equation
from bpevo.rules.statistics import DECAY
from bpevo.rules.types import WEIGHTS, Type, product

_ELEMENTWISE = {
    "inv": "{x} / ({x} * {x} + 1e-16)", "abs": "jnp.abs({x})", "neg": "-{x}", "step": "({x} > 0).astype({x}.dtype)",
    "relu": "jnp.maximum({x}, 0)", "sgn": "jnp.sign({x})", "sqrt": "jnp.sqrt(jnp.abs({x}))",
    "ssqrt": "jnp.sign({x}) * jnp.sqrt(jnp.abs({x}))", "sq": "{x} * {x}", "ssq": "{x} * jnp.abs({x})",
    "cube": "{x} * {x} * {x}", "scale": "{c} * {x}", "shift": "{x} + {c}", "clip": "jnp.clip({x}, -{c}, {c})",
    "add_noise": "{x} + {c} * normal({u})", "mul_noise": "{x} * (1 + {c} * normal({u}))",
    "drop": "jnp.where({u} < {c}, 0.0, {x} / (1 - {c}))",
}  # fmt: skip
_BINARY = {
    "add": "{x} + {y}", "sub": "{x} - {y}", "mul": "{x} * {y}", "div": "{x} * {y} / ({y} * {y} + 1e-16)",
    "min": "jnp.minimum({x}, {y})", "max": "jnp.maximum({x}, {y})",
}  # fmt: skip
_STATISTICS = {"mean": "{m}", "std": "jnp.sqrt({v})", "bn": "({x} - {m}) / (jnp.sqrt({v}) + 1e-8)"}
_WHITEN = "({x} - {m}) / jnp.sqrt({v} + {m} * {m} + 1e-8)"
_NORMS = {"0": "jnp.sum({a} != 0, {o})", "1": "jnp.sum({a}, {o})", "2": "jnp.sqrt(jnp.sum({a} * {a}, {o}))",
          "ninf": "jnp.min({a}, {o})", "inf": "jnp.max({a}, {o})"}  # fmt: skip
assert EPSILON == 1e-8 and DECAY == 0.9  # as they are written above and below

_UNIFORM = """
    def uniform(x, position):
        bits = jax.random.fold_in(key, position)
        return jax.random.uniform(bits, (x.size,), jnp.float32).reshape(x.shape)
"""
_NORMAL = """
    def normal(u):
        return jnp.sqrt(2.0) * jax.lax.erf_inv(jnp.clip(2 * u - 1, -1 + 2**-23, 1 - 2**-23))
"""
_MOMENTS = """
    step = state["step"] + 1 if state else jnp.float32(1)
    decay, moments = jnp.float32(0.9), []

    def running(x, samples):  # mean and variance over samples, bias-corrected
        w = (1 - decay) / (1 - decay**step)
        m, v = state["moments"][len(moments)] if state else (0.0, 0.0)
        new = jnp.mean(x, 0, keepdims=True) if samples else x
        d = new - m
        spread = jnp.var(x, 0, keepdims=True) if samples else 0.0
        moments.append((m + w * d, (1 - w) * (v + w * d * d) + w * spread))
        return moments[-1]
"""


def export(rule: str | ex.Expression | Equation | CompiledRule) -> str:
    """The rule as Python text that needs only JAX: a function `signal` of the values that the rule reads.

    Arrays are float32 in their native shapes. `forward(x, weight)` and `backward(b, weight)` are the unit's products, by
    default those of a dense layer. Rules with noise take a `key`, fresh each step and unit; rules with running statistics
    take a `state`, None at the first step, and return (signal, next state).

    Args:
        rule: What `compile` takes, or what it gives; no function.

    Returns:
        The text of a module.

    Raises:
        RuleSyntaxError, InfeasibleEquation: As `compile`.
        ValueError: It is a Python function, or holds a function or statistic that was registered: their code is not known.

    >>> print(export("0.5*g").split("import jax.numpy as jnp")[1].strip())
    def signal(*, W, b_next, dh, backward=lambda b, w: b @ w.T):
        gh = backward(b_next, W)
        g = gh * dh
        x1 = 0.5 * g
        return x1
    """
    compiled = compile(rule)
    if not isinstance(compiled, CompiledRule):
        raise ValueError(f"{compiled} is a function: its own code is all that there is to export")
    return _Writer(compiled).text()


class _Writer:
    def __init__(self, rule: CompiledRule):
        self._rule, self._expression = rule, without_idle(rule.expression)
        self._lines: list[str] = []
        self._known: dict[str, str] = {}
        self._count = self._noises = 0
        self._products: set[str] = set()

    def text(self) -> str:
        result = self._value(self._expression)
        lines, body = self._lines, ""
        memory = any("running(" in line for line in lines)
        reads = sorted(self._rule.reads)
        arguments = reads
        if "XK" in self._products:
            arguments.append("forward=lambda x, w: x @ w")
        if "YK" in self._products:
            arguments.append("backward=lambda b, w: b @ w.T")
        if self._noises:
            arguments.append("key")
            body += _UNIFORM + (_NORMAL if any("normal(" in line for line in lines) else "")
        if memory:
            arguments.append("state=None")
            body += _MOMENTS
        body = body.lstrip("\n") + "\n" * bool(body)
        end = f"{result}, {{'step': step, 'moments': moments}}" if memory else result
        return (
            f'"""The signal b_i^p of one unit by the rule {self._expression}."""\n\n'
            "import jax\nimport jax.numpy as jnp\n\n\n"
            f"def signal(*, {', '.join(arguments)}):\n{body}"
            + "".join(f"    {line}\n" for line in lines)
            + f"    return {end}\n"
        )

    def _new(self, code: str) -> str:
        self._count += 1
        name = f"x{self._count}"
        self._lines.append(f"{name} = {code}")
        return name

    def _value(self, node: ex.Expression) -> str:
        if isinstance(node, ex.OperandNode):
            x = self._operand(node.name)
            if not node.statistic:
                return x
            if node.statistic not in _STATISTICS:
                raise _unknown(node.statistic)
            return self._running(x, ex.OperandNode(node.name).type, _STATISTICS[node.statistic])
        if isinstance(node, ex.UnaryNode):
            return self._unary(node, self._value(node.x))
        assert isinstance(node, ex.BinaryNode)
        binary = BINARIES[node.name]
        x = self._value(node.left)
        if binary.structure == "left":
            return x
        return self._new(self._binary(node, x, self._value(node.right)))

    def _binary(self, node: ex.BinaryNode, x: str, y: str) -> str:
        if BINARIES[node.name].structure == "product":
            p = product(node.left.type, node.right.type)
            self._products.add(p.name)
            a, w = (y, x) if p.mirrored else (x, y)
            if p.name == "XF":
                return f"jnp.tensordot({a}, {w}, [tuple(range(-{w}.ndim + 1, 0))] * 2)"
            return {"XK": f"forward({a}, {w})", "YK": f"backward({a}, {w})", "ZF": f"jnp.tensordot({a}, {w}, 1)"}[
                p.name
            ]
        if node.name not in _BINARY:
            raise _unknown(node.name)
        return _BINARY[node.name].format(x=x, y=y)

    def _operand(self, name: str) -> str:
        definition = formulas.definition(name)
        if definition is None:
            return name
        if name not in self._known:
            inner = self._value(definition)
            last = self._lines[-1]
            if last.startswith(f"{inner} = "):  # its own line: give it the operand's name
                self._lines[-1] = f"{name} = {last.removeprefix(f'{inner} = ')}"
                self._count -= 1
            else:
                self._lines.append(f"{name} = {inner}")
            self._known[name] = name
        return self._known[name]

    def _unary(self, node: ex.UnaryNode, x: str) -> str:
        entry, kind = UNARIES[node.name], node.x.type
        if entry.structure == "transpose":
            return x
        if entry.norm:
            return self._norm(x, kind, *entry.norm)
        if node.name == "whiten":
            return self._running(x, kind, _WHITEN)
        if node.name not in _ELEMENTWISE:
            raise _unknown(node.name)
        uniform = ""
        if entry.noisy:
            uniform = self._new(f"uniform({x}, {self._noises})")
            self._noises += 1
        constant = ex.format_constant(node.constant)
        code = _ELEMENTWISE[node.name].format(x=x, c=constant, u=uniform)
        return self._new(code.replace("--", "").replace("+ -", "- "))

    def _running(self, x: str, kind: Type, code: str) -> str:
        samples = kind.base not in WEIGHTS and not kind.average
        m, v = f"mean{self._count}", f"var{self._count}"
        self._lines.append(f"{m}, {v} = running({x}, samples={samples})")
        return self._new(code.format(x=x, m=m, v=v))

    def _norm(self, x: str, kind: Type, order: str, axis: str) -> str:
        """Divides by a norm of the matrix form: a row is a sample, or, of a kernel, one input."""
        form = f"{x}.reshape(-1, {x}.shape[-1])" if kind.base == "K" else f"{x}.reshape({x}.shape[0], -1)"
        matrix = self._new(form)
        size = self._new(f"jnp.abs({matrix})")
        if axis == "mat":
            sums = f"jnp.sum({size}, {0 if (order == '1') != kind.transposed else 1})"
            norm = f"jnp.{'min' if order == 'ninf' else 'max'}({sums})"
        else:
            over = {"elem": "None", "col": "0", "row": "1"}[axis]
            if kind.transposed and axis != "elem":
                over = str(1 - int(over))
            keep = "" if axis == "elem" else ", keepdims=True"
            norm = _NORMS[order].format(a=size, o=over + keep)
        return self._new(f"({matrix} / ({norm} + 1e-8)).reshape({x}.shape)")


def _unknown(name: str) -> ValueError:
    return ValueError(f"{name} was registered, so its code cannot be exported: only the package's own functions can")
