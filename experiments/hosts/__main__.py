"""Proves what several hosts do, on one machine: arrangements, elastic resume, faults.

    python -m experiments.hosts --data-dir=DIR --folder=FOLDER --out=FILE.md

Takes about an hour on two cores. A part that is done is not repeated: its lines are in
FOLDER/lines.json. So use an empty folder after a change of the code.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax

from experiments.hosts import faults
from experiments.hosts.cases import CASES, SMALL, flags
from experiments.hosts.equality import ARRANGEMENTS, compare, elastic
from experiments.hosts.launch import ROOT

# 500 steps of the digits last some ten seconds, in which a signal can come at any moment.
_FAULTS = [
    f"--config={ROOT / 'configs' / 'digits.py'}",
    "--config.num_steps=500",
    "--config.log.every_steps=50",
    "--config.checkpoint.every_steps=100",
]
_NUM_SIGNALS = 6
_RESUMED = CASES[:2]  # static, MobileNetV1-like


def main() -> int:
    """Runs every part; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="with the data sets of TFDS")
    parser.add_argument("--folder", type=Path, required=True, help="for the workdirs")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.folder / "compiled"))
    data_dir, folder = options.data_dir.resolve(), options.folder.resolve()
    done_file = folder / "lines.json"
    done: dict[str, list[str]] = json.loads(done_file.read_text()) if done_file.exists() else {}
    for name, part in _parts(data_dir, folder):
        if name not in done:
            done[name] = part()
            done_file.write_text(json.dumps(done, indent=2))
            print("\n".join(done[name]), flush=True)
    lines = [line for part in done.values() for line in part]
    options.out.write_text(_text(done))
    return int(any("**no**" in line for line in lines))


def _parts(data_dir: Path, folder: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Yields the name of each part and a function that runs it and returns its table rows."""
    for case in CASES:
        yield f"arrangements {case}", partial(_arrangements, case, data_dir, folder)
    for case in _RESUMED:
        yield f"elastic {case}", partial(_elastic, case, data_dir, folder)
    for number in range(_NUM_SIGNALS):
        yield f"faults SIGTERM {number}", partial(_sigterm, number, folder)
    for host in range(faults.HOSTS):
        yield f"faults kill {host}", partial(_kill, host, folder)
    yield "faults missing", partial(_missing, folder)
    yield "faults damaged", partial(_damaged, data_dir, folder)


def _arrangements(case: str, data_dir: Path, folder: Path) -> list[str]:
    return [
        f"| {c.case} | {c.hosts} x {c.devices} | {c.difference:.1e} | {c.moved:.1e} | {c.flipped} "
        f"| {c.num_tested[0]} / {c.num_tested[1]} | {c.correct[0]} / {c.correct[1]} "
        f"| {len(c.logged)} | {_mark(c.holds)} |"
        for c in compare(case, data_dir, folder, ARRANGEMENTS)
    ]


def _elastic(case: str, data_dir: Path, folder: Path) -> list[str]:
    result = elastic(case, data_dir, folder)
    return [
        f"| {case} | {result.difference:.1e} | {'yes' if result.repeated else 'no'} "
        f"| {_mark(result.holds)} |"
    ]


def _sigterm(number: int, folder: Path) -> list[str]:
    workdir = folder / "sigterm"
    length = folder / "seconds.json"
    if not length.exists():
        length.write_text(json.dumps(faults.duration(_FAULTS, workdir)))
    moment, host = faults.moments(0, _NUM_SIGNALS, json.loads(length.read_text()))[number]
    return [_row(faults.terminate(_FAULTS, workdir, moment, host))]


def _kill(host: int, folder: Path) -> list[str]:
    seconds = json.loads((folder / "seconds.json").read_text())
    return [_row(faults.kill(_FAULTS, folder / "sigterm", seconds / 2, host))]


def _missing(folder: Path) -> list[str]:
    return [_row(faults.missing_config(flags(SMALL), folder / "missing", folder / "hosts"))]


def _damaged(data_dir: Path, folder: Path) -> list[str]:
    workdir = folder / "damaged"
    return [_row(faults.damaged_data(flags(CASES[-1]), workdir, data_dir, folder / "hosts"))]


def _row(fault: faults.Fault) -> str:
    codes = ", ".join(map(str, fault.exit_codes))
    steps = ", ".join(map(str, fault.steps)) or "none"
    return (
        f"| {fault.name} | {codes} | {fault.seconds:.0f} s | {steps} "
        f"| {_RESUMES[fault.resumed]} | {_mark(fault.holds)} |"
    )


_RESUMES = {True: "yes", False: "no", None: "-"}


def _mark(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _text(done: dict[str, list[str]]) -> str:
    def rows(prefix: str) -> str:
        parts = (lines for name, lines in done.items() if name.startswith(prefix))
        return "\n".join(line for lines in parts for line in lines)

    return _PAGE.format(
        command="python -m experiments.hosts --data-dir=DIR --folder=FOLDER --out=FILE",
        python=".".join(map(str, sys.version_info[:3])),
        jax=jax.__version__,
        cores=os.cpu_count(),
        arrangements=rows("arrangements"),
        elastic=rows("elastic"),
        faults=rows("faults"),
    )


_PAGE = """# Several hosts on one machine

Printed by `{command}`: real processes, connected over loopback with gloo, on {cores} CPU cores.
Python {python}, jax {jax}.

## Arrangements

Each row is a run of 20 steps beside the same run on one device. *Difference* is the largest
absolute difference of a parameter or a running statistic after the last step, *moved* the largest
change of a parameter between steps 5 and 20, *flipped* the number of edges that are real in one run
alone. *Tested* counts the test examples and *correct* those that are right, here / on one device;
*rows* those of `metrics.jsonl`.

| case | hosts x devices | difference | moved | flipped | tested | correct | rows | holds |
|---|---|---|---|---|---|---|---|---|
{arrangements}

## Elastic resume

10 steps on two hosts, then 5 on one host and 5 on four devices, beside 20 steps on one device; and
the last 10 steps once more on two hosts, which must give the same bits as the first time.

| case | difference | same bits on two hosts | holds |
|---|---|---|---|
{elastic}

## Faults

Two processes; the exit codes are those of process 0 and 1 (negative: the signal). *Ended* counts
from the fault, or from the start of the run for the last two rows, until both processes had ended.
*Steps* are those of the checkpoints then. *Resumed*: the same command, started again, ends with the
bits of an uninterrupted run.

| fault | exit codes | ended | steps | resumed | holds |
|---|---|---|---|---|---|
{faults}
"""

if __name__ == "__main__":
    sys.exit(main())
