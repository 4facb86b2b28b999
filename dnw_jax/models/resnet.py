"""ResNet v1.5, every convolution and the last layer sparse (Table 4), named as published."""

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
from dnw_jax.ops.convolution import conv_general_dilated


class Arch(NamedTuple):
    """One of the five: the kind of its blocks, and how many each of the four layers has."""

    bottleneck: bool
    blocks: tuple[int, int, int, int]


ARCHS = {
    "resnet18": Arch(False, (2, 2, 2, 2)),
    "resnet34": Arch(False, (3, 4, 6, 3)),
    "resnet50": Arch(True, (3, 4, 6, 3)),
    "resnet101": Arch(True, (3, 4, 23, 3)),
    "resnet152": Arch(True, (3, 8, 36, 3)),
}

# (inputs, outputs, window, stride) -> a sparse convolution without bias.
MakeConv = Callable[[int, int, int, int], SparseConv]


class ResNet(nnx.Module):
    """ResNet v1.5 (the stride of a bottleneck is that of its 3x3 convolution), as published.

    Weights start normal with variance 2 / fan_in (He et al. 2015). The last layer is a convolution
    of 1x1 without bias, sparse as the others; norms are dense.

    Args:
      num_channels: of the images.
      sparsity: share of each kernel that is not real.
      dense_first: the first convolution keeps all of its edges.
      small_images: a first convolution of 3x3 without stride, no pooling; else 7x7 with stride 2
        and maximum over 3x3 with stride 2.
      width: factor of all numbers of channels, rounded down.
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
        first = functools.partial(make_conv, sparsity=0.0, rule=RULES["complete"])
        num_in = int(64 * width)
        window, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = (first if dense_first else make_conv)(num_channels, num_in, window, stride)
        self.bn1 = BatchNorm(num_in)
        for index, num_blocks in enumerate(arch.blocks):
            stride, inner = 1 if index == 0 else 2, int(64 * 2**index * width)
            layer = Layer(
                arch.bottleneck, num_blocks, num_in, inner, stride=stride, make_conv=make_conv
            )
            setattr(self, f"layer{index + 1}", layer)
            num_in = layer.num_outputs
        self.fc = make_conv(num_in, num_classes, 1, 1)

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. In training all norms use the batch's own statistics."""
        keys = split_key(key, 6)
        x = self.conv1(images.astype(self.dtype), train=train, key=keys[0])
        x = self.bn1(x, train=train, rectify=True)
        if not self.small_images:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x, train=train, key=keys[index])
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


# Truncated, as Flax's own, it would have no large weights to select.
_HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class Layer(nnx.Module):
    """Blocks one after the other, in attributes "0", "1", ...; the first may halve the planes."""

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
        self.num_outputs = num_in
        for index in range(num_blocks):
            block = Block(
                bottleneck, self.num_outputs, inner, stride if index == 0 else 1, make_conv
            )
            setattr(self, str(index), block)
            self.num_outputs = block.num_outputs

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """The last block's output."""
        for index, block_key in enumerate(split_key(key, self.num_blocks)):
            x = getattr(self, str(index))(x, train=train, key=block_key)
        return x


class Block(nnx.Module):
    """Two convolutions of 3x3, or 1x1, 3x3 and 1x1 to four times the channels, beside a shortcut.

    The shortcut is the input itself, or where shapes differ a convolution of 1x1 and a norm.
    """

    def __init__(self, bottleneck: bool, num_in: int, inner: int, stride: int, make_conv: MakeConv):
        self.stride = stride
        self.num_outputs = 4 * inner if bottleneck else inner
        if bottleneck:
            layers = [(inner, 1, 1), (inner, 3, stride), (self.num_outputs, 1, 1)]
        else:
            layers = [(inner, 3, stride), (inner, 3, 1)]
        self.num_layers = len(layers)
        before = num_in
        for index, (num_out, window, own_stride) in enumerate(layers, start=1):
            setattr(self, f"conv{index}", make_conv(before, num_out, window, own_stride))
            setattr(self, f"bn{index}", BatchNorm(num_out))
            before = num_out
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
        """Rectified sum of both ways."""
        keys = split_key(key, self.num_layers + 1)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x, train=train, key=keys[0])
        for index in range(1, self.num_layers + 1):
            x = getattr(self, f"conv{index}")(x, train=train, key=keys[index])
            rectify = index < self.num_layers  # the last one's sum with the shortcut is
            x = getattr(self, f"bn{index}")(x, train=train, rectify=rectify)
        return jax.nn.relu(x + shortcut)


class Downsample(nnx.Module):
    """A convolution of 1x1, "0", and its norm, "1"."""

    def __init__(self, num_in: int, num_out: int, stride: int, make_conv: MakeConv):
        setattr(self, "0", make_conv(num_in, num_out, 1, stride))
        setattr(self, "1", BatchNorm(num_out))

    def __call__(
        self,
        x: Float[Array, "batch height width inputs"],
        *,
        train: bool,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Planes of the block's output."""
        x = getattr(self, "0")(x, train=train, key=key)
        return getattr(self, "1")(x, train=train)
