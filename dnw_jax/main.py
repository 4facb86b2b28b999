"""The command line: `python -m dnw_jax.main --config=FILE --workdir=FOLDER`."""

import argparse
import contextlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from absl import logging

from dnw_jax.config import CONFIG_FILE, load_config
from dnw_jax.errors import UserError
from dnw_jax.platform.join import Processes
from dnw_jax.platform.large_pages import restart_with_large_pages
from dnw_jax.run.commit import MARK

# What JAX reports if another process does not answer, by gloo, NCCL or the coordination service.
_NO_ANSWER = re.compile(
    "gloo|nccl|connection|peer|heartbeat|coordination|unavailable|deadline|aborted|cancelled",
    re.IGNORECASE,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one mode of the command line.

    Args:
      argv: the words after the program's name; by default those of this process.

    Returns:
      The exit code: 0 if it succeeded; 1 if another process of the run was lost; 2 if a setting,
      file or disk needs the user's attention; 130 after Ctrl-C and 143 after SIGTERM.

    Raises:
      SystemExit: after `--help` (0) or for wrong flags (2).
    """
    flags, overrides = _parse(sys.argv[1:] if argv is None else argv)
    logging.set_verbosity(logging.ERROR)
    try:
        together: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        if flags.processes.join():
            from dnw_jax.platform.agreement import together  # noqa: PLC0415
        with together():
            config = load_config(flags.config or f"{flags.workdir}/{CONFIG_FILE}", overrides)
        # Imported late: jax takes a second to import, and help and wrong settings do not need it.
        from dnw_jax.commands.evaluate import evaluate  # noqa: PLC0415
        from dnw_jax.commands.profile import print_profile  # noqa: PLC0415
        from dnw_jax.platform.compile_cache import enable_compilation_cache  # noqa: PLC0415
        from dnw_jax.train import train  # noqa: PLC0415

        enable_compilation_cache()
        if flags.mode == "train":
            train(config, flags.workdir)
        elif flags.mode == "evaluate":
            evaluate(config, flags.workdir, flags.step)
        else:
            print_profile(config, flags.workdir, flags.step)
    except (UserError, OSError) as error:  # an OSError is, for instance, a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {_how_to_resume(flags)}", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except RuntimeError as error:
        if not _lost_another_process(error):
            raise
        print(f"error: lost another process: {_how_to_resume(flags)} ({error})", file=sys.stderr)
        return 1
    return 0


def _lost_another_process(error: RuntimeError) -> bool:
    """Returns whether JAX raised the error because another process does not answer."""
    jax = sys.modules.get("jax")
    return (
        jax is not None
        and isinstance(error, jax.errors.JaxRuntimeError)
        and jax.process_count() > 1
        and _NO_ANSWER.search(str(error)) is not None
    )


def _how_to_resume(flags: argparse.Namespace) -> str:
    # `run.workdir` would import jax.
    patterns = (f"checkpoints/*/{MARK}", f"seed_*/checkpoints/*/{MARK}")
    if flags.mode == "train" and any(any(Path(flags.workdir).glob(name)) for name in patterns):
        return f"the same command resumes from the last checkpoint in {flags.workdir}"
    return "the same command starts from the beginning"


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    parser = argparse.ArgumentParser(
        prog="python -m dnw_jax.main",
        description="Train a network that finds its wiring, evaluate it, or print what it costs.",
        epilog="Any field of the configuration can be set with --config.FIELD=VALUE, "
        "for instance --config.model.sparsity=0.9.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:KEY=VALUE,...]",
        help="a config file and, after a colon, arguments for its get_config, for instance "
        "configs/digits.py:wiring=static,edges=random (default for --mode=evaluate and profile: "
        "the configuration in the workdir)",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="FOLDER",
        help="for checkpoints, metrics and pictures; training resumes a run that is there already",
    )
    parser.add_argument(
        "--mode",
        choices=("train", "evaluate", "profile"),
        default="train",
        help="train a network; evaluate a checkpoint on all test examples; or print the parameters "
        "and multiply-adds of the network in a checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--step",
        default="last",
        help="the checkpoint for --mode=evaluate and profile: last, best (highest test accuracy) "
        "or a number (default: %(default)s)",
    )
    parser.add_argument(
        "--multihost",
        action=argparse.BooleanOptionalAction,
        help="join the other processes of this run: start the same command on every host. On Cloud "
        "TPU, on GKE, under Slurm's srun and under MPI they are found; elsewhere give the next "
        "three flags (default: only on Cloud TPU)",
    )
    parser.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="of process 0, for --multihost"
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="of the run")
    parser.add_argument("--process_id", type=int, metavar="I", help="of this process, 0..N-1")
    other_words, overrides = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            other_words.append(word)
            continue
        field, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                parser.error(f"{word} needs a value, for instance --config.seed=1")
        overrides.append((field, value))
    flags = parser.parse_args(other_words)
    if not flags.workdir:
        parser.error("--workdir is empty; name a folder, for instance --workdir=runs/digits")
    if not flags.config and flags.mode == "train":
        parser.error("--mode=train needs --config, for instance --config=configs/digits.py")
    if flags.mode == "train" and flags.step != "last":
        parser.error(
            "--step is for --mode=evaluate and profile; training resumes from the last checkpoint"
        )
    flags.processes = Processes(
        flags.multihost, flags.coordinator_address, flags.num_processes, flags.process_id
    )
    try:
        flags.processes.check()
    except UserError as error:
        parser.error(str(error))
    return flags, overrides


if __name__ == "__main__":
    restart_with_large_pages()
    sys.exit(main())
