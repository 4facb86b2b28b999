"""What a node does with its plane: normalise, ReLU, single-channel 3x3 convolution."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float

from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.ops.depthwise import depthwise_conv3x3
from dnw_jax.ops.norms import instance_norm

EVERY_NODE = slice(None)
EVERY_PIXEL = (slice(None), slice(None))

Planes = Float[Array, "batch height width nodes"]
Fired = Float[Array, "batch out_height out_width nodes"]


class NodeValues(NamedTuple):
    """The parameters of some nodes as plain arrays, the node operation's two halves on them.

    A wiring puts its edges where it wants them: static graphs normalise and convolve before the
    edges, graphs in time convolve before and normalise after.
    """

    scale: Float[Array, " nodes"]
    bias: Float[Array, " nodes"]
    kernel: Float[Array, "3 3 nodes"]

    def of(self, nodes: slice) -> "NodeValues":
        """The values of a range of nodes."""
        return NodeValues(self.scale[nodes], self.bias[nodes], self.kernel[..., nodes])

    def normalise(self, planes: Planes, *, rectify: bool = False) -> Planes:
        """Instance normalisation, with `rectify` a ReLU after it."""
        return instance_norm(planes, self.scale, self.bias, rectify)

    def convolve(self, planes: Planes, stride: int = 1) -> Fired:
        """Each node's own 3x3 convolution, without bias."""
        return _convolve(planes, self.kernel, stride)


def _convolve(planes: Planes, kernel: Float[Array, "3 3 nodes"], stride: int) -> Fired:
    return depthwise_conv3x3(planes, kernel.astype(planes.dtype), stride)


@runtime_checkable
class FiringNodes(Protocol):
    """Nodes that a static graph can fire block by block."""

    def fire(
        self,
        planes: Planes,
        nodes: slice,
        *,
        train: bool,
        stride: int = 1,
    ) -> Fired:
        """What the nodes of one block send: normalise, ReLU, convolution with `stride`."""


class Nodes(nnx.Module):
    """Trainable parameters of `num_nodes` nodes that normalise each image by itself."""

    def __init__(self, num_nodes: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jax.numpy.ones(num_nodes))
        self.bias = nnx.Param(jax.numpy.zeros(num_nodes))
        self.kernel = nnx.Param(uniform_fan_in(9)(rngs.params(), (3, 3, num_nodes)))

    def values(self) -> NodeValues:
        """The parameters as they are now, float32."""
        return NodeValues(self.scale[...], self.bias[...], self.kernel[...])

    def fire(self, planes: Planes, nodes: slice, *, train: bool, stride: int = 1) -> Fired:
        """As `FiringNodes.fire`; training makes no difference."""
        del train
        values = self.values().of(nodes)
        return values.convolve(values.normalise(planes, rectify=True), stride)


class BatchNormNodes(nnx.Module):
    """Trainable parameters of `num_nodes` nodes that normalise over the batch."""

    def __init__(self, num_nodes: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(num_nodes)
        self.kernel = nnx.Param(uniform_fan_in(9)(rngs.params(), (3, 3, num_nodes)))

    def fire(self, planes: Planes, nodes: slice, *, train: bool, stride: int = 1) -> Fired:
        """As `FiringNodes.fire`; training uses the batch's statistics and remembers them."""
        planes = self.norm(planes, train=train, channels=nodes, rectify=True)
        return _convolve(planes, self.kernel[..., nodes], stride)
