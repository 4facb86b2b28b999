"""ImageNet: pixels, random crops, damaged photographs, batches, and runs on the real sample."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from small_runs import DIGITS, ROOT, arrays, assert_same_bits, checkpoint_steps, rows

from dnw_jax import data
from dnw_jax.data.photographs import evaluation_image, random_crop, training_image
from dnw_jax.errors import UserError
from dnw_jax.main import main

REAL = ROOT.parent / "shared" / "data" / "tfds"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="no ../shared/data/tfds with the ImageNet sample"
)


def photograph(width: int, height: int, mode: str = "RGB", form: str = "JPEG") -> bytes:
    """A smooth picture whose corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    blue = 127.5 + 127.5 * np.sin(x / 9 + y / 7)
    image = Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return buffer.getvalue()


# Pixels.


def torchvision_pixels(encoded: bytes, size: int, resized: int) -> np.ndarray:
    """Resize(resized), CenterCrop(size), as torchvision 0.27 does it with Pillow images."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = image.size
    if width <= height:
        width, height = resized, int(resized * height / width)
    else:
        width, height = int(resized * width / height), resized
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (256, 256), (75, 56), (301, 1000), (224, 225)]
)
def test_evaluation_pixels_equal_torchvisions(width: int, height: int) -> None:
    encoded = photograph(width, height)
    ours = evaluation_image(encoded, 224)
    np.testing.assert_array_equal(ours, torchvision_pixels(encoded, 224, 256))
    assert (ours.shape, ours.dtype) == ((224, 224, 3), np.uint8)


@needs_real_data
def test_evaluation_pixels_of_real_photographs_equal_torchvisions() -> None:
    photographs = data.Photographs.of(section(), "test")
    for index in range(0, 100, 7):
        ours, _ = photographs.example(index, lambda encoded: evaluation_image(encoded, 224))
        theirs, _ = photographs.example(index, lambda e: torchvision_pixels(e, 224, 256))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
    ],
)
def test_every_kind_of_image_file_has_three_channels(mode: str, form: str) -> None:
    encoded = photograph(120, 90, mode, form)
    rng = np.random.default_rng(0)
    plain = evaluation_image(photograph(120, 90, "RGB", form), 64).astype(float)
    for image in (evaluation_image(encoded, 64), training_image(encoded, 64, rng)):
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
    if mode in ("CMYK", "RGBA"):
        assert np.abs(evaluation_image(encoded, 64) - plain).mean() < 8


def test_exif_rotations_are_ignored() -> None:
    image, exif = Image.open(io.BytesIO(photograph(120, 90))), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    plain = io.BytesIO()
    image.save(plain, "JPEG", quality=95)
    for transform in (
        lambda encoded: evaluation_image(encoded, 64),
        lambda encoded: training_image(encoded, 64, np.random.default_rng(3)),
    ):
        np.testing.assert_array_equal(transform(buffer.getvalue()), transform(plain.getvalue()))


@pytest.mark.parametrize("size", [(640, 480), (1600, 1200), (200, 150)])
def test_training_pixels_are_close_to_pillows(size: tuple[int, int]) -> None:
    """Also if the JPEG is decoded at half its size."""
    encoded = photograph(*size)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        left, top, width, height = random_crop(*size, np.random.default_rng(seed))
        ours = training_image(encoded, 96, rng)
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        box = (left, top, left + width, top + height)
        theirs = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR, box=box))
        assert np.abs(ours[..., :2].astype(float) - theirs[..., :2]).mean() < 2.5


@pytest.mark.parametrize("resized_crop", [False, True])
def test_half_of_the_training_images_are_mirrored(resized_crop: bool) -> None:
    fields = {"random_resized_crop": resized_crop, "image_size": 16}
    mirrored, plain = (photographs(flip=flip, **fields) for flip in (True, False))
    count = 0
    batches = (source.train_batches(3, 10, range(20), slice(10)) for source in (mirrored, plain))
    for ours, theirs in zip(*batches, strict=True):
        for image, expected in zip(ours["image"], theirs["image"], strict=True):
            if not np.array_equal(image, expected):
                np.testing.assert_array_equal(image, expected[:, ::-1])
                count += 1
    assert 70 < count < 130


def test_training_refuses_what_evaluation_refuses() -> None:
    """Pillow's judgement, which lets a little damage pass: some of ImageNet's files have it."""
    whole, refused = photograph(200, 150), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        encoded = bytearray(whole)
        start = int(rng.integers(300, len(whole) - 200))
        if seed % 2:
            del encoded[start:]
        else:
            encoded[start : start + 200] = rng.bytes(200)
        outcomes = []
        for transform in (
            lambda encoded: evaluation_image(encoded, 64),
            lambda encoded: training_image(encoded, 64, np.random.default_rng(0)),
        ):
            try:
                transform(bytes(encoded))
                outcomes.append(True)
            except (OSError, ValueError):
                outcomes.append(False)
        assert outcomes[0] == outcomes[1], seed
        refused += not outcomes[0]
    assert 15 < refused < 40


def test_random_crops() -> None:
    """Areas from 8 % to all, ratios from 3:4 to 4:3, inside the photograph."""
    crops = np.array([random_crop(400, 300, np.random.default_rng(seed)) for seed in range(2000)])
    left, top, width, height = crops.T
    assert np.all((left >= 0) & (top >= 0) & (left + width <= 400) & (top + height <= 300))
    area, ratio = width * height / 120_000, width / height
    assert area.min() > 0.07
    assert area.max() > 0.93
    assert 0.4 < area.mean() < 0.48  # below 0.54, because large parts do not fit in every ratio
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.05


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 20), (486, 0, 27, 20)), ((20, 1000), (0, 486, 20, 27)), ((1, 1), (0, 0, 1, 1))],
)
def test_crops_of_narrow_photographs(
    size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    left, top, width, height = random_crop(*size, np.random.default_rng(0))
    assert (left >= 0, top >= 0) == (True, True)
    assert (width, height) <= size
    if min(size) == 20:
        drawn = {random_crop(*size, np.random.default_rng(seed)) for seed in range(50)}
        assert expected in drawn


# Batches.


def section(data_dir: object = REAL, **fields: Any) -> ConfigDict:
    defaults = {
        "name": "imagenet2012",
        "data_dir": str(data_dir),
        "image_size": 32,
        "num_channels": 3,
        "num_classes": 1000,
        "flip": True,
        "random_resized_crop": True,
        "num_workers": 0,
        "on_error": "raise",
    }
    return ConfigDict(defaults | fields)


class Source(list):
    """Examples as TFDS returns them."""

    @classmethod
    def of(cls, encoded: list[bytes]) -> "Source":
        return cls(
            {"image": each, "label": label, "file_name": b"n%d.JPEG" % label}
            for label, each in enumerate(encoded)
        )


def photographs(damaged: tuple[int, ...] = (), **fields: Any) -> data.Photographs:
    encoded = [photograph(40 + index, 50) for index in range(10)]
    for index in damaged:
        encoded[index] = encoded[index][: len(encoded[index]) // 3]
    return data.Photographs(section(**fields), "train", Source.of(encoded))


def train_batches(source: data.Photographs, rows: slice = slice(4)) -> list[data.NumpyBatch]:
    return list(source.train_batches(3, 4, range(2, 6), rows))


def test_a_batch_depends_only_on_its_step() -> None:
    whole = train_batches(photographs())
    assert [batch["image"].shape for batch in whole] == [(4, 32, 32, 3)] * 4
    (third,) = photographs().train_batches(3, 4, range(4, 5), slice(4))
    np.testing.assert_array_equal(third["image"], whole[2]["image"])
    np.testing.assert_array_equal(third["label"], data.train_indices(3, 4, 10, 4))
    for batch, half in zip(whole, train_batches(photographs(), slice(2, 4)), strict=True):
        np.testing.assert_array_equal(batch["image"][2:], half["image"])
        np.testing.assert_array_equal(batch["label"][2:], half["label"])
    epochs = np.concatenate(
        [batch["label"] for batch in photographs().train_batches(3, 5, range(4), slice(5))]
    )
    assert sorted(epochs[:10]) == sorted(epochs[10:]) == list(range(10))


def test_each_epoch_draws_other_crops() -> None:
    (first,), (second,) = (
        photographs().train_batches(3, 10, range(epoch, epoch + 1), slice(10)) for epoch in (0, 1)
    )
    order = np.argsort(first["label"]), np.argsort(second["label"])
    same = (first["image"][order[0]] == second["image"][order[1]]).all((1, 2, 3))
    assert not same.any()


def test_without_augmentation_training_images_equal_evaluation_images() -> None:
    source = photographs(random_resized_crop=False, flip=False)
    for batch in train_batches(source):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            expected, _ = source.example(int(label), lambda encoded: evaluation_image(encoded, 32))
            np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_evaluation_covers_each_photograph_once(batch_size: int) -> None:
    batches = list(photographs().evaluation_batches(batch_size, slice(batch_size)))
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(labels, np.arange(10))
    assert all(len(batch["label"]) == batch_size for batch in batches)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_error_names_the_damaged_photograph(num_workers: int) -> None:
    source = photographs(damaged=(7,), num_workers=num_workers)
    message = r"imagenet2012 \(train\): example 7, file n7\.JPEG, cannot be read"
    with pytest.raises(UserError, match=message):
        list(source.train_batches(3, 10, range(2), slice(10)))
    with pytest.raises(UserError, match=message):
        list(source.evaluation_batches(4, slice(4)))


def test_damaged_photographs_are_skipped_on_request() -> None:
    source = photographs(damaged=(7, 8), on_error="skip")
    (batch,) = source.train_batches(3, 10, range(1), slice(10))
    whole = data.train_indices(3, 0, 10, 10)
    np.testing.assert_array_equal(batch["label"], np.where(np.isin(whole, (7, 8)), 9, whole))
    assert batch["skipped"] == 3  # 7 and 8 for 7, 8 for 8
    batches = list(source.evaluation_batches(4, slice(4)))
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(labels, [0, 1, 2, 3, 4, 5, 6, 9])
    assert sum(int(batch["skipped"]) for batch in batches) == 2


def test_an_error_if_no_photograph_can_be_read() -> None:
    source = photographs(damaged=tuple(range(10)), on_error="skip")
    with pytest.raises(UserError, match="no example can be read"):
        train_batches(source)


# The real sample, through main. The model is the smallest, because it compiles fast.

SMALL = {
    "dataset.name": "imagenet2012",
    "dataset.data_dir": str(REAL),
    "dataset.image_size": "8",
    "dataset.num_channels": "3",
    "dataset.num_classes": "1000",
    "dataset.num_workers": "2",
    "dataset.flip": "true",
    "model.num_nodes": "24",
    "model.num_inputs": "4",
    "model.num_outputs": "8",
    "model.depth": "3",
    "model.sparsity": "0.5",
    "batch_size": "45",  # 10 steps in an epoch
    "num_steps": "14",
    "schedule.name": "constant",
    "checkpoint.every_steps": "4",
    "log.every_steps": "4",
}


def flags(workdir: Path, **more: str) -> list[str]:
    fields = SMALL | {name.replace("__", "."): text for name, text in more.items()}
    return [
        f"--config={DIGITS}",
        f"--workdir={workdir}",
        *(f"--config.{name}={text}" for name, text in fields.items()),
    ]


@pytest.mark.slow
@needs_real_data
def test_a_run_on_the_sample_and_its_resumption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(flags(whole)) == 0
    assert [row["num_examples"] for row in rows(whole, "test")] == [100, 100]
    assert checkpoint_steps(whole) == [10, 12, 14]
    every = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["input_wait"] <= 1 for row in every if row["split"] == "train")

    # The same run, stopped and resumed; the second part decodes in threads instead of processes.
    assert (
        main([*flags(stopped, num_steps="14", evaluate__every_steps="7"), "--config.num_steps=7"])
        == 0
    )
    assert main(flags(stopped, dataset__num_workers="0", evaluate__every_steps="7")) == 0
    assert_same_bits(arrays(whole, 14), arrays(stopped, 14))

    capsys.readouterr()
    assert main([f"--workdir={whole}", "--mode=evaluate", "--config.batch_size=33"]) == 0
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert evaluation["num_examples"] == 100
    last = rows(whole, "test")[-1]
    np.testing.assert_allclose(evaluation["loss"], last["loss"], rtol=1e-5)
    assert evaluation["accuracy_top5"] == last["accuracy_top5"]


@needs_real_data
def test_missing_imagenet_says_how_to_prepare_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(tmp_path / "run", dataset__data_dir=str(tmp_path))) == 2
    error = capsys.readouterr().err
    for text in (
        "ILSVRC2012_img_train.tar",
        "tfds build imagenet2012",
        "--manual_dir=",
        "convert_format",
    ):
        assert text in error
    assert "Traceback" not in error
