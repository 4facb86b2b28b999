"""Reads the text of a compiled program: its operations, and the bytes that they move."""

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
      result: its type, without the layout.
      operands: their names; of a parameter its number.
      called: the computation that it executes (of a loop the body, of branches the first), or "".
      source: the path in the traced code.
    """

    kind: str
    result: str
    operands: tuple[str, ...]
    called: str
    source: str


Computation = dict[str, Operation]  # by name


class Program(NamedTuple):
    """The computations of a program by name, and which one it begins with."""

    computations: dict[str, Computation]
    entry: str

    @classmethod
    def of(cls, hlo: str) -> "Program":
        """Of what `jax.stages.Compiled.as_text` gives."""
        computations, entry = dict[str, Computation](), ""
        for line in hlo.splitlines():
            if start := _COMPUTATION.match(line):
                computations[start[2]] = here = {}
                entry = start[2] if start[1] else entry
            elif found := _INSTRUCTION.match(line):
                here[found[1]] = _operation(*found.groups()[1:])
        return cls(computations, entry)

    def executed(self, computation: str | None = None) -> Iterator[tuple[Operation, int]]:
        """What takes time, each with the bytes that it reads and writes; loops once."""
        here = self.computations[computation or self.entry]
        for operation in here.values():
            if operation.kind in CONTROL_FLOW:
                yield from self.executed(operation.called)
            elif operation.kind not in _FREE:
                yield operation, self._traffic(operation, here)

    def _traffic(self, operation: Operation, here: Computation) -> int:
        read = [num_bytes(here[name].result) for name in operation.operands if name in here]
        written = num_bytes(operation.result)
        if operation.kind == "fusion":
            inside = self.computations[operation.called]
            for name, parameter in inside.items():
                if parameter.kind != "parameter":
                    continue
                uses = [each for each in inside.values() if name in each.operands]
                cut = [each for each in uses if each.kind in ("slice", "dynamic-slice")]
                put = [each for each in uses if each.kind == "dynamic-update-slice"]
                # Of what is cut out of an array, or put into it, only that part is moved.
                if len(cut) + len(put) == len(uses):
                    number = int(parameter.operands[0])
                    parts = [num_bytes(inside[each.operands[1]].result) for each in put]
                    written += sum(parts) - (read[number] if put else 0)
                    read[number] = sum(num_bytes(each.result) for each in cut)
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
    """Of all arrays of a type."""
    return sum(
        math.prod(map(int, filter(None, shape.split(","))))
        * (1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8)
        for dtype, shape in _ARRAY.findall(result)
    )
