"""Checkpoints keep every bit, notice damage, and never appear half written."""

import gc
import logging
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dnw_jax.errors import UserError
from dnw_jax.run.checkpoint import Checkpoints

DTYPES = ["float32", "float16", ml_dtypes.bfloat16, "int32", "uint32", "uint8", "bool"]
SHAPES = [(), (1,), (7,), (0,), (2, 0, 3), (2, 3, 4)]


def example_tree(seed=0):
    # Random mantissas hardly compress, so most damage to the file changes the value of a weight.
    values = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    return {
        "params": {"kernel": jnp.asarray(values), "scale": jnp.ones(3, jnp.bfloat16)},
        "optimizer": [{"momentum": values[0]}, ({}, jnp.asarray(7, jnp.int32))],
        "none_here": np.zeros((0, 3), np.float16),
        "step": np.int64(12),
    }


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for found_leaf, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        array = np.asarray(leaf)
        assert (found_leaf.shape, found_leaf.dtype) == (array.shape, array.dtype)
        assert np.asarray(found_leaf).tobytes() == array.tobytes()


def assert_no_new_threads(before):
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)  # it may still be ending
        assert not thread.is_alive(), thread


def save_steps(directory, accuracies, keep=2):
    with Checkpoints(directory, keep) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(step, {"step": step}, accuracy)
    return checkpoints


# Round trips


def test_round_trip_keeps_every_bit(tmp_path):
    """Random bytes: NaNs with a payload, negative zeros, subnormal numbers."""
    rng = np.random.default_rng(0)
    tree = {"float16": np.arange(65536, dtype=np.uint16).view(np.float16)}  # every bit pattern
    for dtype in map(np.dtype, DTYPES):
        for shape in SHAPES:
            raw = rng.integers(256, size=int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
            array = (raw % 2 if dtype.kind == "b" else raw).view(dtype).reshape(shape)
            tree[f"{dtype}{shape}"] = {"numpy": array, "jax": jnp.asarray(array)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        assert_same_bits(checkpoints.restore(1, tree), tree)


def test_containers_scalars_and_array_types_come_back(tmp_path):
    tree = example_tree() | {"flag": True, "count": 3, "rate": 0.1}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        found = checkpoints.restore(1, tree)
    assert_same_bits(found, tree)
    assert isinstance(found["params"]["kernel"], jax.Array)
    assert isinstance(found["optimizer"][0]["momentum"], np.ndarray)
    assert (found["flag"].dtype, found["count"].dtype, found["rate"]) == (bool, np.int64, 0.1)


def test_restores_by_shape_and_sharding_alone(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    weights = jnp.arange(6, dtype=jnp.float32).reshape(3, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"placed": weights, "free": weights})
        like = {
            "placed": jax.ShapeDtypeStruct(weights.shape, weights.dtype, sharding=sharding),
            "free": jax.ShapeDtypeStruct(weights.shape, weights.dtype),
        }
        found = checkpoints.restore(1, like)
        found_like_arrays = checkpoints.restore(1, found)
    assert found["placed"].sharding == found_like_arrays["placed"].sharding == sharding
    assert not found["free"].committed
    assert not found_like_arrays["free"].committed
    np.testing.assert_array_equal(found["placed"], weights)


def test_arrays_may_be_donated_or_overwritten_when_save_has_returned(tmp_path):
    replace = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    on_device = jax.random.normal(jax.random.key(0), (1_000_000,))
    on_host = np.random.default_rng(0).normal(size=1_000_000)
    expected = {"device": np.array(on_device), "host": on_host.copy()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"device": on_device, "host": on_host})
        save_is_pending = checkpoints._pending_save is not None
        on_host[:] = -1
        replaced = jax.block_until_ready(replace(replace(on_device)))
        assert save_is_pending
        assert on_device.is_deleted()
        assert_same_bits(checkpoints.restore(1, {"device": replaced, "host": on_host}), expected)
        # Restored arrays may be donated too.
        restored = checkpoints.restore(1, {"device": replaced, "host": on_host})["device"]
        assert float(jnp.max(replace(restored))) == -1


def test_leaves_that_cannot_be_saved_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="model/name: a checkpoint holds numbers"):
            checkpoints.save(1, {"model": {"name": "tiny"}, "x": 1})
        with pytest.raises(TypeError, match="key_data"):
            checkpoints.save(1, {"key": jax.random.key(0)})
        with pytest.raises(ValueError, match="same name"):
            checkpoints.save(1, {"a/b": 1, "a": {"b": 2}})
    assert checkpoints.steps == []


