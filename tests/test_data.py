"""Datasets in memory, batches as functions of the step, augmentation by key and position."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from dnw_jax import data
from dnw_jax.errors import UserError

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "tfds"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="no ../shared/data/tfds with the real CIFAR-10 and MNIST"
)


def section(name: str, data_dir: object = "", **fields: int) -> ConfigDict:
    """The `dataset` section of a config; `fields` replace the right sizes of `name`."""
    sizes = {"cifar10": (32, 3), "mnist": (28, 1), "digits": (8, 1), "synthetic": (12, 2)}
    size, channels = sizes.get(name, (32, 3))
    sizes_of_name = {"image_size": size, "num_channels": channels, "num_classes": 10}
    return ConfigDict({"name": name, "data_dir": str(data_dir), **sizes_of_name, **fields})


# Batches.

examples = st.integers(1, 60)
batch_sizes = st.integers(1, 150)
seeds = st.integers(0, 2**31 - 1)


@given(seed=seeds, first_epoch=st.integers(0, 4), num_examples=examples, batch_size=batch_sizes)
def test_every_epoch_is_a_permutation(seed, first_epoch, num_examples, batch_size):
    start, stop = first_epoch * num_examples, (first_epoch + 2) * num_examples
    first_step, last_step = start // batch_size, (stop - 1) // batch_size
    steps = range(first_step, last_step + 1)
    batches = [data.train_indices(seed, step, num_examples, batch_size) for step in steps]
    assert all(b.shape == (batch_size,) and b.dtype == np.int32 for b in batches)

    run = np.concatenate(batches)[start - first_step * batch_size :]
    for epoch in (run[:num_examples], run[num_examples : 2 * num_examples]):
        assert sorted(epoch) == list(range(num_examples))


@given(
    seed=seeds,
    steps=st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    num_examples=examples,
    batch_size=batch_sizes,
)
def test_a_batch_depends_only_on_seed_and_step(seed, steps, num_examples, batch_size):
    in_order = {s: data.train_indices(seed, s, num_examples, batch_size) for s in sorted(steps)}
    for step in steps:  # in another order, and after batches of another seed
        data.train_indices(seed + 1, step, num_examples, batch_size)
        out_of_order = data.train_indices(seed, step, num_examples, batch_size)
        np.testing.assert_array_equal(out_of_order, in_order[step])


def test_a_caller_may_write_into_a_batch():
    batch = data.train_indices(0, 0, 10, 10)
    original = batch.copy()
    batch[:] = -1
    np.testing.assert_array_equal(data.train_indices(0, 0, 10, 10), original)


def test_epochs_and_seeds_differ():
    orders = [data.train_indices(seed, step, 50, 50) for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_sequence_of_examples_does_not_depend_on_the_batch_size():
    small = np.concatenate([data.train_indices(3, step, 17, 4) for step in range(30)])
    large = np.concatenate([data.train_indices(3, step, 17, 40) for step in range(3)])
    np.testing.assert_array_equal(small, large)


@given(num_examples=examples, batch_size=batch_sizes)
def test_evaluation_covers_each_example_exactly_once(num_examples, batch_size):
    batches = list(data.evaluation_batches(num_examples, batch_size))
    assert len(batches) == data.steps_per_epoch(num_examples, batch_size)
    for indices, mask in batches:
        assert indices.shape == mask.shape == (batch_size,)
        assert indices.dtype == np.int32
        assert mask.dtype == np.bool_
        assert indices.min() >= 0
        assert indices.max() < num_examples
    seen = np.concatenate([indices[mask] for indices, mask in batches])
    assert sorted(seen) == list(range(num_examples))


def test_steps_per_epoch_of_the_published_runs():
    assert data.steps_per_epoch(50_000, 512) == 98
    assert data.steps_per_epoch(50_000, 500) == 100
    assert data.steps_per_epoch(3, 512) == 1


# Augmentation.

augment = jax.jit(data.random_crop_flip, static_argnums=(3, 4))


def noise_images(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (batch, 8, 6, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(12)), size=st.sampled_from([1, 5, 12]), seed=seeds)
def test_augmentation_does_not_depend_on_the_rest_of_the_batch(order, size, seed):
    images, positions = noise_images(12), np.arange(100, 112, dtype=np.uint32)
    key = jax.random.key(seed)
    whole = np.asarray(augment(key, positions, images, 2, True))
    chosen = np.asarray(order[:size])
    part = augment(key, positions[chosen], images[chosen], 2, True)
    np.testing.assert_array_equal(part, whole[chosen])


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_crops_equal_a_numpy_reference_and_are_uniform(padding, flip):
    """Each result is one of the reference's crops, and each crop occurs about equally often."""
    image = noise_images(1)[0]
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))  # with zeros
    references = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            references += [crop, crop[:, ::-1]] if flip else [crop]

    expected_count = 100
    batch = expected_count * len(references)
    images = np.broadcast_to(image, (batch, *image.shape))
    positions = np.arange(batch, dtype=np.uint32)
    results = np.asarray(augment(jax.random.key(1), positions, images, padding, flip))
    assert results.dtype == np.uint8
    equals_reference = (results[:, None] == np.stack(references)).all(axis=(2, 3, 4))
    assert (equals_reference.sum(axis=1) == 1).all()
    counts = equals_reference.sum(axis=0)
    assert counts.min() > expected_count - 40  # four standard deviations
    assert counts.max() < expected_count + 40
    if flip:
        assert abs(counts[1::2].sum() / batch - 0.5) < 2 / np.sqrt(batch)


