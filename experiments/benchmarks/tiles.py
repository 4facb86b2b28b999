"""Bytes of the arrays in a type of HLO, with and without the padding of a TPU's tiles.

A TPU stores an array in tiles, for example of 8 x 128 elements. The two minor dimensions are padded
to whole tiles: planes of 32 channels take four times their bytes if the channels are minor.
"""

import math
import re

_DTYPE = r"pred|bf16|[fsu]\d+"
_ARRAY = re.compile(rf"\b({_DTYPE})\[([\d,]*)\](?:\{{([\d,]*)(?::([^}}]*))?\}})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r"T\(([\d,]+)\)")


def arrays_of(result: str) -> list[str]:
    """Returns the type of each array of a type, with its layout."""
    return [match[0] for match in _ARRAY.finditer(result)]


def num_bytes(result: str) -> int:
    """Returns the bytes of all elements of a type."""
    return sum(
        _bytes_of(math.prod(_numbers(match[2])), match[1]) for match in _ARRAY.finditer(result)
    )


def bytes_in_memory(result: str, *, everywhere: bool = False) -> int:
    """Returns the bytes that the arrays of a type take, with padding, in the device's memory.

    Args:
      result: a type with its layout.
      everywhere: whether arrays in other memories count, too: those on the chip.
    """
    return sum(
        _bytes_of(math.prod(_padded(match)), match[1])
        for match in _ARRAY.finditer(result)
        if everywhere or _is_in_memory(match[4] or "")
    )


def _is_in_memory(layout: str) -> bool:
    space = _MEMORY_SPACE.search(layout)
    return not space or space[1] == "0"


def _padded(array: re.Match[str]) -> list[int]:
    """Returns the dimensions of an array, rounded up to whole tiles."""
    shape, order = _numbers(array[2]), _numbers(array[3] or "")
    tile = _TILE.search(array[4] or "")
    if tile:
        for axis, length in zip(order, reversed(_numbers(tile[1])), strict=False):
            shape[axis] += -shape[axis] % length
    return shape


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _bytes_of(elements: int, dtype: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    return math.ceil(elements * bits / 8)
