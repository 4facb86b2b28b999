"""Joins the processes of a run. JAX does the work; this file decides when, and limits the time.

Importing this file does not import JAX, because help and wrong flags must not wait for it.
"""

import importlib.util
import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnw_jax.errors import UserError

# How long a process waits at the start for the others. A large slice takes minutes to start.
JOIN_SECONDS = 300
# A process that sent no heartbeat for so long counts as lost, and JAX ends the others. JAX's
# default is 100 seconds; operators expect the end of a broken run within two minutes.
HEARTBEAT_SECONDS = 60
# How long a process that is done waits for the others. All of them end at the same step.
SHUTDOWN_SECONDS = 60

# After so many seconds of waiting a process says for what.
_QUIET_SECONDS = 5

_MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


@dataclass(frozen=True)
class Processes:
    """How the processes of a run find each other.

    Attributes:
      multihost: True joins the other processes; False never does; None joins them on Cloud TPU
        alone, where JAX finds them quickly and without an error if there is only one.
      coordinator_address: HOST:PORT of process 0, or None if JAX finds it.
      num_processes: of the run, or None if JAX finds it.
      process_id: of this process, in 0..num_processes-1, or None if JAX finds it.
    """

    multihost: bool | None = None
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def check(self) -> None:
        """Raises UserError unless the fields fit each other."""
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if given == (None, None, None):
            return
        if not self.multihost:
            raise UserError(
                "--coordinator_address, --num_processes and --process_id need --multihost"
            )
        if (
            self.coordinator_address is None
            or self.num_processes is None
            or self.process_id is None
        ):
            raise UserError(
                "--coordinator_address, --num_processes and --process_id belong together: give all "
                "three, or none on Cloud TPU, on GKE, under Slurm's srun and under MPI"
            )
        host, _, port = self.coordinator_address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(
                f"--coordinator_address is {self.coordinator_address}; it must be HOST:PORT of "
                "process 0, for instance 10.0.0.1:12321"
            )
        if self.num_processes < 1:
            raise UserError(f"--num_processes is {self.num_processes}; it must be at least 1")
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"--process_id is {self.process_id}; with --num_processes={self.num_processes} it "
                f"must be in 0..{self.num_processes - 1}"
            )

    def join(self) -> bool:
        """Waits until all processes of the run have started; must come before any use of JAX.

        Returns whether this process is one of several that JAX can connect.

        A process that waits in vain for JOIN_SECONDS ends with exit code 2 and says what it waited
        for.

        Raises:
          UserError: JAX cannot find the other processes, or the coordinator cannot start.
        """
        if self.multihost is False or (self.multihost is None and not _has_tpu()):
            return False
        import jax  # noqa: PLC0415

        # JAX's preemption service would take SIGTERM for itself, which `Interrupts` owns. Before
        # version 0.8 it cannot be switched off; `Interrupts` then replaces its handler.
        if hasattr(jax.config, "jax_enable_preemption_service"):
            jax.config.update("jax_enable_preemption_service", False)
        timeouts: dict[str, Any] = {
            "initialization_timeout": JOIN_SECONDS + 60,  # `_time_limit` comes first
            "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
            "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
        }
        known = inspect.signature(jax.distributed.initialize).parameters  # 0.7 lacks the last one
        try:
            with _time_limit(self._awaited()):
                jax.distributed.initialize(
                    self.coordinator_address,
                    self.num_processes,
                    self.process_id,
                    cluster_detection_method=self._detection_method(),
                    **{name: seconds for name, seconds in timeouts.items() if name in known},
                )
        except ValueError as error:  # JAX found no address, number or id
            if self.multihost is None:
                return False  # a TPU outside of Cloud TPU: one process
            raise UserError(
                "--multihost: JAX finds no Cloud TPU, GKE, Slurm (started by srun) or MPI here "
                f"({error}). Give --coordinator_address=HOST:PORT --num_processes=N --process_id=I"
            ) from error
        except Exception as error:
            raise UserError(
                f"cannot join the other processes: {error}; {self._awaited()}"
            ) from error
        if jax.device_count() != jax.local_device_count() * jax.process_count():
            raise UserError(
                f"this process has {jax.local_device_count()} of {jax.device_count()} devices; all "
                f"{jax.process_count()} processes must have equally many"
            )
        return True

    def _detection_method(self) -> str | None:
        """Returns how JAX finds what is not given; None means that it tries all but MPI."""
        if self.coordinator_address is not None:
            return "deactivate"
        under_mpi = any(name in os.environ for name in _MPI_VARIABLES)
        if not under_mpi or "SLURM_STEP_NODELIST" in os.environ:
            return None
        if importlib.util.find_spec("mpi4py") is None:
            raise UserError("--multihost under MPI needs mpi4py. Install it: pip install mpi4py")
        return "mpi4py"

    def _awaited(self) -> str:
        if self.coordinator_address is None:
            hint = "; inside sbatch, start the command with srun" * ("SLURM_JOB_ID" in os.environ)
            return f"waiting for the other processes that JAX finds here{hint}"
        others = "process 0" if self.process_id else f"all {self.num_processes} processes"
        return (
            f"process {self.process_id} of {self.num_processes} waiting for {others} at "
            f"{self.coordinator_address}"
        )


def _has_tpu() -> bool:
    """Returns whether this machine has a TPU and its library."""
    devices = (*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*"))
    return any(devices) and importlib.util.find_spec("libtpu") is not None


@contextmanager
def _time_limit(awaited: str) -> Iterator[None]:
    """Ends the process if the block takes longer than JOIN_SECONDS.

    JAX would abort with a stack trace that names neither the address nor the missing process.
    Ctrl-C and SIGTERM end the process at once: Python's handlers would wait for JAX.
    """

    def give_up() -> None:
        print(
            f"error: gave up after {JOIN_SECONDS} s: {awaited}. Start all processes at the same "
            "time; check the address, its port and the firewall",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    def explain() -> None:
        print(f"{awaited}, at most {JOIN_SECONDS} s", file=sys.stderr, flush=True)

    timers = (
        threading.Timer(_QUIET_SECONDS, explain),
        threading.Timer(JOIN_SECONDS, give_up),
    )
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)
