"""What a compiled program does when it runs, counted from its optimized HLO text; nothing is run.

Counted are bytes to and from memory, multiplications and additions of matrix products and convolutions, and how often
kernels, conditionals and loops run. How often what depends on data runs is not in the text: `Habits` tells it, by the
scopes that the program's source gives its decisions.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from bpevo.bench import hlo
from bpevo.bench.hlo import Computation, Instruction

# Names for what exists already: they move nothing.
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "opt-barrier",
        "partition-id",
        "replica-id",
        "add-dependency",
        "async-update",
        "domain",
    )
)
_PARTS = ("dynamic-slice", "slice", "gather")  # read as much of their first operand as they give
_WRITTEN = ('custom_call_target="__gpu$xla.gpu.triton"', 'custom_call_target="tpu_custom_call"')
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
_CUDNN = ("__cudnn$convForward", "__cudnn$convBiasActivationForward", "__cudnn$convForwardGraph")
_CUDNN_BACKWARD = {"__cudnn$convBackwardInput": "input", "__cudnn$convBackwardFilter": "kernel"}


@dataclasses.dataclass(frozen=True)
class Counts:
    """What runs; a mean where it depends on data."""

    bytes: float = 0.0  # read and written in the device's memory, each kernel's own
    fast_bytes: float = 0.0  # the same in memory on the chip that the compiler manages
    flops: float = 0.0  # of matrix products and convolutions, two a multiplication with its addition
    kernels: float = 0.0
    branches: float = 0.0  # conditionals taken
    turns: float = 0.0  # evaluations of the predicates of loops whose length depends on data
    decisions: float = 0.0  # those of both that the host takes
    collectives: float = 0.0
    guessed: float = 0.0  # those of branches and turns that `Habits` does not know

    def plus(self, other: "Counts", times: float = 1.0) -> "Counts":
        return Counts(
            *(a + times * b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )

    def over(self, divisor: float) -> "Counts":
        return Counts().plus(self, 1 / divisor)


class Parts(NamedTuple):
    """How often a kernel moves each of its operands and results as a whole; less than once where it moves parts of it."""

    operands: Sequence[float]
    results: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Habits:
    """How often what depends on data runs: by the last scope in the name of a conditional or loop that is a key here.

    A conditional's shares are in the order of its branches; for a predicate (false, true).
    """

    branches: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    turns: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of a loop each time it runs
    kernels: Mapping[str, "Parts"] = dataclasses.field(default_factory=dict)  # by the name that the source gives them

    def shares(self, label: str, count: int) -> Sequence[float] | None:
        name = _last(label, self.branches)
        return self.branches[name] if name is not None and len(self.branches[name]) == count else None

    def length(self, label: str) -> float | None:
        name = _last(label, self.turns)
        return None if name is None else self.turns[name]


def _last(label: str, names: Collection[str]) -> str | None:
    return next((scope for scope in reversed(label.split("/")) if scope in names), None)


class Account:
    """The account of one program.

    >>> text = '''ENTRY %main (x: f32[4,4]) -> f32[4,4] {
    ...   %x = f32[4,4]{1,0} parameter(0)
    ...   ROOT %y = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
    ... }'''
    >>> counts = Account(text).counts()
    >>> counts.flops, counts.bytes  # two reads of one array are one
    (128.0, 128.0)
    """

    def __init__(self, text: str, on_host: Collection[str] | None = None):
        """Reads the text.

        Args:
          text: optimized HLO, of one device.
          on_host: names of the conditionals and loops that the host steers; None: all of them.
        """
        self._computations, self._entry = hlo.parse(text)
        self.on_host = on_host
        self.static = functools.cache(functools.partial(_static, self._computations))
        self.trips = functools.cache(functools.partial(_trips, self._computations))

    def counts(self, habits: Habits | None = None) -> Counts:
        """What a run of the whole program does."""
        return _Counting(self, habits or Habits()).computation(self._entry)

    def turn(self, turns: int, habits: Habits | None = None) -> Counts:
        """What one turn of the loop of so many turns does, of the largest if there are several.

        Raises ValueError if there is none.
        """
        bodies = self._bodies(turns)
        if not bodies:
            raise ValueError(f"the program has no loop of {turns} turns")
        counting = _Counting(self, habits or Habits())
        return max((counting.computation(body) for body in bodies), key=lambda c: c.bytes + c.fast_bytes)

    def _bodies(self, turns: int) -> list[str]:
        loops = [i for c in self._computations.values() for i in c.values() if i.opcode == "while"]
        return [i.called("body") for i in loops if self.trips(i) == turns]

    def written(self, turns: int) -> tuple[int, int]:
        """(conditionals, loops) that stand in the program text of one turn of that loop."""
        seen, todo = set[str](), self._bodies(turns)
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += [c for i in self._computations[name].values() for c in _called(i)]
        found = [i.opcode for name in seen for i in self._computations[name].values()]
        return found.count("conditional"), found.count("while")


class _Static(NamedTuple):
    """What a computation does itself, whatever the data, and what it calls."""

    own: Counts
    calls: Sequence[Instruction]
    written: Sequence[tuple[Instruction, Sequence[str]]]  # the project's own kernels, with the types of their operands


def _static(computations: dict[str, Computation], name: str) -> _Static:
    own, calls, written = Counts(), [], []
    for i in computations[name].values():
        if i.opcode in ("while", "conditional", "call", "async-start"):
            calls.append(i)
        elif i.opcode == "custom-call" and any(target in i.attributes for target in _WRITTEN):
            written.append((i, [computations[name][operand].type for operand in i.operands]))
        elif i.opcode not in _FREE and not i.opcode.endswith("-done"):
            own = own.plus(_kernel(computations, i, computations[name]))
    return _Static(own, calls, written)


class _Counting:
    def __init__(self, account: "Account", habits: Habits):
        self._account, self._habits = account, habits
        self.computation = functools.cache(self._computation)

    def _computation(self, name: str) -> Counts:
        own, calls, written = self._account.static(name)
        for i in calls:
            own = own.plus(self._call(i))
        for i, operands in written:
            own = own.plus(self._written(i, operands))
        return own

    def _call(self, i: Instruction) -> Counts:
        if i.opcode == "while":
            return self._loop(i)
        if i.opcode == "conditional":
            return self._conditional(i)
        return self.computation(i.called("to_apply") or i.called("calls"))

    def _written(self, i: Instruction, operands: Sequence[str]) -> Counts:
        results = [array.bytes for array in hlo.arrays(i.type)]
        name = _last(i.label, self._habits.kernels)
        parts = Parts([1.0] * len(operands), [1.0] * len(results)) if name is None else self._habits.kernels[name]
        moved = [(_size(t), share) for t, share in zip(operands, parts.operands, strict=True)]
        moved += zip(results, parts.results, strict=True)
        return Counts(bytes=float(sum(n * share for n, share in moved)), kernels=1, guessed=name is None)

    def _decides(self, i: Instruction, branches: float, turns: float, known: bool) -> Counts:
        count = branches + turns
        host = self._account.on_host is None or i.name in self._account.on_host
        return Counts(branches=branches, turns=turns, decisions=count * host, guessed=count * (not known))

    def _loop(self, i: Instruction) -> Counts:
        body, condition = self.computation(i.called("body")), self.computation(i.called("condition"))
        trips = self._account.trips(i)
        if trips is not None:  # its predicate needs no kernel
            return Counts().plus(body, trips)
        length = self._habits.length(i.label)
        turns = 1.0 if length is None else length
        own = self._decides(i, 0.0, turns + 1, length is not None)
        return own.plus(body, turns).plus(condition, turns + 1)

    def _conditional(self, i: Instruction) -> Counts:
        names = _branches(i)
        shares = self._habits.shares(i.label, len(names))
        total = self._decides(i, 1.0, 0.0, shares is not None)
        for name, share in zip(names, shares or [1 / len(names)] * len(names), strict=True):
            total = total.plus(self.computation(name), share)
        return total


def _called(i: Instruction) -> list[str]:
    if i.opcode == "conditional":
        return _branches(i)
    return [c for a in ("body", "condition", "calls", "to_apply") if (c := i.called(a))]


def _branches(i: Instruction) -> list[str]:
    """Computations of a conditional; of a predicate's (false, true)."""
    if found := re.search(r"branch_computations=\{([^}]*)\}", i.attributes):
        return [name.strip().lstrip("%") for name in found[1].split(",")]
    return [i.called("false_computation"), i.called("true_computation")]


