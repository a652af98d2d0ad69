"""Reads the text of a compiled XLA program: computations, their instructions, shapes. No JAX is imported here."""

import math
import re
from typing import NamedTuple

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "token": 0, "opaque": 0,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")


class Array(NamedTuple):
    """Type and dimensions of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of its elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return -(-self.size * _BITS[self.dtype] // 8)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: without its percent sign.
      opcode: "fusion", "custom-call", "add" ...
      results: the arrays it makes; more than one where it makes a tuple.
      operands: names of what it reads.
      attributes: the text behind the operands.
      called: computations that it runs: a fusion's, a loop's body, a conditional's branches.
      root: whether it is the computation's result.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    called: tuple[str, ...]
    root: bool

    @property
    def bytes(self) -> int:
        """Bytes of its results."""
        return sum(array.bytes for array in self.results)

    @property
    def size(self) -> int:
        """Elements of its first result."""
        return self.results[0].size if self.results else 0

    @property
    def target(self) -> str:
        """What a custom call calls, else ""."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def attribute(self, pattern: str, default: str = "") -> str:
        """Return the first group of a pattern in its attributes, or the default."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else default


Computation = dict[str, Instruction]  # by name, in the order in which they run


class Module(NamedTuple):
    """A program: its computations by name, and the name of the one that it starts with."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Read a program as `compiled.as_text()` prints it; ValueError for a text without an entry."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation = {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            one = _instruction(found[2], found[3], root=bool(found[1]))
            current[one.name] = one
    if not entry:
        raise ValueError("Expected the text of a compiled program, got one without an ENTRY computation.")
    return Module(computations, entry)


def _instruction(name: str, rest: str, *, root: bool) -> Instruction:
    """Read what stands behind "name = ": shape, opcode, operands in parentheses, attributes."""
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, shape_end)
    if opcode is None:
        raise ValueError(f"Expected an instruction, got {rest[:80]}.")
    end = _closing(rest, opcode.end() - 1)
    attributes = rest[end + 1 :]
    return Instruction(
        name=name,
        opcode=opcode[1],
        results=tuple(
            Array(dtype, tuple(int(one) for one in dims.split(",") if one))
            for dtype, dims in _ARRAY.findall(rest[:shape_end])
        ),
        operands=tuple(_NAME.findall(rest[opcode.end() : end])),
        attributes=attributes,
        called=tuple(one for group in _CALLED.findall(attributes) for one in _NAME.findall(group)),
        root=root,
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    raise ValueError(f"Expected a closing parenthesis, got {text[opening : opening + 80]}.")