def test_some_entries_of_a_checkpoint_are_restored_alone(tmp_path):
    """The other entries may have any layout, and damage to them does no harm."""
    tree = example_tree()
    wanted = {"params": tree["params"], "step": tree["step"], "average": None}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree | {"optimizer": {"moment": example_tree(1)["params"]["kernel"]}})
        assert_same_bits(checkpoints.restore(1, wanted, whole=False), wanted)
        with pytest.raises(UserError, match=r"none_here: expected nothing.*\n.*optimizer/moment"):
            checkpoints.restore(1, wanted)
        with pytest.raises(UserError) as caught:
            checkpoints.restore(1, {"params": {"scale": jnp.ones(4)}}, whole=False)
    assert str(caught.value).splitlines()[1:-1] == [
        "  params/kernel: expected nothing, found float32[64, 64]",
        "  params/scale: expected float32[4], found bfloat16[3]",
    ]


def test_damage_is_noticed_in_the_entries_that_are_read(tmp_path):
    rng = np.random.default_rng(0)  # random bytes do not compress: the file contains them
    tree = {
        name: {"x": rng.integers(256, size=4096, dtype=np.uint8)} for name in ("used", "unused")
    }
    wanted = {"used": tree["used"]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        checkpoints.wait()
        flip_a_bit(tmp_path, tree["unused"]["x"])
        assert_same_bits(checkpoints.restore(1, wanted, whole=False), wanted)
        with pytest.raises(UserError, match=r"damaged \(the SHA-256 of unused/x is not what"):
            checkpoints.restore(1, tree)
        flip_a_bit(tmp_path, tree["used"]["x"])
        with pytest.raises(UserError, match=r"damaged \(the SHA-256 of used/x is not what"):
            checkpoints.restore(1, wanted, whole=False)


def flip_a_bit(directory, array):
    """Flips a bit of `array` in every file that contains it: Orbax writes some files twice."""
    files = [path for path in directory.rglob("d/*") if array.tobytes() in path.read_bytes()]
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        data[data.index(array.tobytes())] ^= 1
        path.write_bytes(data)


# Which checkpoints are kept


def test_keeps_the_last_and_the_best(tmp_path):
    save_steps(tmp_path, {1: 0.1, 2: 0.9, 3: 0.9, 4: None, 5: 0.2})
    checkpoints = save_steps(tmp_path, {6: 0.3})  # another object knows the best of the first
    assert checkpoints.steps == [3, 5, 6]  # of equal accuracies the later step is kept
    assert (checkpoints.best, checkpoints.latest) == (3, 6)
    assert checkpoints.accuracy(3) == 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "5", "6"]
    assert Checkpoints(tmp_path).best == 3


def test_without_accuracies_only_the_last_are_kept(tmp_path):
    checkpoints = save_steps(tmp_path, dict.fromkeys(range(9, 13)))
    assert checkpoints.steps == [11, 12]
    assert checkpoints.best is None
    assert checkpoints.accuracy(12) is None


def test_step_0_is_kept(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"x": step})
    assert checkpoints.steps == [0, 3]


def test_no_save_is_dropped_while_another_is_pending(tmp_path):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(8):
            checkpoints.save(step, {"x": np.full(10_000, step)})
        assert checkpoints.steps == list(range(8))
        for step in range(8):
            assert checkpoints.restore(step, {"x": np.zeros(10_000, int)})["x"][-1] == step


def test_saving_a_step_again_changes_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"x": 1}, 0.5)
        checkpoints.save(5, {"x": 2}, 0.6)
        assert int(checkpoints.restore(5, {"x": 0})["x"]) == 1
        assert checkpoints.accuracy(5) == 0.5
    assert checkpoints.steps == [5]


