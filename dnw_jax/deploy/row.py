"""What one part of a network costs."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One part of a network.

    Attributes:
      name: the attribute that holds it.
      params: numbers that the executed part needs, biases and norms included.
      macs: multiply-adds for one image; norms and averages are not counted.
      nodes, live_nodes: nodes that can fire, and those whose signal reaches an output.
      dead_inputs: inputs of a graph whose signal does not.
      edges: edges that carry signal to an output.
    """

    name: str
    params: int
    macs: int
    nodes: int | None = None
    live_nodes: int | None = None
    dead_inputs: int | None = None
    edges: int | None = None


def size_after(size: int, stride: int) -> int:
    """Height or width of planes after a stride."""
    return math.ceil(size / stride)
