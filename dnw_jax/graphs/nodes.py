"""What a node does with its plane: normalise, ReLU, single-channel 3x3 convolution."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.ops.depthwise import depthwise_conv3x3
from dnw_jax.ops.norms import instance_norm

EVERY_NODE = slice(None)
EVERY_PIXEL = (slice(None), slice(None))

Planes = Float[Array, "batch height width nodes"]
FiredPlanes = Float[Array, "batch out_height out_width nodes"]
Kernel = Float[Array, "3 3 nodes"]


class NodeValues(NamedTuple):
    """Parameters of some nodes as plain arrays, and both halves of the node operation.

    Where the edges stand between the halves depends on the wiring: static graphs normalise and
    convolve before the edges, graphs in time convolve before and normalise after them.
    """

    scale: Float[Array, " nodes"]
    bias: Float[Array, " nodes"]
    kernel: Kernel

    def select(self, nodes: slice) -> "NodeValues":
        """Returns the parameters of a range of nodes."""
        return NodeValues(self.scale[nodes], self.bias[nodes], self.kernel[..., nodes])

    def normalise(self, planes: Planes, *, rectify: bool = False) -> Planes:
        """Returns instance-normalised planes; with `rectify` a ReLU follows."""
        return instance_norm(planes, self.scale, self.bias, rectify)

    def convolve(self, planes: Planes, stride: int = 1) -> FiredPlanes:
        """Returns each plane convolved with its node's 3x3 kernel, without bias."""
        return _convolve(planes, self.kernel, stride)


def _convolve(planes: Planes, kernel: Kernel, stride: int) -> FiredPlanes:
    return depthwise_conv3x3(planes, kernel.astype(planes.dtype), stride)


@runtime_checkable
class FiringNodes(Protocol):
    """Nodes that a static graph can fire block by block."""

    def fire(self, planes: Planes, nodes: slice, *, train: bool, stride: int = 1) -> FiredPlanes:
        """Returns what the nodes of one block send: normalise, ReLU, convolution with `stride`.

        Args:
          planes: states of the block's nodes.
          nodes: the range of nodes that is the block.
          train: whether batch statistics are used and remembered.
          stride: of the convolution, in pixels.
        """


class Nodes(nnx.Module):
    """Trainable parameters of `num_nodes` nodes that normalise each image by itself."""

    def __init__(self, num_nodes: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(num_nodes))
        self.bias = nnx.Param(jnp.zeros(num_nodes))
        self.kernel = nnx.Param(uniform_fan_in(9)(rngs.params(), (3, 3, num_nodes)))

    def values(self) -> NodeValues:
        """Returns the current parameters, float32."""
        return NodeValues(self.scale[...], self.bias[...], self.kernel[...])

    def fire(self, planes: Planes, nodes: slice, *, train: bool, stride: int = 1) -> FiredPlanes:
        """Returns what the nodes send; see `FiringNodes`. `train` makes no difference."""
        del train
        values = self.values().select(nodes)
        return values.convolve(values.normalise(planes, rectify=True), stride)


class BatchNormNodes(nnx.Module):
    """Trainable parameters of `num_nodes` nodes that normalise over the batch."""

    def __init__(self, num_nodes: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(num_nodes)
        self.kernel = nnx.Param(uniform_fan_in(9)(rngs.params(), (3, 3, num_nodes)))

    def fire(self, planes: Planes, nodes: slice, *, train: bool, stride: int = 1) -> FiredPlanes:
        """Returns what the nodes send; see `FiringNodes`."""
        planes = self.norm(planes, train=train, channels=nodes, rectify=True)
        return _convolve(planes, self.kernel[..., nodes], stride)
