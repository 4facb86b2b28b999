"""Devices to compile for, on a machine that has none of them, and their published speeds."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jax.experimental import topologies
from jax.sharding import Mesh

from dnw_jax.platform.devices import data_mesh

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

# Without the first two, libtpu asks a server about the machine's TPU and waits for the answer.
# Without the third, a single process may load it at a time: it locks a file.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Target:
    """Some devices of one kind.

    Attributes:
      num_devices: TPU chips or GPUs.
      platform: JAX's name.
      topology: JAX's name of the arrangement, or XLA's description of a GPU.
      flops: multiplications and additions a second of a device, with factors in bfloat16.
      bytes_per_second: of a device's memory.
      clock: cycles a second of a TPU, or None. It is not published; a v5e has four units of
        128 x 128 multipliers, so its published speed implies it.
      options: of the compiler.
      packages: what to install.
    """

    num_devices: int
    platform: str
    topology: str
    flops: float
    bytes_per_second: float
    clock: float | None
    options: Mapping[str, Any] = field(default_factory=dict)
    packages: str = ""

    def mesh(self) -> Mesh:
        """Returns a mesh of all devices with the axis "data", as a run makes it.

        Raises:
          RuntimeError: JAX has no compiler for these devices here.
        """
        os.environ.update({**_TPU_ENVIRONMENT, **os.environ})
        try:
            if self.platform == "tpu":
                # By default libtpu expects hosts of four chips.
                host = {"chips_per_host_bounds": (1, 1, 1)} if self.num_devices == 1 else {}
                topology = topologies.get_topology_desc(self.topology, "tpu", **host)
            else:
                topology = topologies.get_topology_desc(
                    platform=self.platform, topology="1x1x1", target_config=self.topology
                )
        except Exception as error:  # its type depends on what is missing
            raise RuntimeError(
                f"jax has no compiler for a {self.platform} here: pip install {self.packages}; "
                f"without the device also set JAX_PLATFORMS=cpu ({error})"
            ) from error
        return data_mesh(topology.devices)


def _v5e(num_devices: int, shape: str) -> Target:
    # https://docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB of 819 GB/s.
    flops = 197e12
    return Target(
        num_devices,
        "tpu",
        f"v5e:{shape}",
        flops,
        819e9,
        flops / (2 * 4 * 128 * 128),
        packages='"jax[tpu]"',
    )


TARGETS = {
    "v5e-1": _v5e(1, "1x1"),
    "v5e-4": _v5e(4, "2x2"),
    "v5e-16": _v5e(16, "4x4"),
    "v5e-256": _v5e(256, "16x16"),
    # https://www.nvidia.com/en-us/data-center/h200: 989 TFLOP/s (dense), 141 GB of 4.8 TB/s.
    # Autotuning would time alternative kernels, which needs a GPU.
    "h200-1": Target(
        1,
        "cuda",
        _H200,
        989e12,
        4.8e12,
        None,
        {"xla_gpu_autotune_level": 0},
        '"jax[cuda13]"',
    ),
}