def _trips(computations: dict[str, Computation], loop: Instruction) -> int | None:
    """The number of turns of a loop if the text tells it: as an attribute, or as the constant that a counter from 0 stays
    below."""
    if found := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes):
        return int(found[1])
    condition = computations[loop.called("condition")]
    root = next(i for i in condition.values() if i.root)
    operands = [condition[name] for name in root.operands]
    if root.opcode == "fusion":
        fused = computations[root.called("calls")]
        given = {p.name: operands[int(p.arguments)] for p in fused.values() if p.opcode == "parameter"}
        root = next(i for i in fused.values() if i.root)
        operands = [given.get(name, fused[name]) for name in root.operands]
    if root.opcode != "compare" or "direction=LT" not in root.attributes or operands[1].opcode != "constant":
        return None
    return int(operands[1].arguments)


def _kernel(computations: dict[str, Computation], i: Instruction, within: Computation) -> Counts:
    """What an instruction that is neither control flow nor free does; of an asynchronous pair its start."""
    collective = i.opcode.removesuffix("-start") in _COLLECTIVES
    if i.opcode == "custom-call" and '"AllocateBuffer"' in i.attributes:
        return Counts()
    fusion = i.opcode in ("fusion", "fusion-start")
    slow, fast = _by_memory(_fusion_moves(computations[i.called("calls")]) if fusion else _moves(i, within))
    kernel = i.opcode == "fusion-start" or not i.opcode.endswith("-start")  # the others are copies beside the kernels
    flops = _flops(computations, i, within)
    return Counts(bytes=slow, fast_bytes=fast, flops=flops, kernels=kernel, collectives=collective)


