"""Collects the operations of a network, and translates the layers that every model has."""

from typing import Any

import numpy as np
from flax import nnx

from dnw_jax.deploy.network import INPUT, Network, Wiring
from dnw_jax.deploy.operations import MeanPool, Norm, Operation, Relu, Size
from dnw_jax.deploy.products import Convolution
from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.sparse_layer import SparseConv


class Builder:
    """A network that is not complete yet. Its methods append operations.

    `value` is the name of the value that an operation reads; each method returns the name of the
    value that it added, `part/label`.

    Args:
      image_size: height and width of the images in pixels.
      num_channels: channels of the images.

    Attributes:
      sizes: the size of each value that was added, and of the images, by name.
      wirings: the edges of whole graphs, by part; the caller fills it.
    """

    def __init__(self, image_size: int, num_channels: int):
        self._operations: list[Operation] = []
        self.sizes = {INPUT: Size(image_size, image_size, num_channels)}
        self.wirings: dict[str, Wiring] = {}

    def add(self, kind: type[Operation], part: str, label: str, *inputs: str, **fields: Any) -> str:
        """Appends an operation.

        Args:
          kind: class of the operation.
          part: the part of the model that it belongs to.
          label: names its output within the part.
          *inputs: names of the values that it reads, which were added before.
          **fields: the other fields of `kind`.

        Returns:
          The name of its output.

        Raises:
          ValueError: the part has this label already.
        """
        output = f"{part}/{label}"
        if output in self.sizes:
            raise ValueError(f"two operations compute {output}")
        operation = kind(inputs=inputs, output=output, part=part, **fields)
        self._operations.append(operation)
        self.sizes[output] = operation.size(*(self.sizes[name] for name in inputs))
        return output

    def convolution(self, part: str, label: str, value: str, layer: nnx.Conv) -> str:
        """Appends a convolution, with a mask if the layer chooses edges."""
        sparse = layer if isinstance(layer, SparseConv) else None
        return self.add(
            Convolution,
            part,
            label,
            value,
            weights=numbers(sparse.real_weights() if sparse else layer.kernel[...]),
            mask=np.asarray(sparse.real_edges()) if sparse else None,
            bias=None if layer.bias is None else numbers(layer.bias[...]),
            stride=layer.strides,
            padding=layer.padding,
        )

    def batch_norm(
        self,
        part: str,
        label: str,
        value: str,
        norm: BatchNorm,
        *,
        nodes: range | None = None,
        rectify: bool = False,
    ) -> str:
        """Appends a norm by running statistics, and a ReLU if `rectify`.

        Args:
          part, label: name the output.
          value: name of the planes to normalise.
          norm: holds the statistics and parameters.
          nodes: in a graph, the nodes whose planes `value` holds; `norm` is that of all its nodes.
          rectify: whether the result is that of a ReLU after the norm, `part/label.relu`.
        """
        channels = slice(None) if nodes is None else slice(nodes.start, nodes.stop)
        scale, bias, mean, variance = (
            numbers(variable[channels]) for variable in (norm.scale, norm.bias, norm.mean, norm.var)
        )
        value = self.add(
            Norm,
            part,
            label,
            value,
            scale=scale,
            bias=bias,
            mean=mean,
            variance=variance,
            nodes=nodes,
        )
        return self.relu(part, f"{label}.relu", value, nodes=nodes) if rectify else value

    def relu(self, part: str, label: str, value: str, *, nodes: range | None = None) -> str:
        """Appends a ReLU."""
        return self.add(Relu, part, label, value, nodes=nodes)

    def global_average(self, part: str, label: str, value: str) -> str:
        """Appends the mean over all pixels."""
        size = self.sizes[value]
        rows, columns = range(size.height), range(size.width)
        return self.add(MeanPool, part, label, value, rows=rows, columns=columns)

    def network(self, model: nnx.Module) -> Network:
        """Returns the network; the operation that was appended last computes the logits."""
        return Network(
            model=type(model).__name__,
            operations=tuple(self._operations),
            sizes=self.sizes,
            wirings=self.wirings,
        )


def numbers(array: Any) -> np.ndarray:
    """Converts an array or a variable of Flax to NumPy float32."""
    return np.asarray(array, np.float32)
