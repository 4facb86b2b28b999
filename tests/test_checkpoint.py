"""Checkpoints: bit-identical, checked when read, and never half a one."""

import gc
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dnw_jax.errors import UserError
from dnw_jax.run.checkpoint import Checkpoints

DTYPES = ["float32", "float16", ml_dtypes.bfloat16, "int32", "uint32", "uint8", "bool"]


def example_tree(seed=0):
    # Random mantissas do not compress: their bytes lie in the file as they are.
    values = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    return {
        "params": {"kernel": jnp.asarray(values), "scale": jnp.ones(3, jnp.bfloat16)},
        "optimizer": [{"momentum": values[0]}, ({}, jnp.asarray(7, jnp.int32))],
        "none_here": np.zeros((0, 3), np.float16),
        "step": np.int64(12),
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b)  # noqa: PLW2901
        assert (a.shape, a.dtype, np.asarray(a).tobytes()) == (b.shape, b.dtype, b.tobytes())


def assert_no_more_threads(before):
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)  # told to end, but not yet at its end
        assert not thread.is_alive(), thread


def save_steps(directory, accuracies, keep=2):
    with Checkpoints(directory, keep) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(step, {"step": step}, accuracy)
    return checkpoints


# Round trips


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_round_trip_keeps_every_bit(data):
    tree = {}
    for index, dtype in enumerate(DTYPES):
        shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
        # Any bit pattern: NaNs with a payload, negative zeros, subnormals.
        array = (raw % 2 if dtype == "bool" else raw).view(dtype).reshape(shape)
        tree[f"leaf{index}"] = {"numpy": array, "jax": jnp.asarray(array)}
    tree["holds data"] = np.ones(1)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
        checkpoints.save(1, tree)
        assert_same(checkpoints.restore(1, tree), tree)


def test_containers_scalars_and_kinds_come_back(tmp_path):
    tree = example_tree() | {"flag": True, "count": 3, "rate": 0.1}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        found = checkpoints.restore(1, tree)
    assert_same(found, tree)
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
        again = checkpoints.restore(1, found)
    assert found["placed"].sharding == again["placed"].sharding == sharding
    assert not found["free"].committed
    assert not again["free"].committed
    np.testing.assert_array_equal(found["placed"], weights)


def test_arrays_may_be_donated_or_overwritten_once_save_returns(tmp_path):
    replace = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    on_device = jax.random.normal(jax.random.key(0), (1_000_000,))
    on_host = np.random.default_rng(0).normal(size=1_000_000)
    expected = {"device": np.array(on_device), "host": on_host.copy()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"device": on_device, "host": on_host})
        under_way = checkpoints._saving is not None
        on_host[:] = -1
        replaced = jax.block_until_ready(replace(replace(on_device)))
        assert under_way
        assert on_device.is_deleted()
        assert_same(checkpoints.restore(1, {"device": replaced, "host": on_host}), expected)
        # What was restored may be donated too.
        restored = checkpoints.restore(1, {"device": replaced, "host": on_host})["device"]
        assert float(jnp.max(replace(restored))) == -1


def test_leaves_that_cannot_be_kept_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="model/name: a checkpoint holds numbers"):
            checkpoints.save(1, {"model": {"name": "tiny"}, "x": 1})
        with pytest.raises(TypeError, match="key_data"):
            checkpoints.save(1, {"key": jax.random.key(0)})
        with pytest.raises(ValueError, match="same name"):
            checkpoints.save(1, {"a/b": 1, "a": {"b": 2}})
    assert checkpoints.steps == []


# Which checkpoints are kept


def test_keeps_the_last_and_the_best(tmp_path):
    save_steps(tmp_path, {1: 0.1, 2: 0.9, 3: 0.9, 4: None, 5: 0.2})
    checkpoints = save_steps(tmp_path, {6: 0.3})  # the best is remembered over a restart
    assert checkpoints.steps == [3, 5, 6]  # among equals the later
    assert (checkpoints.best, checkpoints.latest) == (3, 6)
    assert checkpoints.accuracy(3) == 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "5", "6"]
    assert Checkpoints(tmp_path).best == 3


def test_without_accuracies_only_the_last_are_kept(tmp_path):
    checkpoints = save_steps(tmp_path, dict.fromkeys(range(9, 13)))
    assert checkpoints.steps == [11, 12]
    assert checkpoints.best is None
    assert checkpoints.accuracy(12) is None


def test_no_save_is_dropped_while_another_is_under_way(tmp_path):
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
    with pytest.raises(UserError, match=r"absent: there is no checkpoint of step 3; .*: none"):
        checkpoints.restore(3, {"x": 1})
    checkpoints.close()
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
    assert_no_more_threads(before)
    assert [r for r in caplog.records if r.name in ("absl", "asyncio")] == []
    assert capfd.readouterr() == ("", "")


