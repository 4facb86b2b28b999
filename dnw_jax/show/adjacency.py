"""Draws the adjacency matrix of a graph."""

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
    """Draws the real edges of a graph as bright pixels on a dark background.

    A positive weight is orange, a negative one blue. The larger |weight| is, the brighter is the
    pixel. Sources run downwards, targets to the right.

    Args:
      weights: the weight of every possible edge.
      mask: marks the real edges.
      smallest_side: in pixels, at least 1. A smaller matrix is magnified by a whole number until
        its shorter side has this length.

    Returns:
      An RGB picture.
    """
    magnitude = np.where(mask, np.abs(weights), 0)
    # The square root makes weak edges visible; the offset makes every real edge stand out.
    brightness = np.where(mask, 0.35 + 0.65 * np.sqrt(magnitude / max(magnitude.max(), 1e-12)), 0)
    colors = np.where((weights >= 0)[..., None], _POSITIVE, _NEGATIVE)
    picture = _BACKGROUND + brightness[..., None] * (colors - _BACKGROUND)
    zoom = max(1, -(-smallest_side // min(weights.shape)))
    return picture.round().astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
