"""Parses the text of a compiled program into operations and the bytes that they move."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\(([^)]*)\)(.*)$")
_CALLED = re.compile(r"(calls|body|to_apply|true_computation|branch_computations)=\{?%?([\w.-]+)")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
CONTROL_FLOW = ("while", "conditional", "call")
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all")


class Operation(NamedTuple):
    """One line of a program.

    Attributes:
      kind: HLO's opcode.
      result: the type of the result, without the layout.
      operands: names of the operands; for a parameter, the number of the parameter.
      called: the computation that it executes (a loop: the body; branches: the first one), or "".
      source: the path in the traced code.
    """

    kind: str
    result: str
    operands: tuple[str, ...]
    called: str
    source: str


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

    def executed(self, name: str | None = None) -> Iterator[tuple[Operation, int]]:
        """Yields each operation that takes time, with the bytes that it reads and writes.

        Each loop counts once.
        """
        computation = self.computations[name or self.entry]
        for operation in computation.values():
            if operation.kind in CONTROL_FLOW:
                yield from self.executed(operation.called)
            elif operation.kind not in _FREE:
                yield operation, self._traffic(operation, computation)

    def _traffic(self, operation: Operation, computation: Computation) -> int:
        read = [
            num_bytes(computation[name].result)
            for name in operation.operands
            if name in computation
        ]
        written = num_bytes(operation.result)
        if operation.kind == "fusion":
            inside = self.computations[operation.called]
            for name, parameter in inside.items():
                if parameter.kind != "parameter":
                    continue
                uses = [use for use in inside.values() if name in use.operands]
                slices = [use for use in uses if use.kind in ("slice", "dynamic-slice")]
                updates = [use for use in uses if use.kind == "dynamic-update-slice"]
                # A slice, or an update of a slice, moves only this part of the array.
                if len(slices) + len(updates) == len(uses):
                    number = int(parameter.operands[0])
                    parts = [num_bytes(inside[update.operands[1]].result) for update in updates]
                    written += sum(parts) - (read[number] if updates else 0)
                    read[number] = sum(num_bytes(part.result) for part in slices)
        return sum(read) + written


def _operation(result: str, kind: str, operands: str, attributes: str) -> Operation:
    names = re.findall(r"%([\w.-]+)", operands) or [operands]
    called, source = _CALLED.search(attributes), re.search(r'op_name="([^"]*)"', attributes)
    return Operation(
        kind,
        re.sub(r"\{[^}]*\}", "", result),
        tuple(names),
        called[2] if called else "",
        source[1] if source else "",
    )


def num_bytes(result: str) -> int:
    """Returns the bytes of all arrays of a result type."""
    return sum(
        math.prod(map(int, filter(None, shape.split(","))))
        * (1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8)
        for dtype, shape in _ARRAY.findall(result)
    )