# Checkpoints that do not fit, or are damaged


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


def test_any_damage_is_noticed(tmp_path):
    tree = example_tree()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": 1})
        checkpoints.save(2, tree)
    noticed, by_digest = set(), 0
    for file in sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file()):
        data = file.read_bytes()
        for what, damaged in corruptions(data):
            file.write_bytes(damaged) if damaged is not None else file.unlink()
            try:
                # Not all of Orbax's files are read: then the tree is whole.
                assert_same(Checkpoints(tmp_path).restore(2, tree), tree)
            except UserError as error:
                message = str(error)
                assert message.startswith(f"{tmp_path / '2'}: this checkpoint is damaged ("), what
                assert "Delete that folder; training then resumes from step 1." in message
                by_digest += "the SHA-256 of params/kernel" in message
                noticed.add(file.relative_to(tmp_path / "2").parts[:2])
            file.write_bytes(data)
    assert by_digest > 0  # Orbax itself loads such a kernel without a word
    assert {("_CHECKPOINT_METADATA",), ("state", "_METADATA"), ("state", "d")} <= noticed
    gc.collect()


def test_damage_to_the_manifest_is_noticed(tmp_path):
    checkpoints = save_steps(tmp_path, {1: 0.25, 2: 0.5})
    for old, new in (
        ('"accuracy": 0.5', '"accuracy": 0.7'),
        ('"type": "int64[', '"type": "int32['),
    ):
        copy = tmp_path / "2" / "_CHECKPOINT_METADATA"
        written = copy.read_text()
        assert old in written
        copy.write_text(written.replace(old, new))
        with pytest.raises(UserError, match=r"damaged .the SHA-256 of its manifest"):
            Checkpoints(tmp_path).restore(2, {"step": 0})
        with pytest.raises(UserError, match=r"damaged .the SHA-256 of its manifest"):
            Checkpoints(tmp_path).accuracy(2)
        copy.write_text(written)
    assert checkpoints.best == 2


def test_an_old_damaged_checkpoint_stops_nobody(tmp_path):
    save_steps(tmp_path, {1: 0.9, 2: 0.5})
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.best == 2
        checkpoints.save(3, {"x": 1}, 0.4)
        checkpoints.save(4, {"x": 1}, 0.3)
    assert checkpoints.steps == [2, 3, 4]


def test_damage_to_the_only_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": 1}, 0.5)
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    assert Checkpoints(tmp_path).best is None
    for read in (lambda c: c.restore(1, {"x": 1}), lambda c: c.accuracy(1)):
        with pytest.raises(UserError, match="there is no other, so training then starts anew"):
            read(Checkpoints(tmp_path))
    shutil.rmtree(tmp_path / "1")
    assert save_steps(tmp_path, {1: 0.5}).best == 1


def test_a_save_that_fails_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = set(threading.enumerate())
    with Checkpoints(tmp_path / "file") as checkpoints:
        with pytest.raises(UserError, match=r"file/1: this checkpoint could not be written"):
            checkpoints.save(1, {"x": 1})
        assert checkpoints.steps == []  # told once
    # Nothing hangs on: Orbax's own default would keep the process alive for minutes.
    assert_no_more_threads(before)


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
        checkpoints.close()
    except UserError as error:
        print(error)
    print(checkpoints.steps)
""")


def test_a_save_that_fails_in_the_background_is_told(tmp_path):
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
def test_a_save_killed_half_way_is_no_checkpoint(tmp_path, moment):
    process = subprocess.Popen([sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)])
    half_way = tmp_path / "4.orbax-checkpoint-tmp"
    sign = "*/ocdbt*/d/*" if moment == "writing" else "*"
    kill_when(process, lambda: any(half_way.glob(sign)))
    assert half_way.is_dir()

    # Half way through a deletion looks the same.
    shutil.copytree(tmp_path / "1", tmp_path / "9.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps == [1, 2, 3]
        assert (checkpoints.latest, checkpoints.best) == (3, 1)
        expected = np.random.default_rng(3).normal(size=10)
        np.testing.assert_array_equal(checkpoints.restore(3, {"x": np.empty(10)})["x"], expected)
        checkpoints.save(4, {"x": expected}, 0.1)
        assert checkpoints.steps == [1, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "4"]


def test_a_deletion_killed_half_way_leaves_no_checkpoint(tmp_path):
    save_steps(tmp_path, {1: None})
    for number in range(5000):  # takes its time to delete
        (tmp_path / "1" / f"file{number}").touch()
    process = subprocess.Popen([sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)])
    kill_when(process, lambda: not (tmp_path / "1" / "file0").exists())
    assert 1 not in Checkpoints(tmp_path).steps
    assert Checkpoints(tmp_path).best == 2


def test_step_0_is_kept(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"x": step})
    assert checkpoints.steps == [0, 3]
