"""Encoded photographs -> square uint8 images, on the host: ImageNet's transforms."""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "height width 3"]

# Of torchvision's RandomResizedCrop: shares of the area, and width / height.
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


def evaluation_image(encoded: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The central square: the shorter side resized to size / 0.875 (256 for 224), then cropped.

    The pixels are those of torchvision's Resize and CenterCrop on a Pillow image: bilinear,
    antialiased. EXIF rotations are ignored, as there.
    """
    image = _open(encoded)
    shorter = round(size / 0.875)
    # The shorter side exactly, the longer truncated.
    width, height = (
        shorter if side == min(image.size) else int(shorter * side / min(image.size))
        for side in image.size
    )
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def training_image(
    encoded: bytes, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """A random part of the photograph, resized.

    The distribution of torchvision's RandomResizedCrop (8 % to 100 % of the area, 3:4 to 4:3).
    Decoded by libjpeg-turbo and resized by OpenCV, in half of Pillow's time; the pixels differ a
    little from Pillow's, as OpenCV does not average over what it leaves out. Where that is more
    than one pixel of two the JPEG is decoded at a smaller size.
    """
    import cv2  # noqa: PLC0415 (an extra)

    width, height = Image.open(io.BytesIO(encoded)).size  # reads the header alone
    left, top, crop_width, crop_height = random_crop(width, height, rng)
    decoded = _decode(encoded, shrink=min(crop_width, crop_height) / size)
    scale_x, scale_y = decoded.shape[1] / width, decoded.shape[0] / height
    rows = slice(round(top * scale_y), max(round((top + crop_height) * scale_y), 1))
    columns = slice(round(left * scale_x), max(round((left + crop_width) * scale_x), 1))
    return cv2.resize(decoded[rows, columns], (size, size), interpolation=cv2.INTER_LINEAR)


def _decode(encoded: bytes, shrink: float) -> Pixels:
    """All pixels; at a smaller size where `shrink` >= 2, which is by how much it may be smaller.

    Of a damaged file it shows what Pillow shows, or raises what Pillow raises.
    """
    import simplejpeg  # noqa: PLC0415 (an extra)

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        factor = 2 ** int(math.log2(max(shrink, 1)))
        return simplejpeg.decode_jpeg(
            encoded, min_height=height // factor, min_width=width // factor, min_factor=factor
        )
    except ValueError:  # no JPEG, four channels, or damaged: Pillow decides
        return np.asarray(_open(encoded))


def random_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random part, drawn as torchvision's RandomResizedCrop does.

    Ten draws of area and ratio; if none fits, the largest central part of an allowed ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(0, width - crop_width + 1))
            top = int(rng.integers(0, height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = min(width, round(height * _RATIO[1]))
    crop_height = min(height, round(width / _RATIO[0]))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _open(encoded: bytes) -> Image.Image:
    """Three channels, whatever the file has: grey, CMYK, a palette, transparency."""
    with Image.open(io.BytesIO(encoded)) as image:
        return image.convert("RGB")
