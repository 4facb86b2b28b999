"""A model as one flat list of simple operations: what everything that deploys a network reads.

`lower(model, image_size)` translates each model of this package to the same few operations (see
`operations.py`). It chooses the edges once, in evaluation mode, and converts every array to NumPy
float32. A bfloat16 model is computed in float32, so its logits differ by the rounding of bfloat16.

To walk a network, loop over `network.operations`. They are in an order in which they can be
computed: `operation.inputs` names values that earlier operations computed, or `INPUT`, the images.
Every value has exactly one origin. `network.sizes[name]` gives its height, width and channels.

    values = {INPUT: images}
    for operation in network.operations:
        inputs = [values[name] for name in operation.inputs]
        match operation:
            case Edges():  # weights [sources, targets]; mask marks the real edges
                ...

What a consumer may rely on, without knowledge of any model class:

- The kinds of operations are those of `operations.py`. `Product` is the base of everything that has
  edges (`Edges`, `Convolution`, `Linear`): `weights` and `real_edges` have sources on the axis -2
  and targets on the axis -1. All other operations but `Slice` and `AppendZeros` map channel i of
  their inputs to channel i of their output.
- `operation.part` names the part of the model ("stem", "graph_0", "layer1.0.conv1", "head");
  `network.parts` groups the operations by it, in the order of the model.
- Inside of a graph `operation.nodes` numbers the nodes of its output's channels (`Edges.sources`
  those of its input's channels). Nodes 0, 1, ... are the inputs of the graph. Operations of one
  part, one kind and equal nodes share their parameters: the steps of a graph in time.
- `network.wirings` holds what was chosen for whole graphs, also the edges that point backwards,
  which no operation uses.
- To remove channels, work backwards: `liveness.py` shows how the need for a value's channels passes
  through each kind of operation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from dnw_jax.deploy.operations import NOT_CALLABLE, Operation, Size, Solve
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A lowered network; call it with images to compute logits in NumPy.

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


def lower(model: "nnx.Module", image_size: int = 224) -> Network:
    """Lowers a model of this package to a flat list of operations.

    The network's logits are those of `model(images, train=False)` up to the rounding of float32.

    Args:
      model: a model that `build_model` returned. Later changes of its parameters have no effect.
      image_size: height and width of the images in pixels, at least 1.

    Raises:
      UserError: the model is not one of this package.
    """
    from dnw_jax.deploy.lowering import lowered  # noqa: PLC0415 - it imports JAX

    return lowered(model, image_size)
