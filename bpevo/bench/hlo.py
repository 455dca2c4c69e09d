"""Optimized HLO text, as a compiled program prints itself: computations of instructions, and what an array takes."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

_BITS = {"pred": 8} | {  # beside bf16 and the f8; a token takes none
    f"{kind}{bits}": bits for kind in ("s", "u", "f", "c") for bits in (2, 4, 8, 16, 32, 64, 128)
}
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
_OPCODE = re.compile(r" ?([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """One array of a type."""

    dims: tuple[int, ...]
    bytes: int  # as laid out: a TPU's tiles are padded
    fast: bool  # in memory on the chip that the compiler manages (a TPU's VMEM), not in the device's memory


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # what stands in the parentheses
    attributes: str  # what follows them
    root: bool

    def called(self, attribute: str) -> str:
        """The computation in `attribute=%name`; "" where there is none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def label(self) -> str:
        """The path of scopes in which the program's source made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]  # by name, in order


@functools.lru_cache(4096)
def arrays(type_: str) -> tuple[Array, ...]:
    """The arrays of a type; of a tuple all of its elements'."""
    return tuple(_array(*found) for found in _ARRAY.findall(type_))


def _array(kind: str, text: str, layout: str) -> Array:
    dims = tuple(int(n.lstrip("<=")) for n in text.split(",") if n)
    bits = _BITS.get(kind) or (16 if kind.startswith("bf16") else 8 if kind.startswith("f8") else 0)
    padded = list(dims)
    order, _, rest = layout.strip("{}").partition(":")
    minor_first = [int(n) for n in order.split(",") if n]
    if tile := _TILE.search(rest):
        for size, axis in zip(reversed([int(n) for n in tile[1].split(",")]), minor_first, strict=False):
            padded[axis] = -(-padded[axis] // size) * size
    space = _SPACE.search(rest)
    return Array(dims, -(-math.prod(padded) * bits // 8), bool(space and space[1] != "0"))


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the entry's name)."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = ""
    for line in text.splitlines():
        if current is None:
            if found := _COMPUTATION.match(line):
                current = computations[found[2]] = {}
                entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is no HLO text: it has no ENTRY computation")
    return computations, entry


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    found = _OPCODE.match(rest, end)
    if not found:
        raise ValueError(f"an instruction that cannot be read: {name} = {rest[:200]}")
    close = _closing(rest, found.end() - 1)
    arguments = rest[found.end() : close - 1]
    operands = tuple(_NAME.findall(arguments)) if found[1] != "constant" else ()
    return Instruction(name, rest[:end], found[1], operands, arguments, rest[close:], root)


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"an instruction that does not end: {text[:200]}")
