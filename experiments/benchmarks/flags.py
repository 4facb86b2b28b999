"""The command-line flags that benchmarks share."""

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from experiments.benchmarks.cases import CASES


def flag_parser(doc: str) -> argparse.ArgumentParser:
    """Returns a parser without flags, whose help is `doc`, the docstring of a module."""
    summary, _, details = doc.partition("\n\n")
    return argparse.ArgumentParser(description=summary, epilog=details, formatter_class=_Help)


def timing_parser(doc: str, turns: int = 7) -> argparse.ArgumentParser:
    """Returns a parser with the flags `--turns` and `--json`."""
    parser = flag_parser(doc)
    parser.add_argument(
        "--turns", type=positive_integer, metavar="N", default=turns, help="timed turns of each"
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="file for the numbers")
    return parser


def add_case_flags(parser: argparse.ArgumentParser, *cases: str) -> None:
    """Adds flags for the models to time, by default `cases`, their batch size and dtype."""
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=list(cases),
        metavar="CASE",
        help="models to time: " + ", ".join(CASES),
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        metavar="N",
        help="replaces the batch size of each case",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype in which dnw_jax computes",
    )


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Prints the default of each flag, and keeps line breaks of the docstring."""


_REFERENCE_NEEDS = ("torch", "torchdiffeq", "PyYAML")


def add_reference_flags(parser: argparse.ArgumentParser) -> None:
    """Adds flags for the published code and its interpreter; `reference_versions` checks them."""
    is_checkout = folder_with("models/graphs", "checkout of allenai/dnw")
    parser.add_argument("--reference", type=is_checkout, metavar="DIR", help="the published code")
    parser.add_argument(
        "--reference-python",
        type=program,
        metavar="PYTHON",
        help="interpreter for it, with " + ", ".join(_REFERENCE_NEEDS),
    )


def reference_versions(
    parser: argparse.ArgumentParser, flags: argparse.Namespace
) -> dict[str, dict[str, str]]:
    """Returns {"reference": versions of the published code's packages}, or {} without --reference.

    Ends with an error of `parser` if only one of the two flags is set, or if a package is missing.
    """
    others = {}
    if flags.reference_python:
        try:
            others["reference"] = versions(flags.reference_python, *_REFERENCE_NEEDS)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --reference-python: {error}")
    if bool(flags.reference) != bool(others):
        parser.error("--reference and --reference-python belong together; give both or neither")
    return others


def positive_integer(text: str) -> int:
    """Parses an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least 1")
    return int(text)


def new_file(text: str) -> Path:
    """Parses the path of a file whose folder exists."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    return path


def program(text: str) -> str:
    """Parses the name or the path of a program."""
    if not shutil.which(text):
        raise argparse.ArgumentTypeError(f"{text} is not a program")
    return text


def folder_with(content: str, name: str) -> Callable[[str], Path]:
    """Returns a parser of the path of a folder that contains the path `content`.

    Its error says that the folder is not a `name`.
    """

    def folder(text: str) -> Path:
        path = Path(text).resolve()
        if not (path / content).exists():
            raise argparse.ArgumentTypeError(f"{text} is not a {name}: it contains no {content}")
        return path

    return folder


def add_imagenet_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the required flag `--data-dir`, a folder of TFDS that holds ImageNet."""
    parser.add_argument(
        "--data-dir",
        required=True,
        type=folder_with("imagenet2012", "folder of TFDS's datasets"),
        metavar="DIR",
        help="folder of TFDS that holds ImageNet",
    )


def versions(python: str, *packages: str) -> dict[str, str]:
    """Returns the versions of an interpreter, under "python", and of packages in it, by name.

    Raises:
      argparse.ArgumentTypeError: `python` is not an interpreter, or a package is missing.
    """
    code = """
import json, platform, sys
from importlib import metadata
installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
requested = {name: installed.get(name) for name in sys.argv[1:]}
print(json.dumps({"python": platform.python_version()} | requested))
"""
    process = subprocess.run([python, "-c", code, *packages], capture_output=True, check=False)
    if process.returncode or not process.stdout.startswith(b"{"):
        raise argparse.ArgumentTypeError(f"{python} is not a Python interpreter")
    version_of = json.loads(process.stdout)
    if missing := [name for name in packages if not version_of[name]]:
        raise argparse.ArgumentTypeError(
            f"{python} lacks {', '.join(missing)}: {python} -m pip install {' '.join(missing)}"
        )
    return version_of


def interpreter(*packages: str) -> Callable[[str], str]:
    """Returns a parser of a Python interpreter that has `packages`."""

    def with_packages(text: str) -> str:
        versions(program(text), *packages)
        return text

    return with_packages
