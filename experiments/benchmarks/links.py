"""The published speeds of the links between devices, and how long an all-reduce takes on them.

Sources:
  TPU v5e: https://docs.cloud.google.com/tpu/docs/v5e. 1,600 Gbit/s a chip over four links, so
    50 GB/s a link and direction; a 2D torus; 25 Gbit/s a chip between slices (6.4 Tbit/s for 256);
    virtual machines of 4 chips and 112 vCPUs.
  A hop of a TPU's link takes about 1 us: https://jax-ml.github.io/scaling-book/sharding.
  H200: 8 a host, NVLink 900 GB/s (both directions together), InfiniBand of 400 Gbit/s a GPU, two
    processors of 56 cores: the system H200-SXM-141GBx8_TRT_MaxQ of NVIDIA's submission at
    https://github.com/mlcommons/inference_results_v4.1.
Not published: how long a small all-reduce of H200s takes. `_HOST_LATENCY` and `_NETWORK_LATENCY`
are assumptions.
"""

from typing import NamedTuple

_ICI_LINK = 50e9  # bytes a second, in one direction
_ICI_HOP = 1e-6  # seconds
_NVLINK = 450e9  # bytes a second, in one direction
_INFINIBAND = 50e9
_HOST_LATENCY, _NETWORK_LATENCY = 10e-6, 30e-6  # seconds
GPUS_PER_HOST = 8


class Slice(NamedTuple):
    """Devices that all-reduce together.

    Attributes:
      kind: "v5e" or "h200".
      num_devices: how many.
      devices_per_host: of one machine.
      cores_per_host: of one machine; of a TPU's machine virtual ones.
      shape: chips along each axis of a TPU slice.
    """

    kind: str
    num_devices: int
    devices_per_host: int
    cores_per_host: int
    shape: tuple[int, ...] = ()

    def all_reduce_seconds(self, num_bytes: float, count: int) -> float:
        """Returns the time of `count` all-reduces, one after the other, of `num_bytes` together."""
        if self.num_devices == 1:
            return 0.0
        if self.kind == "v5e":
            return num_bytes / self._tpu_bandwidth() + count * self._tpu_latency()
        hosts = self.num_devices // GPUS_PER_HOST
        inside = 2 * num_bytes * (GPUS_PER_HOST - 1) / GPUS_PER_HOST / _NVLINK
        # Between hosts each GPU reduces its eighth.
        between = 2 * num_bytes / GPUS_PER_HOST * (hosts - 1) / hosts / _INFINIBAND
        latency = _HOST_LATENCY + (_NETWORK_LATENCY if hosts > 1 else 0)
        return inside + between + count * latency

    def _tpu_bandwidth(self) -> float:
        """Returns bytes that are all-reduced a second.

        Each byte leaves a chip twice. An axis of 16 closes to a ring, which uses the links of both
        directions; a shorter axis is a line with half of that.
        """
        links = sum(2 if length == 16 else 1 for length in self.shape if length > 1)
        return links * _ICI_LINK / 2

    def _tpu_latency(self) -> float:
        """Returns the time of an all-reduce of a few bytes: there and back along each axis."""
        hops = sum(length // 2 if length == 16 else length - 1 for length in self.shape)
        return 2 * hops * _ICI_HOP


SLICES = (
    Slice("v5e", 1, 1, 24, (1, 1)),
    Slice("v5e", 4, 4, 112, (2, 2)),
    Slice("v5e", 16, 4, 112, (4, 4)),
    Slice("v5e", 64, 4, 112, (8, 8)),
    Slice("v5e", 256, 4, 112, (16, 16)),
    Slice("h200", 8, 8, 112),
    Slice("h200", 16, 8, 112),
    Slice("h200", 32, 8, 112),
    Slice("h200", 64, 8, 112),
)
