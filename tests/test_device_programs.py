"""Compiled programs for several devices: what moves between them, and what decides their form."""

import ast
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from small_runs import run_python, small_config

from dnw_jax.edges.select import edge_mask
from dnw_jax.models import build_model
from dnw_jax.step.state import create_train_state, map_over_seeds
from experiments.benchmarks import device_programs
from experiments.benchmarks.hlo import Program
from experiments.benchmarks.tiles import num_bytes

ROOT = Path(__file__).parent.parent

# Prints, for each program, each collective (kind, result, source), and the results of sorts.
PROGRAMS = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from dnw_jax import edge_mask, load_config, top_edges
from dnw_jax.platform import devices
from experiments.benchmarks.device_cases import lower
from experiments.benchmarks.hlo import Program
from experiments.benchmarks.targets import TARGETS

target = sys.argv[1]
mesh = TARGETS[target].mesh() if target in TARGETS else devices.data_mesh()
assert mesh.size == int(sys.argv[2])
fields = {
    "batch_size": "32",
    "dataset.image_size": "8",
    "model.num_nodes": "80",
    "model.num_outputs": "16",
}
config = load_config("configs/digits.py", fields)
programs = {mode: lower(mode, config, mesh) for mode in ("train", "evaluate")}
for name, spec in {"rows": ("data", None), "columns": (None, "data")}.items():
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    weights = jax.ShapeDtypeStruct((256, 208), jnp.float32, sharding=sharding)
    choose = jax.jit(lambda w: (edge_mask(w, 700), top_edges(w, 700)))
    programs[name] = choose.lower(weights)
found = {}
for name, program in programs.items():
    parsed = Program.of(program.compile().as_text())
    sorts = [o.result for c in parsed.computations.values() for o in c.values() if o.kind == "sort"]
    collectives = [(o.kind, o.result, o.source) for o in parsed.collectives()]
    found[name] = {"collectives": collectives, "sorts": sorts}
print(json.dumps(found))
"""


def compile_programs(target: str, num_devices: int, **environment: str) -> dict[str, Any]:
    return json.loads(run_python(PROGRAMS, target, str(num_devices), **environment))


NODES = 80
SAMPLE = 1024  # weights that the selection sorts to start with


def sizes_of(result: str) -> list[int]:
    """The number of elements of each array of a type."""
    shapes = re.findall(r"\w+\[([\d,]*)\]", result)
    return [math.prod(int(number) for number in shape.split(",") if number) for shape in shapes]


def largest(results: list[str]) -> int:
    return max((size for result in results for size in sizes_of(result)), default=0)


def assert_only_counts_move(programs: dict[str, Any], moves_in_training: int) -> None:
    """In no program does the selection move weights.

    `moves_in_training` bounds the bytes of a result that is not a sum: an augmented batch.
    """
    for name, program in programs.items():
        assert largest(program["sorts"]) <= SAMPLE, name  # never the weights
        for kind, result, source in program["collectives"]:
            if kind != "all-reduce":
                assert name == "train", (name, kind, result)
                assert num_bytes(result) <= moves_in_training, (kind, result, source)
    sums = {
        name: [(r, s) for kind, r, s in program["collectives"] if kind == "all-reduce"]
        for name, program in programs.items()
    }
    # Every device holds all weights: each chooses by itself, and the choices agree.
    assert not [source for _, source in sums["train"] if "_masks" in source]
    # The sums are the gradients, each once (of a graph: block by block) ...
    in_gradients = [size for result, _ in sums["train"] for size in sizes_of(result) if size >= 256]
    assert 0.2 * NODES**2 < sum(in_gradients) <= 1.2 * NODES**2
    # ... the statistics of the norms, and the sums over the examples.
    assert largest([result for result, _ in sums["evaluate"]]) == 1
    # Weights that are split over the devices: the sample, counts, and counts of a row or a column.
    for name in ("rows", "columns"):
        assert any("_masks" in source for _, source in sums[name]), sums[name]
        assert largest([result for result, _ in sums[name]]) <= SAMPLE, sums[name]


@pytest.mark.slow
def test_only_counts_move_between_eight_cpus() -> None:
    flags = "--xla_force_host_platform_device_count=8"
    programs = compile_programs("cpu", 8, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    assert_only_counts_move(programs, moves_in_training=NODES**2)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu exists for Linux on x86-64 only"
)
def test_only_counts_move_between_four_chips() -> None:
    """A whole program for a TPU slice; the machine has one CPU, which must not decide its form."""
    programs = compile_programs("v5e-4", 4, JAX_PLATFORMS="cpu")
    assert_only_counts_move(programs, moves_in_training=0)


# How a program is read.

HLO = """
%nothing (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

%gathers (y: f32[8]) -> f32[32] {
  %y = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%y), dimensions={0}
  ROOT %done = f32[32]{0} all-gather-done(%start)
}

