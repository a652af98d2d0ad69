"""A graph of PyTorch's core ATen operations, run by JAX."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from idrc_jax.interop import torch_operators


class Value(NamedTuple):
    """The result of an instruction, or an input, by its number."""

    number: int


class Instruction(NamedTuple):
    """`values[number] = run(*arguments, **options)`, where arguments may hold `Value`s."""

    name: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Program(NamedTuple):
    """A graph: values 0 .. are the images [N, C, H, W], the tensors in this order, then each instruction's result."""

    tensors: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    result: Value

    def __call__(self, params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        """The result for images [N, H, W, C]."""
        return torch_operators.as_torch(self.values(params, images)[self.result.number])

    def values(self, params: dict[str, jax.Array], images: jax.Array) -> list[Any]:
        """All values for images [N, H, W, C]."""
        values: list[Any] = [torch_operators.Pixels(images), *[params[name] for name in self.tensors]]
        for name, run, arguments, options in self.instructions:
            short = name.removeprefix("aten.")
            values.append(torch_operators.call(short, run, filled(arguments, values), filled(options, values)))
        return values

    def __str__(self) -> str:
        lines = [f"{name} {arguments} {options}" for name, _, arguments, options in self.instructions]
        return "\n".join([*self.tensors, *lines, str(self.result)])


def filled(argument: Any, values: Sequence[Any] | Mapping[int, Any]) -> Any:
    """An argument with values in place of `Value`s."""
    if isinstance(argument, Value):
        return values[argument.number]
    if isinstance(argument, tuple):
        return tuple(filled(one, values) for one in argument)
    if isinstance(argument, dict):
        return {name: filled(one, values) for name, one in argument.items()}
    return argument


def numbers_in(argument: Any) -> set[int]:
    """Those of the `Value`s in an argument."""
    if isinstance(argument, Value):
        return {argument.number}
    inner = argument.values() if isinstance(argument, dict) else argument if isinstance(argument, tuple) else ()
    return {number for one in inner for number in numbers_in(one)}


def renumbered(argument: Any, numbers: dict[int, int]) -> Any:
    """An argument whose `Value`s have other numbers."""
    if isinstance(argument, Value):
        return Value(numbers[argument.number])
    if isinstance(argument, tuple):
        return tuple(renumbered(one, numbers) for one in argument)
    if isinstance(argument, dict):
        return {name: renumbered(one, numbers) for name, one in argument.items()}
    return argument
