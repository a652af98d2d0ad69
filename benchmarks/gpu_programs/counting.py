"""Counts a compiled program: kernels, bytes that they read and write, operations, by what they are for.

What is counted is what the optimised program says, not what a card does: every kernel reads its operands from memory
and writes its results to it once. No cache, no second pass inside a library's kernel. No JAX is imported here.
"""

import math
import re
from dataclasses import dataclass, field, fields

from benchmarks.gpu_programs.hlo import Computation, Instruction, Module

CONVOLUTIONS, PRODUCTS, PASSES, NOISE, LAYOUT, COLLECTIVES, SORTS = CLASSES = (
    "convolutions", "products", "passes", "noise", "layout", "collectives", "sorts",
)  # fmt: skip
# Instructions that are no kernel: names for memory, and the host's control of loops.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency",
}  # fmt: skip
_COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-")
_MOVES = {"copy", "transpose", "bitcast", "parameter", "reshape", "convert", "constant", "tuple", "get-tuple-element"}
_READS_PART = {"dynamic-slice", "gather", "slice"}
_NO_OPERATION = _MOVES | {
    "broadcast", "iota", "slice", "dynamic-slice", "dynamic-update-slice", "gather", "concatenate", "pad", "reverse",
    "bitcast-convert", "while", "fusion", "custom-call", "call", "conditional",
}  # fmt: skip
_SCALARS = 64  # bytes: a copy of a loop's counter is no layout change


@dataclass
class Cost:
    """Of some kernels: their number, bytes moved, floating-point operations, integer operations."""

    kernels: int = 0
    bytes: int = 0
    flops: int = 0
    integers: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Add another's, so many times."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + times * getattr(other, one.name))


@dataclass
class Count:
    """Costs by class.

    Attributes:
      by_class: one `Cost` for each of `CLASSES`.
      moves: what each kernel of the class "layout" is called, with its bytes.
    """

    by_class: dict[str, Cost] = field(default_factory=lambda: {name: Cost() for name in CLASSES})
    moves: list[str] = field(default_factory=list)

    def add(self, other: "Count", times: int = 1) -> None:
        """Add another's, so many times."""
        for name, cost in other.by_class.items():
            self.by_class[name].add(cost, times)
        self.moves += other.moves

    @property
    def total(self) -> Cost:
        """Of all classes."""
        whole = Cost()
        for cost in self.by_class.values():
            whole.add(cost)
        return whole


def count_loop(module: Module) -> Count:
    """Count one turn of the program's main loop (a chunk, a training step); the whole program where it has none.

    The main loop is the `while` of the entry whose body moves most bytes. Loops inside it count by their trip count.
    """
    bodies = [one.called[-1] for one in _loops(module, module.entry)]
    counts = [_count(module, body) for body in bodies]
    return max(counts, key=lambda count: count.total.bytes, default=None) or _count(module, module.entry)


def count_all(module: Module) -> Count:
    """Count the whole program; a loop without a known trip count counts once."""
    return _count(module, module.entry)


def _loops(module: Module, name: str) -> list[Instruction]:
    found = []
    for one in module.computations[name].values():
        if one.opcode == "while":
            found.append(one)
        elif one.opcode == "call":
            found += [loop for called in one.called for loop in _loops(module, called)]
    return found


def _count(module: Module, name: str) -> Count:
    count = Count()
    computation = module.computations[name]
    for one in computation.values():
        if one.opcode == "while":
            times = int(one.attribute(r'"known_trip_count":\{"n":"(\d+)"', "1"))
            count.add(_count(module, one.called[-1]), times)
        elif one.opcode == "call":
            for called in one.called:
                count.add(_count(module, called))
        elif one.opcode == "conditional":
            count.add(max((_count(module, called) for called in one.called), key=lambda each: each.total.bytes))
        elif one.opcode not in _FREE and not one.opcode.endswith(("-done", "-update")):
            inside = _inside(module, computation, one)
            kind = _class(one, [each for _, each in inside])
            cost = Cost(1, _bytes(module, computation, one), *_operations(inside))
            count.by_class[kind].add(cost)
            if kind == LAYOUT:
                count.moves.append(f"{one.name} of {cost.bytes:,} bytes")
    return count


def _inside(module: Module, computation: Computation, one: Instruction) -> list[tuple[Computation, Instruction]]:
    """The instructions of a fusion, else itself; each with the computation that has its operands."""
    if one.opcode not in ("fusion", "async-start"):
        return [(computation, one)]
    found = []
    for called in one.called:
        inner = module.computations[called]
        for each in inner.values():
            found += _inside(module, inner, each)
    return found


