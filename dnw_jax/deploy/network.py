"""A model as one flat list of simple operations: what everything that deploys a network reads.

`lower(model, image_size)` translates each model of this package to the same few kinds of operations
(`operations.py`, `products.py`). It chooses the edges once, in evaluation mode, and converts every
array to NumPy float32. A bfloat16 model is lowered to float32, so the logits differ by the rounding
of bfloat16.

To walk a network, loop over `network.operations`. Their order is one in which they can be computed:
`operation.inputs` names values of earlier operations, or `INPUT`, the images. Exactly one operation
computes each value. `network.sizes[name]` gives its height, width and channels.

    for operation in network.operations:
        match operation:
            case Edges():  # weights [sources, targets]; the mask marks the real edges
                emit_sparse(operation.weights, operation.inputs[0], operation.output)
            case Relu():
                ...

A consumer needs no knowledge of any model class. It may rely on these properties:

- Everything with edges is a `Product` (`Edges`, `Convolution`, `Linear`). Its `weights` and
  `real_edges` have sources on axis -2 and targets on axis -1. `Slice` and `AppendZeros` move
  channels. All other operations map channel i of each input to channel i of the output.
- `operation.part` names the part of the model ("stem", "graph_0", "layer1.0.conv1", "head").
  `network.parts` groups the operations by part, in the order in which the parts begin.
- Inside of a graph, `operation.nodes` numbers the nodes that the output's channels belong to, and
  `Edges.sources` those of the input's channels. The inputs of a graph are its first nodes. The
  steps of a graph in time are operations of one part that share the parameters of equal nodes.
- `network.wirings` holds the edges that were chosen for whole graphs. Edges that point backwards in
  a static graph are real there, but no operation uses them.
- To remove what is dead, work backwards: `liveness.py` shows how the need for channels passes
  through each kind of operation.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from dnw_jax.deploy.operations import NOT_CALLABLE, Array, Operation, Size, Solve
from dnw_jax.deploy.table import aligned
from dnw_jax.errors import UserError

if TYPE_CHECKING:
    from flax import nnx

INPUT = "images"


@dataclass(frozen=True, eq=False, kw_only=True)
class Wiring:
    """The edges of a whole graph as its rule chose them.

    Attributes:
      mask: the real edges, also those that point backwards and carry no signal.
      sources, targets: the numbers of the nodes that the rows and columns of `mask` stand for.
      num_inputs, num_outputs: the first and the last nodes are the inputs and outputs.
      sparsity: the share of all edges that the budget leaves out, in [0, 1].
    """

    mask: Bool[np.ndarray, "sources targets"]
    sources: range
    targets: range
    num_inputs: int
    num_outputs: int
    sparsity: float


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Network:
    """A lowered network; call it with images to compute logits in NumPy. Prints as a table.

    Attributes:
      model: name of the class that was lowered, for messages.
      operations: in an order in which they can be computed; the last one computes the logits.
      sizes: height, width and channels of each value, by its name.
      wirings: the graphs, by the part that holds them.
    """

    model: str
    operations: tuple[Operation, ...]
    sizes: Mapping[str, Size]
    wirings: Mapping[str, Wiring]

    @property
    def output(self) -> str:
        """Name of the value that holds the logits, as planes of one pixel."""
        return self.operations[-1].output

    @property
    def is_callable(self) -> bool:
        """Whether NumPy can compute the logits: False for graphs in continuous time."""
        return not any(isinstance(operation, Solve) for operation in self.operations)

    @property
    def parts(self) -> dict[str, list[Operation]]:
        """The operations of each part, in the order in which the parts begin."""
        parts: dict[str, list[Operation]] = {}
        for operation in self.operations:
            parts.setdefault(operation.part, []).append(operation)
        return parts

    def __str__(self) -> str:
        counts = [_num_numbers(operation) for operation in self.operations]
        heading = (
            f"{self.model}: {len(self.operations)} operations in {len(self.parts)} parts hold "
            f"{sum(counts):,} numbers"
        )
        rows = [
            (op.output, type(op).__name__, op.part, "x".join(map(str, self.sizes[op.output])), text)
            for op, text in zip(self.operations, map("{:,}".format, counts), strict=True)
        ]
        return "\n".join(
            [heading, *aligned([("output", "kind", "part", "size", "numbers"), *rows])]
        )

    __repr__ = __str__

    def __call__(
        self, images: Float[np.ndarray, "batch height width channels"]
    ) -> Float[np.ndarray, "batch classes"]:
        """Computes the logits of normalised images, in NumPy alone.

        Raises:
          UserError: images of another size than the network was lowered for, or a network that is
            not callable (see `is_callable`).
        """
        if not self.is_callable:
            raise UserError(NOT_CALLABLE)
        images = np.asarray(images, np.float32)
        if images.shape[1:] != self.sizes[INPUT]:
            height, width, channels = self.sizes[INPUT]
            raise UserError(
                f"images have the shape {images.shape}; this network takes [batch, {height}, "
                f"{width}, {channels}]: resize the images, or lower(model, image_size=...) again"
            )
        values = {INPUT: images}
        last_readers = {name: op for op in self.operations for name in op.inputs}
        for operation in self.operations:
            inputs = [values[name] for name in operation.inputs]
            values[operation.output] = operation(*inputs)
            for name in set(operation.inputs):  # frees memory
                if last_readers[name] is operation:
                    del values[name]
        return values[self.output][:, 0, 0]


def _num_numbers(operation: Operation) -> int:
    """Returns how many numbers an operation holds; of weights with a mask, the real edges.

    The steps of a graph in time hold the same numbers; each counts them.
    """
    arrays = {name: value for name, value in vars(operation).items() if isinstance(value, Array)}
    mask = arrays.pop("mask", None)
    num_absent = 0 if mask is None else int((~mask).sum())
    return sum(array.size for array in arrays.values()) - num_absent


def lower(model: "nnx.Module", image_size: int = 224) -> Network:
    """Lowers a model of this package to a flat list of operations.

    The network's logits are those of `model(images, train=False)` up to the rounding of float32.

    Args:
      model: a model that `build_model` returned. Later changes of its parameters have no effect.
      image_size: height and width of the images in pixels, at least 1.

    Raises:
      UserError: the model is not one of this package, or the image size is not an integer of at
        least 1.
    """
    from dnw_jax.deploy.lower_models import lowered  # noqa: PLC0415 - it imports JAX

    return lowered(model, _checked_size(image_size))


def _checked_size(image_size: int) -> int:
    try:
        pixels = operator.index(image_size)
    except TypeError:
        pixels = 0
    if pixels < 1:
        raise UserError(
            f"image_size is {image_size!r}; it must be an integer of at least 1, the height and "
            "width of the images in pixels"
        )
    return pixels
