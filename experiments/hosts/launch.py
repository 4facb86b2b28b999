"""Starts one run as several processes on this machine, each with several devices of its CPU."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Run:
    """A run under way: its processes and their outputs.

    A context manager; at its end no process is left.

    Args:
      flags: of `python -m dnw_jax.main`.
      hosts: number of processes.
      devices: of each process.
      folders: the working directory of each process; by default one empty folder for all.
    """

    flags: Sequence[str]
    hosts: int = 1
    devices: int = 1
    folders: Sequence[Path] = ()

    def __enter__(self) -> "Run":
        self._folder = tempfile.TemporaryDirectory(prefix="dnw_jax_hosts_")
        address, name = f"localhost:{free_port()}", Path(self._folder.name)
        self.processes = []
        self._files: list[tuple[IO[str], IO[str]]] = []
        for host in range(self.hosts):
            joins = [
                "--multihost",
                f"--coordinator_address={address}",
                f"--num_processes={self.hosts}",
                f"--process_id={host}",
            ]
            out, err = ((name / f"{stream}{host}").open("w+") for stream in ("out", "err"))
            self._files.append((out, err))
            self.processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "dnw_jax.main",
                        *self.flags,
                        *(joins if self.hosts > 1 else []),
                    ],
                    cwd=self.folders[host] if self.folders else name,
                    env=os.environ | self._environment(),
                    stdout=out,
                    stderr=err,
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for files in self._files:
            for file in files:
                file.close()
        self._folder.cleanup()

    def _environment(self) -> dict[str, str]:
        flags = f"--xla_force_host_platform_device_count={self.devices}"
        search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join(search),
            "PYTHONUNBUFFERED": "1",
        }

    def stdout(self, host: int = 0) -> str:
        """Returns what a process has printed so far."""
        return Path(self._files[host][0].name).read_text(errors="replace")

    def stderr(self, host: int = 0) -> str:
        """Returns the errors that a process has printed so far."""
        return Path(self._files[host][1].name).read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        """Waits until `condition` holds.

        Raises:
          TimeoutError: it did not within `seconds`.
          RuntimeError: a process ended before.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if any(process.poll() is not None for process in self.processes):
                raise RuntimeError(f"a process ended early:\n{self.outputs()}")
            if time.monotonic() > deadline:
                raise TimeoutError(self.outputs())
            time.sleep(0.05)

    def exit_codes(self, seconds: float) -> list[int | None]:
        """Waits at most `seconds` for the ends of all processes.

        Returns:
          Their exit codes; negative numbers of signals, and None for a process that did not end.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(p.poll() is None for p in self.processes):
            time.sleep(0.05)
        return [process.poll() for process in self.processes]

    def outputs(self) -> str:
        """Returns the ends of all outputs, for the message of a failure."""
        parts = []
        for host in range(self.hosts):
            code = self.processes[host].poll()
            parts.append(f"--- process {host}, exit code {code}\n{self.stdout(host)[-2000:]}")
            parts.append(self.stderr(host)[-3000:])
        return "\n".join(parts)


def complete(
    flags: Sequence[str],
    hosts: int = 1,
    devices: int = 1,
    folders: Sequence[Path] = (),
    seconds: float = 1800,
) -> str:
    """Runs to the end; returns what process 0 printed.

    Raises:
      RuntimeError: a process failed or did not end within `seconds`.
    """
    with Run(flags, hosts, devices, folders) as run:
        if run.exit_codes(seconds) != [0] * hosts:
            raise RuntimeError(run.outputs())
        return run.stdout()


def free_port() -> int:
    """Returns a port of this machine that no process uses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])