def _class(one: Instruction, inside: list[Instruction]) -> str:
    opcodes = {each.opcode for each in inside}
    targets = " ".join(each.target for each in inside)
    if any(_COLLECTIVE.match(opcode) for opcode in opcodes):
        return COLLECTIVES
    if "__cudnn$conv" in targets or "convolution" in opcodes or any(_is_our_convolution(each) for each in inside):
        return CONVOLUTIONS
    if "__cublas" in targets or "__cudnn$fmha" in targets or "dot" in opcodes:
        return PRODUCTS
    if "sort" in opcodes or "Sort" in targets or "sort" in targets:
        return SORTS
    if any(each.opcode in ("xor", "shift-right-logical") and each.results[0].dtype == "u32" for each in inside):
        return NOISE  # Threefry's rounds, and bits that become floats
    if opcodes & {"copy", "transpose", "copy-start"} and opcodes <= _MOVES | {"copy-start"} and one.bytes > _SCALARS:
        return LAYOUT
    return PASSES


def _is_our_convolution(one: Instruction) -> bool:
    """Whether it calls `kernels.convolution_gpu`."""
    return one.target.endswith("triton") and 'name = "convolution_gpu"' in one.attributes


def _bytes(module: Module, computation: Computation, one: Instruction) -> int:
    """What a kernel reads and writes: operands, or the parts of them that it takes, and results."""
    if one.opcode == "fusion":
        fused = module.computations[one.called[0]]
        read = sum(_read_in_fusion(fused, each) for each in fused.values() if each.opcode == "parameter")
        return read + _written(fused, next(each for each in fused.values() if each.root))
    operands = [computation[name].bytes for name in one.operands]
    if one.opcode in _READS_PART:
        operands[0] = min(operands[0], one.bytes)
    elif one.opcode == "dynamic-update-slice":
        operands[0] = 0  # in place
    elif one.target.startswith("__cudnn$conv"):
        seen = 1 if "BackwardInput" in one.target else 0  # which operand's pixels the windows pass over
        operands[0] = operands[0] if seen else int(operands[0] * _share_in_windows(one))
    return sum(operands) + _written(computation, one)


def _share_in_windows(one: Instruction) -> float:
    """The share of a convolution's pixels that lie in its windows: a quarter for 1x1 with strides of 2."""
    size, stride = (one.attribute(rf"window={{[^}}]*{name}=([\dx]+)").split("x") for name in ("size", "stride"))
    steps = stride if stride != [""] else ["1"] * len(size)
    return math.prod(min(1.0, int(side) / int(step)) for side, step in zip(size, steps, strict=True))


def _read_in_fusion(fused: Computation, parameter: Instruction) -> int:
    """Bytes of a fusion's parameter that it reads: all, or what slices and gathers take of it."""
    taken = 0
    waiting = [parameter.name]
    while waiting:
        name = waiting.pop()
        for user in fused.values():
            if name not in user.operands:
                continue
            if user.opcode == "bitcast":
                waiting.append(user.name)
            elif user.opcode in _READS_PART and user.operands[0] == name:
                taken += user.bytes
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:  # which is in place
                return parameter.bytes
    return min(parameter.bytes, taken)


def _written(scope: Computation, root: Instruction) -> int:
    """Bytes that an instruction writes: of an update in place what is new, of a library's call not its workspace."""
    if root.opcode == "tuple":
        return sum(_written(scope, scope[name]) for name in root.operands)
    if root.opcode == "bitcast":
        return min(root.bytes, _written(scope, scope[root.operands[0]]))
    if root.opcode == "dynamic-update-slice":
        return scope[root.operands[1]].bytes
    if root.opcode == "custom-call":
        return sum(one.bytes for at, one in enumerate(root.results) if not at or one.dtype not in ("s8", "u8"))
    return root.bytes


def _operations(inside: list[tuple[Computation, Instruction]]) -> tuple[int, int]:
    """Floating-point and integer operations of a kernel's instructions."""
    flops = integers = 0
    for scope, each in inside:
        if _is_our_convolution(each):
            taps, channels, _ = scope[each.operands[-1]].results[0].dims
            flops += 2 * taps * channels * each.size
        elif each.opcode in ("convolution", "dot") or each.target.startswith(("__cudnn", "__cublas")):
            flops += _multiply_adds(scope, each)
        elif each.opcode not in _NO_OPERATION and each.opcode not in _FREE:
            read = scope[each.operands[0]].size if each.opcode in ("reduce", "reduce-window") else each.size
            if each.results and each.results[0].dtype.startswith(("f", "bf")):
                flops += read
            else:
                integers += read
    return flops, integers


def _multiply_adds(scope: Computation, one: Instruction) -> int:
    """Floating-point operations, two a multiply-add, of a convolution, a product or an attention."""
    operands = [scope[name].results[0] for name in one.operands]
    result = one.results[0]
    if "conv" in one.target or one.opcode == "convolution":
        output, kernel = result, operands[1]
        if "BackwardInput" in one.target:
            output = operands[0]
        elif "BackwardFilter" in one.target:
            output, kernel = operands[1], result
        labels = one.attribute(r"dim_labels=\w+_(\w+)->")
        return 2 * output.size * kernel.size // kernel.dims[labels.index("o")]
    if "fmha" in one.target:
        query, key = operands[:2]
        return 4 * query.size * key.size // (key.dims[0] * math.prod(key.dims[2:]))
    contracted = one.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ",".join(
        re.findall(r"\d+", one.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]'))
    )
    return 2 * result.size * math.prod(operands[0].dims[int(axis)] for axis in contracted.split(",") if axis)