def test_keys_and_positions_change_the_draws():
    images = np.broadcast_to(noise_images(1), (64, 8, 6, 3))
    positions = np.arange(64, dtype=np.uint32)
    first = np.asarray(augment(jax.random.key(0), positions, images, 2, True))
    other_key = np.asarray(augment(jax.random.key(1), positions, images, 2, True))
    next_epoch = np.asarray(augment(jax.random.key(0), positions + 64, images, 2, True))
    for other in (other_key, next_epoch):
        assert (first == other).all(axis=(1, 2, 3)).mean() < 0.2


def test_no_padding_and_no_flip_change_nothing():
    images, positions = noise_images(4), np.arange(4, dtype=np.uint32)
    np.testing.assert_array_equal(augment(jax.random.key(0), positions, images, 0, False), images)


def test_augmentation_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        images, positions = jnp.asarray(noise_images(4)), jnp.arange(4, dtype=jnp.uint32)
        cropped = augment(jax.random.key(0), positions, images, 1, True)
        assert data.normalise(cropped, *data.STATISTICS["cifar10"]).dtype == jnp.float32


def test_normalise():
    images = noise_images(3)
    mean, std = data.STATISTICS["cifar10"]
    expected = (images / 255 - np.array(mean)) / np.array(std)
    result = data.normalise(jnp.asarray(images), mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


# Digits and synthetic.


def test_digits():
    train = data.load_split(section("digits"), "train")
    test = data.load_split(section("digits"), "test")
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    # scikit-learn lists the digits 0, 1, 2, ... at first; every fifth is a test image.
    np.testing.assert_array_equal(test.labels[:2], [0, 5])
    np.testing.assert_array_equal(train.labels[:8], [1, 2, 3, 4, 6, 7, 8, 9])
    assert (train.images.min(), train.images.max()) == (0, 255)
    mean, std = data.STATISTICS["digits"]
    assert np.mean(train.images / 255) == pytest.approx(mean[0], abs=1e-3)
    assert np.std(train.images / 255) == pytest.approx(std[0], abs=1e-3)


def test_digits_are_resized_to_the_image_size():
    native = data.load_split(section("digits"), "test").images
    large = data.load_split(section("digits", image_size=32), "test").images
    assert large.shape == (360, 32, 32, 1)
    quarters = large.reshape(360, 8, 4, 8, 4, 1).mean(axis=(2, 4))
    assert np.corrcoef(quarters.ravel(), native.ravel())[0, 1] > 0.95


def test_digits_without_scikit_learn(monkeypatch):
    for module in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'dnw-jax\[digits\]'"):
        data.load_split(section("digits"), "train")


def test_synthetic_is_deterministic_and_can_be_learnt():
    dataset = section("synthetic", num_classes=7)
    train, test = data.load_split(dataset, "train"), data.load_split(dataset, "test")
    assert train.images.shape == (512, 12, 12, 2)
    assert test.images.shape == (200, 12, 12, 2)
    assert train.images.dtype == np.uint8
    assert set(train.labels) == set(test.labels) == set(range(7))
    np.testing.assert_array_equal(train.images, data.load_split(dataset, "train").images)
    assert not np.array_equal(train.images[:200], test.images)

    # The nearest class mean of the training images names the class of the test images.
    means = np.stack([train.images[train.labels == label].mean(axis=0) for label in range(7)])
    distances = ((test.images[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == test.labels).mean() > 0.95


# Errors.


def test_every_contradicting_field_is_listed():
    wrong = section("cifar10", image_size=28, num_channels=1, num_classes=100)
    with pytest.raises(UserError) as error:
        data.load_split(wrong, "train")
    for line in ("image_size = 28: must be 32", "num_channels = 1: must be 3", "num_classes = 100"):
        assert f"dataset.{line}" in str(error.value)


def test_only_the_contradicting_fields_are_listed():
    with pytest.raises(UserError) as error:
        data.load_split(section("digits", image_size=7), "train")
    assert "dataset.image_size = 7: must be 8 or more" in str(error.value)
    assert "num_c" not in str(error.value)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_missing_data_says_how_to_prepare_them(tmp_path, name):
    folder = tmp_path / "no such folder"
    with pytest.raises(UserError) as error:
        data.load_split(section(name, folder), "train")
    for text in (
        f"dataset.data_dir = '{folder}'",
        "pip install 'dnw-jax[prepare]'",
        f"tfds build {name} --file_format=array_record --data_dir='{folder}'\n",
        f"tfds convert_format --dataset_dir='{folder}/{name}' --out_file_format=array_record",
    ):
        assert text in str(error.value)


def test_the_default_folder_is_the_default_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"--data_dir={tmp_path}\n"):
        data.load_split(section("mnist"), "train")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match=f"--data_dir={tmp_path}/home/tensorflow_datasets\n"):
        data.load_split(section("mnist"), "train")


# TFDS files, written here.


def write_mnist(folder: Path, images: np.ndarray, labels: list[int], num_shards: int = 1) -> None:
    """Write what `tfds build mnist --file_format=array_record` would: a test split alone."""
    from array_record.python.array_record_module import ArrayRecordWriter  # noqa: PLC0415

    folder.mkdir(parents=True)
    per_shard = len(labels) // num_shards
    for shard in range(num_shards):
        path = folder / f"mnist-test.array_record-{shard:05}-of-{num_shards:05}"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for index in range(shard * per_shard, (shard + 1) * per_shard):
            writer.write(serialise(images[index], labels[index]))
        writer.close()
    info = {
        "name": "mnist",
        "version": folder.name,
        "fileFormat": "array_record",
        "splits": [
            {
                "name": "test",
                "shardLengths": [str(per_shard)] * num_shards,
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    kinds = "tensorflow_datasets.core.features."
    features = {
        "image": {
            "image": {"dtype": "uint8", "shape": {"dimensions": ["28", "28", "1"]}},
            "pythonClassName": f"{kinds}image_feature.Image",
        },
        "label": {
            "classLabel": {"numClasses": "10"},
            "pythonClassName": f"{kinds}class_label_feature.ClassLabel",
        },
    }
    kind = f"{kinds}features_dict.FeaturesDict"
    (folder / "features.json").write_text(
        json.dumps({"featuresDict": {"features": features}, "pythonClassName": kind})
    )


def serialise(image: np.ndarray, label: int) -> bytes:
    """A tf.train.Example in protobuf's wire format."""

    def field(number: int, payload: bytes) -> bytes:
        low, high = len(payload) % 128, len(payload) // 128
        assert high < 128
        length = bytes([low | 128, high]) if high else bytes([low])
        return bytes([number << 3 | 2]) + length + payload

    png = io.BytesIO()
    Image.fromarray(image[..., 0]).save(png, "PNG")
    values = {
        "image": field(1, field(1, png.getvalue())),
        "label": field(3, field(1, bytes([label]))),
    }
    entries = [
        field(1, field(1, name.encode()) + field(2, value)) for name, value in values.items()
    ]
    return field(1, b"".join(entries))


@pytest.fixture(scope="module")
def few_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1), dtype=np.uint8)


def test_array_records_are_read_in_order_and_the_newest_version_wins(tmp_path, few_images):
    write_mnist(tmp_path / "mnist" / "3.0.10", few_images, [0, 1, 9, 3, 4, 5], num_shards=2)
    write_mnist(tmp_path / "mnist" / "3.0.9", few_images[:1], [7])
    split = data.load_split(section("mnist", tmp_path), "test")
    np.testing.assert_array_equal(split.images, few_images)
    np.testing.assert_array_equal(split.labels, [0, 1, 9, 3, 4, 5])
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)


def test_files_converted_beside_tfrecords_are_read(tmp_path, few_images):
    """As `tfds convert_format` writes them if it is given no other folder."""
    folder = tmp_path / "mnist" / "3.0.1"
    write_mnist(folder, few_images, [0, 1, 2, 3, 4, 5])
    info = json.loads((folder / "dataset_info.json").read_text())
    info |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    split = data.load_split(section("mnist", tmp_path), "test")
    np.testing.assert_array_equal(split.images, few_images)


def test_a_label_out_of_range_is_refused(tmp_path, few_images):
    write_mnist(tmp_path / "mnist" / "3.0.1", few_images, [0, 1, 2, 3, 10, 5])
    with pytest.raises(
        UserError, match=r"num_classes = 10: must be at least 11; 'mnist' has labels 0\.\.10"
    ):
        data.load_split(section("mnist", tmp_path), "test")


@pytest.mark.parametrize("missing", ["mnist-test.array_record-00001-of-00002", "dataset_info.json"])
def test_incomplete_files_are_refused(tmp_path, few_images, missing):
    folder = tmp_path / "mnist" / "3.0.1"
    write_mnist(folder, few_images, [0, 1, 2, 3, 4, 5], num_shards=2)
    (folder / missing).unlink()
    with pytest.raises(UserError, match="no complete ArrayRecord files of 'mnist' \\(test\\)"):
        data.load_split(section("mnist", tmp_path), "test")


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("dataset_info.json", lambda content: b'{"name": '),
        ("features.json", lambda content: b"{}"),
        ("mnist-test.array_record-00001-of-00002", lambda content: content[: len(content) // 2]),
        ("mnist-test.array_record-00000-of-00002", lambda content: b""),
    ],
)
def test_damaged_files_are_refused(tmp_path, few_images, file, spoil):
    folder = tmp_path / "mnist" / "3.0.1"
    write_mnist(folder, few_images, [0, 1, 2, 3, 4, 5], num_shards=2)
    (folder / file).write_bytes(spoil((folder / file).read_bytes()))
    with pytest.raises(UserError) as error:
        data.load_split(section("mnist", tmp_path), "test")
    message = str(error.value)
    assert f"the files of 'mnist' (test) in {folder} are damaged (" in message
    assert message.endswith(f"tfds build mnist --file_format=array_record --data_dir={tmp_path}")


@pytest.mark.parametrize("too_deep", ["mnist", "mnist/3.0.1"])
def test_the_error_suggests_the_right_folder_for_a_subfolder(tmp_path, few_images, too_deep):
    write_mnist(tmp_path / "mnist" / "3.0.1", few_images, [0, 1, 2, 3, 4, 5])
    with pytest.raises(UserError, match=f"Did you mean dataset.data_dir='{tmp_path}'?"):
        data.load_split(section("mnist", tmp_path / too_deep), "test")


def test_reading_needs_no_tensorflow(tmp_path, few_images):
    """Importing the package does not import TensorFlow Datasets, either."""
    write_mnist(tmp_path / "mnist" / "3.0.1", few_images, [0, 1, 2, 3, 4, 5])
    code = f"""
import sys
from ml_collections import ConfigDict
from dnw_jax import data
assert "tensorflow_datasets" not in sys.modules
fields = {section("mnist", tmp_path).to_dict()!r}
print(len(data.load_split(ConfigDict(fields), "test").images), "tensorflow" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "6 False\n", run.stderr
    assert run.stderr == ""  # no progress bar if stderr is not a terminal


# Real data.


def check_against_statistics(split: data.Split, name: str, tolerance: float) -> None:
    mean, std = data.STATISTICS[name]
    values = np.arange(256) / 255
    for channel in range(split.images.shape[-1]):
        pixels = split.images[..., channel].ravel()
        share = np.bincount(pixels, minlength=256) / pixels.size
        measured = share @ values
        spread = np.sqrt(share @ (values - measured) ** 2)
        assert measured == pytest.approx(mean[channel], abs=tolerance)
        assert spread == pytest.approx(std[channel], abs=tolerance)


@needs_real_data
def test_real_cifar10():
    """Of the test set, which is read in a fifth of the time of the training set."""
    split = data.load_split(section("cifar10", REAL), "test")
    assert split.images.shape == (10_000, 32, 32, 3)
    assert split.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(split.labels), [1000] * 10)
    check_against_statistics(split, "cifar10", 4e-3)  # the statistics are those of train


@needs_real_data
def test_real_mnist():
    split = data.load_split(section("mnist", REAL), "test")
    assert split.images.shape == (10_000, 28, 28, 1)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(split.labels), counts)
    check_against_statistics(split, "mnist", 3e-3)  # the statistics are those of train
