"""The command line: `python -m dnw_jax.main --config=FILE --workdir=FOLDER`."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from dnw_jax.config import CONFIG_FILE, load_config
from dnw_jax.errors import UserError
from dnw_jax.platform.large_pages import restart_with_large_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one mode; returns the exit code: 0 done, 2 a setting is wrong, 130 or 143 interrupted.

    Raises:
      SystemExit: `--help` (0), or wrong flags (2).
    """
    flags, overrides = _parse(sys.argv[1:] if argv is None else argv)
    logging.set_verbosity(logging.ERROR)
    try:
        config = load_config(flags.config or f"{flags.workdir}/{CONFIG_FILE}", overrides)
        # Late, because jax takes a second: help and wrong settings need none of it.
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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        saved = ("checkpoints/*/", "seed_*/checkpoints/*/")
        goes_on = flags.mode == "train" and any(
            any(Path(flags.workdir).glob(pattern)) for pattern in saved
        )
        print(
            f"interrupted: the same command goes on from the last checkpoint in {flags.workdir}"
            if goes_on
            else "interrupted: there is nothing to go on from",
            file=sys.stderr,
        )
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    parser = argparse.ArgumentParser(
        prog="python -m dnw_jax.main",
        description="Discover a neural wiring; evaluate or profile one.",
        epilog="Any field of the configuration can be set with --config.FIELD=VALUE, "
        "for instance --config.model.sparsity=0.9.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:KEY=VALUE,...]",
        help="a file of configs/ with arguments for its get_config, for instance "
        "configs/digits.py:wiring=static,edges=random (other modes than train: the "
        "workdir's own configuration when left out)",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="FOLDER",
        help="where checkpoints, metrics and pictures go; a run that is there is resumed",
    )
    parser.add_argument(
        "--mode",
        choices=("train", "evaluate", "profile"),
        default="train",
        help="profile: what the network of a checkpoint costs (default: %(default)s)",
    )
    parser.add_argument(
        "--step",
        default="last",
        help="of --mode=evaluate and profile: last, best or a number (default: %(default)s)",
    )
    rest, overrides = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        field, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                parser.error(f"{word} needs a value")
        overrides.append((field, value))
    flags = parser.parse_args(rest)
    if not flags.workdir:
        parser.error("--workdir is empty; name a folder, for instance --workdir=runs/digits")
    if not flags.config and flags.mode == "train":
        parser.error("--mode=train needs --config, for instance --config=configs/digits.py")
    if flags.mode == "train" and flags.step != "last":
        parser.error("--step is of --mode=evaluate; training goes on from the last checkpoint")
    return flags, overrides


if __name__ == "__main__":
    restart_with_large_pages()
    sys.exit(main())