Moves = list[tuple[int, bool]]  # bytes, and whether in fast memory


def _by_memory(moves: Moves) -> tuple[int, int]:
    return sum(n for n, fast in moves if not fast), sum(n for n, fast in moves if fast)


def _all(arrays: Sequence[hlo.Array]) -> Moves:
    return [(a.bytes, a.fast) for a in arrays]


def _whole(type_: str) -> Moves:
    return _all(hlo.arrays(type_))


def _size(type_: str) -> int:
    return sum(a.bytes for a in hlo.arrays(type_))


def _like(type_: str, of: str) -> Moves:
    """As many bytes as `type_` has, where `of` lies."""
    return [(_size(type_), any(a.fast for a in hlo.arrays(of)))]


def _moves(i: Instruction, within: Computation) -> Moves:
    """What an instruction that is a kernel of its own moves."""
    operands = [within[name].type for name in dict.fromkeys(i.operands)]
    if i.opcode == "copy-start":  # its type is (result, operand, context)
        return _whole(operands[0]) + _all(hlo.arrays(i.type)[:1])
    opcode, result = i.opcode.removesuffix("-start"), _whole(i.type)
    if opcode != i.opcode and opcode not in _COLLECTIVES:  # its type is ((operands), result, context)
        result = _all(hlo.arrays(i.type)[sum(len(hlo.arrays(within[name].type)) for name in i.operands) : -1])
    size = sum(n for n, _ in result)
    if opcode == "dynamic-update-slice":  # in place
        return _like(operands[1], operands[1]) + [(_size(operands[1]), any(fast for _, fast in result))]
    if opcode == "scatter":
        return [m for o in operands[1:] for m in _whole(o)] + _like(operands[-1], i.type)
    if opcode in _PARTS:
        return [(size, any(a.fast for a in hlo.arrays(operands[0])))] + result
    return [m for o in operands for m in _whole(o)] + result


