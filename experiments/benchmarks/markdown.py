"""Puts a printed table into a Markdown file, so that one command can make it again."""

import argparse
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

_BEGIN, _END = "<!-- printed: begin -->", "<!-- printed: end -->"


def add_into_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag `--into`, a Markdown file; `printed_into` uses it."""
    parser.add_argument(
        "--into",
        type=_file_with_marks,
        metavar="FILE.md",
        help=f"replaces what stands in FILE.md between {_BEGIN} and {_END}",
    )


@contextlib.contextmanager
def printed_into(path: Path | None) -> Iterator[None]:
    """Puts what the block prints between the marks of `path`; prints it if `path` is None."""
    if path is None:
        yield
        return
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield
    before, _, rest = path.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n\n{text.getvalue().strip()}\n\n{_END}{after}")


def _file_with_marks(text: str) -> Path:
    path = Path(text)
    content = path.read_text() if path.is_file() else ""
    if not 0 <= content.find(_BEGIN) < content.find(_END):
        raise argparse.ArgumentTypeError(f"{text} is not a file that holds {_BEGIN} and {_END}")
    return path
