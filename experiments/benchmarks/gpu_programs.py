"""Lists the kernels that XLA compiles for an H200, and the bytes that they move. Needs no GPU.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.gpu_programs --cases static

Needs the packages for training on a GPU, `pip install "jax[cuda13]"`, but neither a GPU nor a
driver. For each step it prints the number of kernels, the bytes that they read and write in the
GPU's memory (each loop counts once), the least time for these bytes, and the memory besides the
arguments. Below stand the kernels that move most bytes. It measures no times; `step_profile`
does, on a GPU. Without a GPU XLA cannot time alternative kernels for a product, so on a GPU it
may choose others.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from dnw_jax.train import TrainState, evaluate_step, train_step
from experiments.benchmarks.alternate import format_seconds
from experiments.benchmarks.cases import CASES
from experiments.benchmarks.flags import add_case_flags, flag_parser, positive_integer
from experiments.benchmarks.hlo import Program
from experiments.benchmarks.ours import our_config, our_state, random_batch

_STEPS = {"train": train_step, "evaluate": evaluate_step}
_BYTES_PER_SECOND = 4.8e12
# XLA's description of an H200: openxla/xla, xla/backends/gpu/target_config/specs/h200.txtpb.
_H200 = """
gpu_device_info {
  name: "NVIDIA H200 141GB HBM3e" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 }
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 core_count: 132 fpus_per_core: 128 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table for each case and mode."""
    parser = flag_parser(__doc__)
    add_case_flags(parser, *CASES)
    parser.add_argument(
        "--modes", nargs="+", choices=_STEPS, default=list(_STEPS), help="which steps to compile"
    )
    parser.add_argument(
        "--top", type=positive_integer, metavar="N", default=5, help="kernels to list"
    )
    flags = parser.parse_args(argv)
    try:
        sharding = _h200_sharding()
    except NotImplementedError:
        parser.error(
            'jax has no compiler for GPUs here: pip install "jax[cuda13]"; '
            "on a machine without a GPU also set JAX_PLATFORMS=cpu"
        )
    for name in flags.cases:
        batch_size = flags.batch_size or CASES[name].batch_size
        state = our_state(our_config(name, batch_size, flags.dtype))
        batch = random_batch(name, batch_size)
        for mode in flags.modes:
            print(f"{name} {mode} B={batch_size} {flags.dtype}", flush=True)
            _print(_compile(mode, state, batch, sharding), flags.top)


def _h200_sharding() -> NamedSharding:
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=_H200)
    return NamedSharding(topologies.make_mesh(topology, (1,), ("data",)), PartitionSpec())


def _compile(
    mode: str, state: TrainState, batch: dict[str, jax.Array], sharding: NamedSharding
) -> jax.stages.Compiled:
    def on_h200(array: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    # Autotuning would time alternative kernels, which needs a GPU.
    options: dict[str, Any] = {"xla_gpu_autotune_level": 0}
    return _STEPS[mode].lower(*jax.tree.map(on_h200, (state, batch))).compile(options)


def _print(program: jax.stages.Compiled, top: int) -> None:
    kernels = list(Program.of(program.as_text() or "").executed())
    total_bytes = sum(moved for _, moved in kernels)
    memory = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
    print(
        f"  {len(kernels)} kernels read and write {total_bytes / 1e9:.3g} GB, "
        f"in at least {format_seconds(total_bytes / _BYTES_PER_SECOND)}; "
        f"{memory / 1e6:.0f} MB of temporary memory"
    )
    for kernel, moved in sorted(kernels, key=lambda pair: -pair[1])[:top]:
        result = re.sub(r"\s", "", kernel.result)
        print(f"  {moved / 1e6:8.1f} MB  {kernel.kind:11s} {result[:48]:48s} {kernel.source[-70:]}")


if __name__ == "__main__":
    main()
