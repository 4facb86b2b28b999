"""The benchmarks reject wrong arguments and time real steps."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import topologies

from experiments.benchmarks import device_programs, train_step
from experiments.benchmarks.alternate import alternate
from experiments.benchmarks.hlo import Program
from experiments.benchmarks.tiles import bytes_in_memory, num_bytes

SERVES = "from experiments.benchmarks.alternate import serve; serve(lambda: None, {steps})"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "foo"], "argument --cases: invalid choice: 'foo'"),
        (["--modes", "bar"], "argument --modes: invalid choice: 'bar'"),
        (["--turns", "0"], "argument --turns: 0 is not an integer of at least 1"),
        (
            ["--reference=/nowhere"],
            "/nowhere is not a checkout of allenai/dnw: it contains no",
        ),
        (["--reference-python=nothing"], "nothing is not a program"),
        ([f"--reference-python={shutil.which('true')}"], "true is not a Python interpreter"),
        (["--reference-python", sys.executable], f"{sys.executable} lacks"),
        (["--json=/nowhere/times.json"], "the folder /nowhere does not exist"),
        (["--json=/"], "/ is a folder; name a file in it"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_step.main(arguments)
    assert message in capsys.readouterr().err


def test_workers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(train_step.__file__).parents[2])
    commands = {name: [sys.executable, "-c", SERVES.format(steps=2)] for name in "ab"}
    timings = alternate(commands, turns=3)
    assert list(timings) == ["a", "b"]
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_the_error_names_the_worker_that_stopped() -> None:
    with pytest.raises(RuntimeError, match="the worker 'broken' stopped"):
        alternate({"broken": [sys.executable, "-c", ""]}, turns=1)


@pytest.mark.slow
def test_steps_are_timed_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(train_step.__file__).parents[2])
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # the workers compile in less time
    file = tmp_path / "times.json"
    modes = ["train", "run", "evaluate"]
    train_step.main(
        ["--cases=static", "--modes", *modes, "--batch-size=4", "--turns=1", f"--json={file}"]
    )
    report = json.loads(file.read_text())
    assert [row["name"] for row in report["rows"]] == [f"static {m} B=4 float32" for m in modes]
    for row in report["rows"]:
        (seconds,) = row["seconds"]["ours"]
        assert seconds > 0
        assert row["floor"] > 0
        assert row["images_per_second"] == round(4 / seconds)


def test_kernels_and_bytes_of_a_program() -> None:
    """The body of a loop counts once; a slice that is read or written counts without the rest."""

    @jax.jit
    def program(rows: jax.Array, table: jax.Array) -> jax.Array:
        def put(index: jax.Array, table: jax.Array) -> jax.Array:
            return table.at[index].set(jnp.sin(rows[index]))

        return lax.fori_loop(0, 100, put, table)

    table = jnp.ones((100, 512))
    text = program.lower(table, table).compile().as_text()
    bytes_of_kernels = sorted(num for _, num in Program.of(text or "").executed())
    assert bytes_of_kernels[-1] == 2 * table.nbytes  # the copy that keeps the argument unchanged
    bytes_in_the_loop = sum(bytes_of_kernels[:-1])
    assert table[0].nbytes < bytes_in_the_loop < 8 * table[0].nbytes


def test_number_of_bytes_of_a_type() -> None:
    assert num_bytes("(f32[2,3], bf16[4], pred[5], s32[], u8[7])") == 24 + 8 + 5 + 4 + 7


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("f32[4,12]", 192),  # without a layout: nothing is padded
        ("f32[4,12]{1,0:T(8,128)}", 4 * 8 * 128),
        ("f32[4,12]{0,1:T(8,128)}", 4 * 16 * 128),  # the rows are minor
        ("bf16[64,112,112,32]{3,2,1,0:T(8,128)(2,1)}", 2 * 64 * 112 * 112 * 128),
        ("bf16[64,112,112,32]{0,3,2,1:T(8,128)(2,1)}", 2 * 128 * 112 * 112 * 32),
        ("f32[5]{0:T(128)S(1)}", 0),  # on the chip
        ("(f32[5]{0:T(128)}, /*index=1*/f32[5]{0:T(128)S(1)}, u32[]{:S(2)})", 512),
        ("f32[]{:T(128)}", 4),
    ],
)
def test_bytes_in_memory(layout: str, expected: int) -> None:
    assert bytes_in_memory(layout) == expected


TPU_PROGRAM = """
%fused (p0: f32[40,128], p1: f32[]) -> f32[8,128] {
  %p0 = f32[40,128]{1,0:T(8,128)} parameter(0)
  %p1 = f32[]{:T(128)} parameter(1)
  %part = f32[8,128]{1,0:T(8,128)} slice(%p0), slice={[0:8], [0:128]}
  ROOT %out = f32[8,128]{1,0:T(8,128)} multiply(%part, %p1)
}

ENTRY %main (a: f32[40,128], b: f32[]) -> f32[8,128] {
  %a = f32[40,128]{1,0:T(8,128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  %start = (f32[40,128]{1,0:T(8,128)S(1)}, f32[40,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %done = f32[40,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %cut = ((f32[40,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a)
  %fusion = f32[8,128]{1,0:T(8,128)} fusion(%a, %b), calls=%fused, x={"estimated_cycles":"77"}
  ROOT %sum = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%fusion), to_apply=%add
}
"""


def test_bytes_of_a_program_for_a_tpu() -> None:
    """A copy from memory onto the chip counts once; a slice of an array counts alone."""
    program = Program.of(TPU_PROGRAM)
    moved = {operation.kind: num for operation, num in program.executed(size=bytes_in_memory)}
    row = 4 * 8 * 128
    scalar = 4
    assert moved == {
        "copy-start": 5 * row,
        "slice-start": row,
        "fusion": row + scalar + row,
        "all-reduce": row,
    }
    assert sum(operation.cycles for operation, _ in program.executed()) == 77
    assert [(op.kind, op.result) for op in program.collectives()] == [("all-reduce", "f32[8,128]")]


def test_error_without_a_compiler_for_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        topologies.get_topology_desc(platform="cuda")
    except NotImplementedError:
        with pytest.raises(SystemExit, match="2"):
            device_programs.main(["--targets", "h200-1"])
        assert 'pip install "jax[cuda13]"' in capsys.readouterr().err
    except Exception:  # jax has a compiler, but no GPU
        pytest.skip("jax can compile for GPUs here")