ENTRY %main (p: pred[], z: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %z = f32[8]{0} parameter(1)
  %by_index = f32[8]{0} conditional(%p, %z, %z), branch_computations={%nothing, %gathers}
  ROOT %r = f32[8]{0} conditional(%p, %z, %z), true_computation=%gathers, false_computation=%nothing
}
"""


def test_the_larger_branch_and_the_result_of_a_collective_count() -> None:
    program = Program.of(HLO)
    assert [(op.kind, num_bytes(op.result)) for op in program.collectives()] == [
        ("all-gather", 128)
    ]
    assert [op.kind for op, _ in program.executed()] == ["all-gather-start"] * 2


@pytest.mark.parametrize(
    ("array", "size"),
    [("f32[3,5]", 60), ("pred[7]", 7), ("s4[5]", 3), ("u2[4,2]", 2), ("bf16[]", 2)],
)
def test_bytes_of_an_array(array: str, size: int) -> None:
    assert num_bytes(array) == size


# What decides the form of a program.

ASKS_THE_HOST = {"default_backend", "device_count", "local_device_count", "devices"}


@pytest.mark.parametrize("folder", ["edges", "ops", "graphs", "models", "step"])
def test_no_traced_code_asks_for_the_devices_of_this_machine(folder: str) -> None:
    """Programs are compiled for other devices, too: those of the target decide."""
    for path in (ROOT / "dnw_jax" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asks = node.value.id == "jax" and node.attr in ASKS_THE_HOST
                assert not asks, f"{path}:{node.lineno}: jax.{node.attr}"


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_the_target_decides_how_seeds_are_mapped(platform: str, loops: bool) -> None:
    """One after the other on a CPU, together on an accelerator."""
    config = small_config()
    state = create_train_state(config, build_model(config), steps_per_epoch=16)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)

    @jax.jit
    def double(numbers: jax.Array) -> jax.Array:
        return map_over_seeds(lambda number: 2 * number, states)(numbers)

    lowered = double.trace(jnp.ones(2)).lower(lowering_platforms=(platform,))
    assert ("while" in lowered.as_text()) == loops
    assert double(jnp.ones(2)).tolist() == [2, 2]


def test_the_mesh_of_the_weights_decides_how_they_are_counted() -> None:
    """On one CPU in one reduction, which the partitioner cannot split over several."""
    devices = jax.devices("cpu")
    of_one = Mesh(devices[:1], ("data",), axis_types=(AxisType.Auto,))
    of_eight = jax.sharding.AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def reductions(mesh: Any) -> int:
        """How many reductions of several arrays there are."""
        sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
        weights = jax.ShapeDtypeStruct((64, 72), jnp.float32, sharding=sharding)
        program = str(jax.make_jaxpr(lambda w: edge_mask(w, 7))(weights))
        return program.count("= reduce[")

    assert reductions(of_one) == 2  # the first pass over the weights, and the later ones
    assert reductions(of_eight) == 0


# The command.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "foo"], "argument --cases: invalid choice: 'foo'"),
        (["--targets", "foo"], "argument --targets: invalid choice: 'foo'"),
        (["--table"], "--table needs --rows"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        device_programs.main(arguments)
    assert message in capsys.readouterr().err