def test_reading_creates_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert (checkpoints.steps, checkpoints.latest, checkpoints.best) == ([], None, None)
    with pytest.raises(UserError, match=r"absent holds no checkpoint of step 3; there are: none"):
        checkpoints.restore(3, {"x": 1})
    checkpoints.wait()
    assert list(tmp_path.iterdir()) == []
    save_steps(tmp_path / "there", {1: 0.5, 2: 0.5})
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with Checkpoints(tmp_path / "there") as checkpoints:
        checkpoints.restore(checkpoints.best, {"step": 0})
        with pytest.raises(UserError, match="step 3; there are: 1, 2"):
            checkpoints.restore(3, {"step": 0})
    assert before == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint.keep is 0"):
        Checkpoints(tmp_path, keep=0)


def test_leaves_no_threads_and_a_clean_console(tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO)
    before = set(threading.enumerate())
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(5):
            checkpoints.save(step, example_tree())
        checkpoints.restore(4, example_tree())
    assert_no_new_threads(before)
    assert [r for r in caplog.records if r.name in ("absl", "asyncio")] == []
    assert capfd.readouterr() == ("", "")


# Checkpoints that do not fit or are damaged


def test_every_leaf_that_does_not_fit_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, example_tree())
        like = example_tree()
        like["params"]["kernel"] = jnp.ones((64, 32))
        like["params"]["scale"] = jnp.ones(3, jnp.float16)
        like["none_here"] = np.zeros((0, 4), np.float16)
        like["more"] = {"bias": jnp.ones(5)}
        del like["step"]
        with pytest.raises(UserError) as caught:
            checkpoints.restore(1, like)
    assert str(caught.value).splitlines() == [
        f"{tmp_path / '1'}: this checkpoint does not fit the model:",
        "  more/bias: expected float32[5], found nothing",
        "  none_here: expected float16[0, 4], found float16[0, 3]",
        "  params/kernel: expected float32[64, 32], found float32[64, 64]",
        "  params/scale: expected float16[3], found bfloat16[3]",
        "  step: expected nothing, found int64[]",
        "Use the config that it was trained with, or another workdir.",
    ]


def corruptions(data):
    yield "deleted", None
    yield "emptied", b""
    yield "cut in half", data[: len(data) // 2]
    for offset in range(0, len(data), 1 + len(data) // 6):
        flipped = bytes([data[offset] ^ 16])
        yield f"byte {offset} flipped", data[:offset] + flipped + data[offset + 1 :]


@pytest.mark.filterwarnings("ignore:.*this checkpoint is skipped because")
def test_any_damage_is_noticed(tmp_path):
    tree = example_tree()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": 1})
        checkpoints.save(2, tree)
    damaged_files, noticed_by_digest = set(), 0
    for file in sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file()):
        data = file.read_bytes()
        for damage, damaged_data in corruptions(data):
            file.write_bytes(damaged_data) if damaged_data is not None else file.unlink()
            try:
                # Orbax does not read all of its files. Damage to the others does no harm.
                assert_same_bits(Checkpoints(tmp_path).restore(2, tree), tree)
            except UserError as error:
                message = str(error)
                if (file.name, damage) == ("commit_success.txt", "deleted"):
                    assert message.endswith("holds no checkpoint of step 2; there are: 1.")
                    file.write_bytes(data)
                    continue
                assert message.startswith(f"{tmp_path / '2'}: this checkpoint is damaged ("), damage
                assert "Delete that folder; training then resumes from step 1." in message
                noticed_by_digest += "the SHA-256 of params/kernel" in message
                damaged_files.add(file.relative_to(tmp_path / "2").parts[:2])
            file.write_bytes(data)
    assert noticed_by_digest > 0  # Orbax loads such a kernel without an error
    assert {("_CHECKPOINT_METADATA",), ("state", "_METADATA"), ("state", "d")} <= damaged_files
    gc.collect()  # reads that Orbax abandoned must not print anything in a later test


def test_damage_to_the_manifest_is_noticed(tmp_path):
    checkpoints = save_steps(tmp_path, {1: 0.25, 2: 0.5})
    for old, new in (
        ('"accuracy": 0.5', '"accuracy": 0.7'),
        ('"type": "int64[', '"type": "int32['),
    ):
        file = tmp_path / "2" / "_CHECKPOINT_METADATA"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=r"damaged .the SHA-256 of its manifest"):
            Checkpoints(tmp_path).restore(2, {"step": 0})
        with pytest.raises(UserError, match=r"damaged .the SHA-256 of its manifest"):
            Checkpoints(tmp_path).accuracy(2)
        file.write_text(text)
    assert checkpoints.best == 2


