"""What a node does with its plane: normalise, ReLU, single-channel 3x3 convolution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from dnw_jax.graphs.depthwise import depthwise_conv3x3
from dnw_jax.graphs.initialization import uniform_fan_in

EVERY_NODE = slice(None)

Planes = Float[Array, "batch height width nodes"]


class NodeValues(NamedTuple):
    """The parameters of some nodes as plain arrays, the node operation's two halves on them.

    A wiring puts its edges where it wants them: static graphs normalise and activate before the
    edges, graphs in time activate before and normalise after.
    """

    scale: Float[Array, " nodes"]
    bias: Float[Array, " nodes"]
    kernel: Float[Array, "3 3 nodes"]

    def of(self, nodes: slice) -> "NodeValues":
        """The values of a range of nodes."""
        return NodeValues(self.scale[nodes], self.bias[nodes], self.kernel[..., nodes])

    def normalise(self, planes: Planes) -> Planes:
        """Instance normalisation."""
        return instance_norm(planes, self.scale, self.bias)

    def activate(self, planes: Planes) -> Planes:
        """ReLU, then each node's own 3x3 convolution, without bias."""
        return depthwise_conv3x3(jax.nn.relu(planes), self.kernel.astype(planes.dtype))


class Nodes(nnx.Module):
    """Trainable parameters of `num_nodes` nodes."""

    def __init__(self, num_nodes: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(num_nodes))
        self.bias = nnx.Param(jnp.zeros(num_nodes))
        self.kernel = nnx.Param(uniform_fan_in(9)(rngs.params(), (3, 3, num_nodes)))

    def values(self) -> NodeValues:
        """The parameters as they are now, float32."""
        return NodeValues(self.scale[...], self.bias[...], self.kernel[...])


def instance_norm(
    planes: Float[Array, "batch height width nodes"],
    scale: Float[Array, " nodes"],
    bias: Float[Array, " nodes"],
    epsilon: float = 1e-5,
) -> Float[Array, "batch height width nodes"]:
    """Gives each plane of each image mean 0 and variance 1 over its pixels, then scale and bias.

    Statistics are float32 whatever the dtype of `planes`.
    """
    values = planes.astype(jnp.float32)
    centred = values - jnp.mean(values, (1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(centred), (1, 2), keepdims=True)
    return (centred * lax.rsqrt(variance + epsilon) * scale + bias).astype(planes.dtype)
