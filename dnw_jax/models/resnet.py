"""ResNet v1.5 with every convolution and the last layer sparse: Table 4 of the paper.

The submodules have the names of the published code, which are torchvision's.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from dnw_jax.edges import RULES, Rule, split_key
from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.sparse_layer import SparseConv
from dnw_jax.models.numbered import add_numbered, numbered
from dnw_jax.ops.convolution import conv_general_dilated


class Arch(NamedTuple):
    """One of the five architectures.

    Attributes:
      bottleneck: whether a block is 1x1, 3x3, 1x1 (to four times the channels), or 3x3 twice.
      blocks: the number of blocks of each of the four layers.
    """

    bottleneck: bool
    blocks: tuple[int, int, int, int]


ARCHS = {
    "resnet18": Arch(False, (2, 2, 2, 2)),
    "resnet34": Arch(False, (3, 4, 6, 3)),
    "resnet50": Arch(True, (3, 4, 6, 3)),
    "resnet101": Arch(True, (3, 4, 23, 3)),
    "resnet152": Arch(True, (3, 8, 36, 3)),
}

# Makes a sparse convolution without bias: (num_in, num_out, window, stride) -> SparseConv.
MakeConv = Callable[[int, int, int, int], SparseConv]


class ResNet(nnx.Module):
    """ResNet v1.5: the 3x3 convolution of a bottleneck has the stride.

    Initial weights are normal with variance 2 / fan_in (He et al. 2015). The last layer is a 1x1
    convolution without bias, sparse like the others. Norms are dense.

    Args:
      arch: one of `ARCHS`.
      num_channels: of the images.
      num_classes: number of logits.
      sparsity: share of each kernel's weights that are not real, in [0, 1).
      rule: chooses the edges of every convolution.
      dense_first: the first convolution keeps all of its edges.
      small_images: the first convolution is 3x3 without stride, and nothing is pooled; else it is
        7x7 with stride 2, and a maximum over 3x3 with stride 2 follows.
      width: factor of every number of channels, rounded down.
      dtype: of the computation; the parameters are float32.
    """

    def __init__(
        self,
        arch: Arch,
        num_channels: int,
        num_classes: int,
        sparsity: float,
        rule: Rule,
        *,
        dense_first: bool = False,
        small_images: bool = False,
        width: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.small_images = small_images
        make_conv = functools.partial(
            _sparse_conv, sparsity=sparsity, rule=rule, dtype=dtype, rngs=rngs
        )
        make_dense_conv = functools.partial(make_conv, sparsity=0.0, rule=RULES["complete"])
        make_first_conv = make_dense_conv if dense_first else make_conv
        num_in = int(64 * width)
        window, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = make_first_conv(num_channels, num_in, window, stride)
        self.bn1 = BatchNorm(num_in)
        layers = []
        for index, num_blocks in enumerate(arch.blocks):
            stride, inner = 1 if index == 0 else 2, int(64 * 2**index * width)
            layer = Layer(
                arch.bottleneck, num_blocks, num_in, inner, stride=stride, make_conv=make_conv
            )
            layers.append(layer)
            num_in = layer.num_outputs
        add_numbered(self, "layer", layers, first=1)
        self.fc = make_conv(num_in, num_classes, 1, 1)

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Returns the logits, float32.

        Args:
          images: normalised.
          train: normalises by the statistics of this batch and updates the running ones.
          key: for rules that draw random numbers in training.
        """
        keys = split_key(key, 6)
        x = self.conv1(images.astype(self.dtype), train=train, key=keys[0])
        x = self.bn1(x, train=train, rectify=True)
        if not self.small_images:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for layer, layer_key in zip(numbered(self, "layer", first=1), keys[1:5], strict=True):
            x = layer(x, train=train, key=layer_key)
        features = jnp.mean(x.astype(jnp.float32), (1, 2), keepdims=True)
        logits = self.fc(features.astype(self.dtype), train=train, key=keys[5])
        return logits[:, 0, 0].astype(jnp.float32)


def _sparse_conv(
    num_in: int,
    num_out: int,
    window: int,
    stride: int,
    *,
    sparsity: float,
    rule: Rule,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> SparseConv:
    return SparseConv(
        num_in,
        num_out,
        (window, window),
        strides=stride,
        padding=window // 2,
        use_bias=False,
        kernel_init=_HE_NORMAL,
        conv_general_dilated=conv_general_dilated,
        sparsity=sparsity,
        rule=rule,
        dtype=dtype,
        rngs=rngs,
    )


# Not Flax's `he_normal`, which is truncated: it has no large weights to select.
_HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class Layer(nnx.Module):
    """Blocks one after the other, in the attributes "0", "1", ...; the first has the stride."""

    def __init__(
        self,
        bottleneck: bool,
        num_blocks: int,
        num_in: int,
        inner: int,
        *,
        stride: int,
        make_conv: MakeConv,
    ):
        self.num_blocks = num_blocks
        first = Block(bottleneck, num_in, inner, stride, make_conv)
        self.num_outputs = first.num_outputs
        others = [
            Block(bottleneck, self.num_outputs, inner, 1, make_conv) for _ in range(num_blocks - 1)
        ]
        add_numbered(self, "", [first, *others])

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns the planes of the last block."""
        keys = split_key(key, self.num_blocks)
        for block, block_key in zip(numbered(self, ""), keys, strict=True):
            x = block(x, train=train, key=block_key)
        return x


class Block(nnx.Module):
    """Convolutions and norms in the attributes conv1, bn1, conv2, ..., beside a shortcut.

    They are two convolutions of 3x3, or those of a bottleneck: 1x1, 3x3, and 1x1 to four times the
    channels. The shortcut is the input itself, or a 1x1 convolution and a norm if the shapes of
    input and output differ.
    """

    def __init__(self, bottleneck: bool, num_in: int, inner: int, stride: int, make_conv: MakeConv):
        self.stride = stride
        self.num_outputs = 4 * inner if bottleneck else inner
        if bottleneck:
            channels = [num_in, inner, inner, self.num_outputs]
            windows, strides = [1, 3, 1], [1, stride, 1]
        else:
            channels = [num_in, inner, inner]
            windows, strides = [3, 3], [stride, 1]
        self.num_layers = len(windows)
        convs = list(map(make_conv, channels[:-1], channels[1:], windows, strides))
        add_numbered(self, "conv", convs, first=1)
        add_numbered(self, "bn", [BatchNorm(num_out) for num_out in channels[1:]], first=1)
        self.downsample = (
            None
            if stride == 1 and num_in == self.num_outputs
            else Downsample(num_in, self.num_outputs, stride, make_conv)
        )

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns the rectified sum of the convolutions' output and the shortcut's."""
        keys = split_key(key, self.num_layers + 1)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x, train=train, key=keys[0])
        convs, norms = numbered(self, "conv", first=1), numbered(self, "bn", first=1)
        for conv, norm, conv_key in zip(convs, norms, keys[1:], strict=True):
            x = conv(x, train=train, key=conv_key)
            # The last norm is rectified only after the shortcut is added.
            x = norm(x, train=train, rectify=norm is not norms[-1])
        return jax.nn.relu(x + shortcut)


class Downsample(nnx.Module):
    """A 1x1 convolution and its norm, in the attributes "0" and "1"."""

    def __init__(self, num_in: int, num_out: int, stride: int, make_conv: MakeConv):
        add_numbered(self, "", [make_conv(num_in, num_out, 1, stride), BatchNorm(num_out)])

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns planes of the shape of the block's output."""
        conv, norm = numbered(self, "")
        return norm(conv(x, train=train, key=key), train=train)