def test_an_old_damaged_checkpoint_does_not_prevent_saving(tmp_path):
    save_steps(tmp_path, {1: 0.9, 2: 0.5})
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.warns(UserWarning, match="1: this checkpoint is skipped because _CHECKPOINT_"):
            assert checkpoints.best == 2
        with warnings.catch_warnings(action="ignore"):
            checkpoints.save(3, {"x": 1}, 0.4)
            checkpoints.save(4, {"x": 1}, 0.3)
    assert checkpoints.steps == [2, 3, 4]
    assert not (tmp_path / "1").exists()


def test_damage_to_the_only_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": 1}, 0.5)
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    assert Checkpoints(tmp_path).best is None
    for read in (lambda c: c.restore(1, {"x": 1}), lambda c: c.accuracy(1)):
        with pytest.raises(
            UserError, match="there is no other checkpoint, so training then starts"
        ):
            read(Checkpoints(tmp_path))
    shutil.rmtree(tmp_path / "1")
    assert save_steps(tmp_path, {1: 0.5}).best == 1


def test_a_failed_save_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = set(threading.enumerate())
    with Checkpoints(tmp_path / "file") as checkpoints:
        with pytest.raises(UserError, match=r"file/1: this checkpoint could not be written"):
            checkpoints.save(1, {"x": 1})
        assert checkpoints.steps == []  # it raises only once
    # With Orbax's default a thread would keep the process alive for minutes.
    assert_no_new_threads(before)


SAVE_ON_A_FULL_DISK = textwrap.dedent("""
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from dnw_jax.run.checkpoint import Checkpoints
    from dnw_jax.errors import UserError

    checkpoints = Checkpoints(Path(sys.argv[1]))
    checkpoints.save(1, {"x": np.zeros(10)})
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    checkpoints.save(2, {"x": np.random.default_rng(0).normal(size=100_000)})
    try:
        checkpoints.wait()
    except UserError as error:
        print(error)
    print(checkpoints.steps)
""")


def test_a_save_that_fails_in_the_background_is_reported(tmp_path):
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    message, steps = done.stdout.splitlines()
    assert message.startswith(f"{tmp_path / '2'}: this checkpoint could not be written (")
    assert message.endswith("choose another workdir; training then resumes from step 1.")
    assert steps == "[1]"
    assert done.stderr == ""


# Killed


SAVE_UNTIL_KILLED = textwrap.dedent("""
    import sys
    from pathlib import Path
    import numpy as np
    from dnw_jax.run.checkpoint import Checkpoints

    with Checkpoints(Path(sys.argv[1]), keep=2) as checkpoints:
        for step in range(1, 1000):
            size = 10 if step < 4 else 6_000_000
            checkpoints.save(step, {"x": np.random.default_rng(step).normal(size=size)}, 1 / step)
""")


def kill_when(process, moment):
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not moment():
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["begun", "writing"])
def test_a_killed_save_leaves_no_checkpoint(tmp_path, moment):
    process = subprocess.Popen([sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)])
    unfinished = tmp_path / "4"
    pattern = "*/ocdbt*/d/*" if moment == "writing" else "*"
    kill_when(process, lambda: any(unfinished.glob(pattern)))
    assert unfinished.is_dir()

    # Earlier versions left a folder of this name.
    shutil.copytree(tmp_path / "1", tmp_path / "9.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps == [1, 2, 3]
        assert (checkpoints.latest, checkpoints.best) == (3, 1)
        expected = np.random.default_rng(3).normal(size=10)
        np.testing.assert_array_equal(checkpoints.restore(3, {"x": np.empty(10)})["x"], expected)
        checkpoints.save(4, {"x": expected}, 0.1)
        assert checkpoints.steps == [1, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "4"]


def test_a_killed_deletion_leaves_no_checkpoint(tmp_path):
    save_steps(tmp_path, {1: None})
    for number in range(2000):  # so that the deletion takes long enough to be killed
        (tmp_path / "1" / f"file{number}").touch()
    process = subprocess.Popen([sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)])
    kill_when(process, lambda: not (tmp_path / "1" / "file0").exists())
    assert 1 not in Checkpoints(tmp_path).steps
    assert Checkpoints(tmp_path).best == 2