def _fusion_moves(fused: Computation) -> Moves:
    """Reads of the parameters, only the slices where nothing else is read, and writes of the results, in place where the
    result is an update."""
    users: dict[str, list[Instruction]] = {name: [] for name in fused}
    for j in fused.values():
        for name in dict.fromkeys(j.operands):
            users[name].append(j)

    def read(value: Instruction, all_: int) -> int:
        total = 0
        for user in users[value.name]:
            if user.opcode == "bitcast":
                total += read(user, all_)
            elif user.opcode in _PARTS and user.operands[0] == value.name:
                total += _size(user.type)
            elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == value.name:
                continue
            else:
                return all_
        return min(total, all_)

    def written(value: Instruction) -> Moves:
        if value.opcode == "tuple":
            return [m for name in value.operands for m in written(fused[name])]
        inner = value
        while inner.opcode == "bitcast":
            inner = fused[inner.operands[0]]
        if inner.opcode in ("dynamic-update-slice", "scatter"):
            return _like(fused[inner.operands[1 if inner.opcode[0] == "d" else -1]].type, value.type)
        return _whole(value.type)

    moves = written(next(j for j in fused.values() if j.root))
    for p in fused.values():
        if p.opcode == "parameter":
            moves += [(read(p, _size(p.type)), any(a.fast for a in hlo.arrays(p.type)))]
    return moves


def _dims(type_: str) -> tuple[int, ...]:
    return hlo.arrays(type_)[0].dims


def _flops(computations: dict[str, Computation], i: Instruction, within: Computation) -> float:
    if i.opcode in ("fusion", "fusion-start"):
        inner = computations[i.called("calls")]
        return sum(_flops(computations, j, inner) for j in inner.values())
    types = [within[name].type for name in i.operands]
    if i.opcode == "dot":
        return _dot(i.attributes, _dims(types[0]), _dims(i.type))
    if i.opcode == "convolution":
        return _convolution(i.attributes, *map(_dims, (*types[:2], i.type)))
    target = re.search(r'custom_call_target="([^"]*)"', i.attributes)
    if target is None:
        return 0.0
    if target[1].startswith(("__cublas$gemm", "__cublas$lt$matmul")):
        return _dot(i.attributes, _dims(types[0]), _dims(i.type))
    if target[1] in _CUDNN or target[1] in _CUDNN_BACKWARD:
        given = [_dims(types[0]), _dims(types[1]), _dims(i.type)]
        match _CUDNN_BACKWARD.get(target[1]):  # what the result is; the labels are those of the forward convolution
            case "input":
                given = [given[2], given[1], given[0]]
            case "kernel":
                given = [given[0], given[2], given[1]]
        return _convolution(i.attributes, *given)
    return 0.0


def _dot(attributes: str, left: Sequence[int], result: Sequence[int]) -> float:
    axes = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^}\]]*)', attributes)
    contracted = [int(n.strip('" ')) for n in axes[1].split(",") if n.strip('" ')] if axes else []
    return 2.0 * math.prod(result) * math.prod(left[n] for n in contracted)


def _convolution(attributes: str, left: Sequence[int], right: Sequence[int], result: Sequence[int]) -> float:
    """Two for each pair of a real input entry and a weight that meet: padding and the holes of dilations are none."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None
    found = re.search(r"window=\{([^}]*)\}", attributes)
    window = dict(part.split("=") for part in found[1].split()) if found else {}
    pairs, spatial = 1, sorted(c for c in labels[3] if c.isdigit())  # as the window's

    def along(key: str, n: int, default: str) -> str:
        return window[key].split("x")[n] if key in window else default

    for n, c in enumerate(spatial):
        stride, hole, step = (int(along(k, n, "1")) for k in ("stride", "lhs_dilate", "rhs_dilate"))
        low = int(along("pad", n, "0_0").split("_")[0])
        size = left[labels[1].index(c)]
        met = range(0, (size - 1) * hole + 1)
        pairs *= sum(
            (at := o * stride + k * step - low) in met and at % hole == 0
            for o in range(result[labels[3].index(c)])
            for k in range(right[labels[2].index(c)])
        )
    groups = {
        name: int(g[1]) for name in ("feature", "batch") if (g := re.search(rf"{name}_group_count=(\d+)", attributes))
    }
    batch = left[labels[1].index("b")] // groups.get("batch", 1)
    features = left[labels[1].index("f")] // groups.get("feature", 1)
    return 2.0 * pairs * batch * features * result[labels[3].index("f")]
