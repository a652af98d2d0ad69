"""The GPUs that programs are compiled for, and the most that each can do by its maker's data sheet.

`cards/*.textproto` are XLA's descriptions of them (cores, memory, bandwidth, CUDA 13.0, cuDNN 9.12). Peaks are those of
data sheets, without sparsity: no product reaches them, so a floor of seconds from them is one that no program can beat.
"""

import re
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent / "cards"
_USABLE = 0.75  # of a card's memory: what JAX takes at its start unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


class Card(NamedTuple):
    """A GPU.

    Attributes:
      name: as the command line calls it.
      title: as its maker does.
      text: XLA's description.
      memory: bytes that it has.
      bandwidth: bytes/s of its memory.
      product_flops: operations/s of dense products by type: bfloat16, and float32 as JAX computes it by default (TF32)
        and at the highest precision.
      flops: float32 operations/s outside of products, two a multiply-add.
      integers: 32-bit integer operations/s: 64 a core (streaming multiprocessor) and cycle on all of these.
      source: of the peaks.
    """

    name: str
    title: str
    text: str
    memory: int
    bandwidth: float
    product_flops: dict[str, float]
    flops: float
    integers: float
    source: str

    @property
    def usable(self) -> int:
        """Bytes that JAX can use."""
        return int(_USABLE * self.memory)


def _card(name: str, bfloat16: float, tf32: float, float32: float, source: str) -> Card:
    text = (_FOLDER / f"{name}.textproto").read_text()

    def value(field: str) -> str:
        return re.findall(rf"^\s*{field}: (.*)$", text, re.MULTILINE)[0].strip('"')

    return Card(
        name=name,
        title=value("device_description_str"),
        text=text,
        memory=int(value("device_memory_size")),
        bandwidth=float(value("memory_bandwidth")),
        product_flops={"bfloat16": bfloat16, "float32": tf32, "float32, highest precision": float32},
        flops=float32,
        integers=64 * int(value("core_count")) * float(value("clock_rate_ghz")) * 1e9,
        source=source,
    )


CARDS = {
    card.name: card
    for card in (
        _card("h100", 989.4e12, 494.7e12, 66.9e12, "NVIDIA H100 data sheet, SXM5"),
        _card("a100", 312e12, 156e12, 19.5e12, "NVIDIA A100 data sheet, SXM4 80 GB"),
        _card("rtx_3050", 18.2e12, 9.1e12, 9.1e12, "20 SMs at 1.777 GHz by NVIDIA's GA102 whitepaper"),
    )
}
