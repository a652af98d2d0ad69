"""A graph of PyTorch's core ATen operations, run by JAX."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from idrc_jax.interop.pixels import Operation, Pixels, as_torch


class Value(NamedTuple):
    """The result of an instruction, or an input, by its number."""

    number: int


class Instruction(NamedTuple):
    """`values[number] = run(*arguments, **options)`, where arguments may hold `Value`s."""

    name: str
    run: Operation
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def result(self, values: Sequence[Any] | Mapping[int, Any]) -> Any:
        """Run it on the values that its arguments name."""
        return self.run(*filled(self.arguments, values), **filled(self.options, values))


class Program(NamedTuple):
    """A graph: values 0 .. are the images [N, C, H, W], the tensors in this order, then each instruction's result."""

    tensors: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    result: Value

    def __call__(self, params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        """Compute the result for images [N, H, W, C]."""
        return as_torch(self.values(params, images)[self.result.number])

    def values(self, params: dict[str, jax.Array], images: jax.Array) -> list[Any]:
        """Compute all values for images [N, H, W, C]."""
        values: list[Any] = [Pixels(images), *[params[name] for name in self.tensors]]
        for instruction in self.instructions:
            values.append(instruction.result(values))
        return values

    def __str__(self) -> str:
        lines = [f"{name} {arguments} {options}" for name, _, arguments, options in self.instructions]
        return "\n".join([*self.tensors, *lines, str(self.result)])


def filled(argument: Any, values: Sequence[Any] | Mapping[int, Any]) -> Any:
    """Put values in place of the `Value`s in an argument."""
    if isinstance(argument, Value):
        return values[argument.number]
    if isinstance(argument, tuple):
        return tuple(filled(one, values) for one in argument)
    if isinstance(argument, dict):
        return {name: filled(one, values) for name, one in argument.items()}
    return argument


def numbers_in(argument: Any) -> set[int]:
    """Find the numbers of the `Value`s in an argument."""
    if isinstance(argument, Value):
        return {argument.number}
    inner = argument.values() if isinstance(argument, dict) else argument if isinstance(argument, tuple) else ()
    return {number for one in inner for number in numbers_in(one)}


def renumbered(argument: Any, numbers: dict[int, int]) -> Any:
    """Give the `Value`s in an argument other numbers."""
    if isinstance(argument, Value):
        return Value(numbers[argument.number])
    if isinstance(argument, tuple):
        return tuple(renumbered(one, numbers) for one in argument)
    if isinstance(argument, dict):
        return {name: renumbered(one, numbers) for name, one in argument.items()}
    return argument
