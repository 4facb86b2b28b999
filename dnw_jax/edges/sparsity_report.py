"""How many weights of a model's parameters are kept, as a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class LeafReport(NamedTuple):
    """One leaf of the parameters.

    Attributes:
      path: its path, such as "encoder/kernel".
      shape: its shape.
      kept: number of its weights that carry signal.
      sparse: whether `sparsify` made it sparse.
    """

    path: str
    shape: tuple[int, ...]
    kept: int
    sparse: bool

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is not kept."""
        return 1 - self.kept / self.size if self.size else 0.0


@dataclass(frozen=True, repr=False)
class SparsityReport:
    """How many weights of every leaf are kept; prints as a table."""

    leaves: tuple[LeafReport, ...]
    note: str = ""

    @property
    def kept(self) -> int:
        """Number of weights kept, dense leaves included."""
        return sum(leaf.kept for leaf in self.leaves)

    def __str__(self) -> str:
        sparse = [leaf for leaf in self.leaves if leaf.sparse]
        dense = [leaf for leaf in self.leaves if not leaf.sparse]
        rows = [(leaf.path, str(leaf.shape), *_counted([leaf])) for leaf in sparse]
        totals = [("all sparse leaves", "", *_counted(sparse))]
        if dense:
            plural = "leaf" if len(dense) == 1 else "leaves"
            totals.append((f"{len(dense)} dense {plural}", "", *_counted(dense)))
            totals.append(("all", "", *_counted(self.leaves)))
        table = [("path", "shape", "kept", "of", "sparsity"), *rows, *totals]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in table
        ]
        rule = "-" * len(lines[0])
        empty = [leaf.path for leaf in sparse if leaf.size and not leaf.kept]
        notes = [f"NOTHING is kept of {', '.join(empty)}"] if empty else []
        notes += [self.note] if self.note else []
        end = 1 + len(rows)
        return "\n".join([lines[0], rule, *lines[1:end], rule, *lines[end:], *notes])

    __repr__ = __str__


def _counted(leaves: Sequence[LeafReport]) -> tuple[str, str, str]:
    kept, size = sum(leaf.kept for leaf in leaves), sum(leaf.size for leaf in leaves)
    return f"{kept:,}", f"{size:,}", f"{1 - kept / size if size else 0:.2%}"
