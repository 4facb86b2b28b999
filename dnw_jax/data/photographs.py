"""ImageNet's transforms: encoded photographs -> square uint8 images, on the host."""

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "height width 3"]

# The ranges of torchvision's RandomResizedCrop: the share of the area, and width / height.
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


def evaluation_image(encoded: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the shorter side to size / 0.875 (256 for 224) and returns the central square.

    The pixels equal those of torchvision's Resize (bilinear, antialiased) and CenterCrop on a
    Pillow image. Like torchvision it ignores EXIF rotations.

    Args:
      encoded: an image file: JPEG or anything else that Pillow reads.
      size: height and width of the result.
    """
    image = _open(encoded)
    shorter = round(size / 0.875)
    # Torchvision truncates the longer side.
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
    """Returns a random part of the photograph, resized.

    The distribution is that of torchvision's RandomResizedCrop: 8 % to 100 % of the area, width
    to height 3:4 to 4:3. libjpeg-turbo decodes and OpenCV resizes, in half of Pillow's time. The
    pixels differ a little from Pillow's, because OpenCV interpolates between the nearest pixels
    instead of averaging over all of them. A part that is at least twice as large as the result is
    decoded at a smaller size, so that most pixels are averaged all the same.

    Args:
      encoded: an image file: JPEG or anything else that Pillow reads.
      size: height and width of the result.
      rng: draws the part.
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
    """Decodes a whole photograph, at 1/2, 1/4 or 1/8 of its size if `shrink` >= 2, 4 or 8.

    Pillow decodes files that libjpeg-turbo refuses, so damaged files give Pillow's pixels or
    Pillow's errors.
    """
    import simplejpeg  # noqa: PLC0415 (an extra)

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        factor = 2 ** int(math.log2(max(shrink, 1)))
        return simplejpeg.decode_jpeg(
            encoded, min_height=height // factor, min_width=width // factor, min_factor=factor
        )
    except ValueError:  # not a JPEG, four channels, or damaged
        return np.asarray(_open(encoded))


def random_crop(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a random part of a photograph, as torchvision's RandomResizedCrop does.

    Draws area and ratio up to ten times. If none fits, it returns the largest central part with
    an allowed ratio.

    Args:
      width: of the photograph, in pixels.
      height: of the photograph, in pixels.
      rng: draws the part.

    Returns:
      (left, top, width, height) in pixels.
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
    """Converts every kind of image (grey, CMYK, palette, transparent) to three channels."""
    with Image.open(io.BytesIO(encoded)) as image:
        return image.convert("RGB")
