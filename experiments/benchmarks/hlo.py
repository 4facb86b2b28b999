"""Parses the text of a compiled program into operations and the bytes that they move."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from experiments.benchmarks.tiles import arrays_of, bytes_in_memory, num_bytes

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\(([^)]*)\)(.*)$")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|true_computation|false_computation|branch_computations)="
    r"(?:\{([^}]*)\}|(%?[\w.-]+))"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d{1,15})"')  # a longer number means: unknown
CONTROL_FLOW = ("while", "conditional", "call")
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
    "ragged-all-to-all",
)
_WITH_OPERANDS = ("all-gather-start", "collective-permute-start")  # in their results


class Operation(NamedTuple):
    """One line of a program.

    Attributes:
      kind: HLO's opcode.
      result: the type of the result, without the layout.
      layout: the type of the result, with the layout.
      operands: names of the operands; for a parameter, the number of the parameter.
      called: the computations that it executes: a loop's body, or all branches.
      source: the path in the traced code.
      cycles: the compiler's estimate, or 0 where it gives none. Only compilers for TPUs do.
    """

    kind: str
    result: str
    layout: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    source: str
    cycles: int


Computation = dict[str, Operation]  # by name


class Program(NamedTuple):
    """The computations of a program by name, and the name of the first one."""

    computations: dict[str, Computation]
    entry: str

    @classmethod
    def of(cls, hlo: str) -> "Program":
        """Parses the result of `jax.stages.Compiled.as_text`."""
        computations, entry = dict[str, Computation](), ""
        for line in hlo.splitlines():
            if start := _COMPUTATION.match(line):
                computations[start[2]] = computation = {}
                entry = start[2] if start[1] else entry
            elif instruction := _INSTRUCTION.match(line):
                computation[instruction[1]] = _operation(*instruction.groups()[1:])
        return cls(computations, entry)

    def executed(
        self, name: str | None = None, size: Callable[[str], int] = num_bytes
    ) -> Iterator[tuple[Operation, int]]:
        """Yields each operation that takes time, with the bytes that it reads and writes.

        Each loop counts once, and of a conditional the branch that moves most.

        Args:
          name: the computation; the first one by default.
          size: returns the bytes of all arrays of a type. By default the bytes of their elements;
            `tiles.bytes_in_memory` counts padding, and leaves out arrays on the chip.
        """
        computation = self.computations[name or self.entry]
        for operation in computation.values():
            if operation.kind in CONTROL_FLOW:
                branches = (list(self.executed(branch, size)) for branch in operation.called)
                yield from max(branches, key=lambda branch: sum(moved for _, moved in branch))
            elif operation.kind not in _FREE and not operation.kind.endswith("-done"):
                yield operation, self._traffic(operation, computation, size)

    def largest_loop(self) -> str:
        """Returns the body of the first computation's loop that executes most operations."""
        operations = self.computations[self.entry].values()
        loops = [operation.called[0] for operation in operations if operation.kind == "while"]
        return max(loops, key=lambda name: sum(1 for _ in self.executed(name)))

    def collectives(self) -> Iterator[Operation]:
        """Yields each operation between devices, without "-start" in its kind."""
        for computation in self.computations.values():
            for operation in computation.values():
                kind = operation.kind.removesuffix("-start")
                if kind in _COLLECTIVES:
                    yield operation._replace(kind=kind, result=_without_operands(operation))

    def _traffic(
        self, operation: Operation, computation: Computation, size: Callable[[str], int]
    ) -> int:
        if operation.kind == "copy-start":  # its result holds source and destination
            return size(operation.layout)
        if operation.kind == "slice-start":  # its result: source, destination, a semaphore
            source, *_, destination, _ = arrays_of(operation.layout)
            part = bytes_in_memory(destination, everywhere=True)
            return sum(part for end in (source, destination) if size(end))
        read = [
            size(computation[name].layout) for name in operation.operands if name in computation
        ]
        written = size(operation.layout)
        if operation.kind == "fusion":
            inside = self.computations[operation.called[0]]
            for name, parameter in inside.items():
                if parameter.kind != "parameter":
                    continue
                number = int(parameter.operands[0])
                uses = [use for use in inside.values() if name in use.operands]
                slices = [use for use in uses if use.kind in ("slice", "dynamic-slice")]
                updates = [use for use in uses if use.kind == "dynamic-update-slice"]
                # A slice, or an update of a slice, moves only this part of the array.
                if len(slices) + len(updates) == len(uses) and read[number]:
                    parts = [size(inside[update.operands[1]].layout) for update in updates]
                    written += sum(parts) - (read[number] if updates else 0)
                    read[number] = sum(size(part.layout) for part in slices)
        return sum(read) + written


def _without_operands(operation: Operation) -> str:
    """Returns the type of what a collective gives; that of some starts holds the operands, too."""
    if operation.kind not in _WITH_OPERANDS:
        return operation.result
    number = len(operation.operands)
    return ", ".join(arrays_of(operation.result)[number : 2 * number])


def _operation(result: str, kind: str, operands: str, attributes: str) -> Operation:
    names = re.findall(r"%([\w.-]+)", operands) or [operands]
    source = re.search(r'op_name="([^"]*)"', attributes)
    called = ", ".join(several or one for several, one in _CALLED.findall(attributes))
    cycles = _CYCLES.search(attributes)
    return Operation(
        kind,
        re.sub(r"\{[^}]*\}", "", result),
        result,
        tuple(names),
        tuple(re.findall(r"[\w.-]+", called)),
        source[1] if source else "",
        int(cycles[1]) if cycles else 0,
    )
