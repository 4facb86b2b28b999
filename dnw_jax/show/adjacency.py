"""The adjacency matrix of a graph as a picture."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

_BACKGROUND = np.array([16, 20, 32], np.float32)
_POSITIVE = np.array([255, 176, 64], np.float32)
_NEGATIVE = np.array([72, 176, 255], np.float32)


def adjacency_picture(
    weights: Float[np.ndarray, "sources targets"],
    mask: Bool[np.ndarray, "sources targets"],
    smallest_side: int = 400,
) -> UInt8[np.ndarray, "height width 3"]:
    """Real edges as bright pixels on dark: orange for a positive weight, blue for a negative one.

    Sources run downwards, targets to the right; the larger |weight|, the brighter. A small matrix
    is magnified by a whole number until its shorter side reaches `smallest_side` pixels.
    """
    magnitude = np.where(mask, np.abs(weights), 0)
    # The square root lets weak edges be seen; even the weakest real one stands out.
    brightness = np.where(mask, 0.35 + 0.65 * np.sqrt(magnitude / max(magnitude.max(), 1e-12)), 0)
    colour = np.where((weights >= 0)[..., None], _POSITIVE, _NEGATIVE)
    picture = _BACKGROUND + brightness[..., None] * (colour - _BACKGROUND)
    zoom = max(1, -(-smallest_side // min(weights.shape)))
    return picture.round().astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
