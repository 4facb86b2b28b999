"""What a network costs: parameters and multiply-adds that are executed, graph by graph."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flax import nnx

from dnw_jax.deploy.liveness import Live, live_in_blocks, live_in_time
from dnw_jax.deploy.resnet_rows import resnet_rows
from dnw_jax.deploy.row import Row, size_after
from dnw_jax.errors import UserError
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.discrete_time import DiscreteTime
from dnw_jax.graphs.sparse_layer import SparseLayer, SparseLinear
from dnw_jax.graphs.time_graph import TimeGraph
from dnw_jax.models.mobilenet import MobileNetGraphs, MobileNetV1
from dnw_jax.models.resnet import ResNet
from dnw_jax.models.tiny import TinyClassifier

Convention = Literal["executed", "reference"]


@dataclass(frozen=True)
class Profile:
    """What a network costs for one image; prints as a table."""

    rows: tuple[Row, ...]

    @property
    def params(self) -> int:
        """Parameters of the executed parts."""
        return sum(row.params for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(row.macs for row in self.rows)

    def __str__(self) -> str:
        heads = ("part", "nodes", "live nodes", "dead inputs", "live edges", "params", "mult-adds")
        table = [heads, *map(_cells, self.rows)]
        table.append(("total", "", "", "", "", f"{self.params:,}", f"{self.macs:,}"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in table
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _cells(row: Row) -> tuple[str, ...]:
    counts = (row.nodes, row.live_nodes, row.dead_inputs, row.edges, row.params, row.macs)
    return (row.name, *("" if count is None else f"{count:,}" for count in counts))


def profile(
    model: nnx.Module, image_size: int = 224, convention: Convention = "executed"
) -> Profile:
    """Counts parameters and multiply-adds of `model` for one image of `image_size` pixels a side.

    Args:
      model: one of ours.
      image_size: height and width of the images.
      convention: "executed" counts what has to be computed: nodes and edges whose signal reaches an
        output. "reference" counts as the published code does for the paper's Table 2 (and only for
        MobileNetV1-like chains): always for 224 pixels; edges as the fraction that the budget asks
        for, those that point backwards included; every node that has an edge; without norms and
        the linear bias.

    Raises:
      UserError: the model or the convention is not one of these, or they do not go together.
    """
    if convention == "executed":
        return Profile(tuple(_rows(model, image_size)))
    if convention != "reference":
        raise UserError(f"convention is {convention!r}; it must be 'executed' or 'reference'")
    if not isinstance(model, MobileNetGraphs):
        raise UserError(
            "convention is 'reference'; the published code counts MobileNetV1-like chains only, "
            f"and this model is a {type(model).__name__}"
        )
    return Profile(tuple(_reference_rows(model)))


@functools.singledispatch
def _rows(model: nnx.Module, image_size: int) -> Sequence[Row]:
    raise UserError(
        f"model is a {type(model).__name__}; only the models of dnw_jax are counted. What is kept "
        "of another: dnw_jax.wiring(model), or the report of its sparsifier"
    )


@_rows.register
def _(model: TinyClassifier, image_size: int) -> Sequence[Row]:
    half, size = size_after(image_size, 2), size_after(size_after(image_size, 2), 2)
    stem = model.stem
    width = stem.conv.out_features
    num_outputs, num_classes = model.head.in_features, model.head.out_features
    graph_row, live_inputs = _tiny_graph(model, num_outputs, size)
    stem_row = Row(
        "stem",
        # Convolution, norm, single-channel convolution; then 1x1 and norm of the live inputs.
        params=_size(stem.conv.kernel) + 13 * width + (width + 3) * live_inputs,
        macs=_size(stem.conv.kernel) * half**2 + (9 + live_inputs) * width * size**2,
    )
    head = _dense_head("head", num_outputs, num_classes)
    return [stem_row, graph_row, head]


def _tiny_graph(model: TinyClassifier, num_outputs: int, size: int) -> tuple[Row, int]:
    graph = model.graph
    assert isinstance(graph, BlockedGraph | TimeGraph)
    mask = np.array(graph.edges.real_edges())
    num_inputs = model.stem.mix.out_features
    if isinstance(graph, BlockedGraph):
        steps = [live_in_blocks(graph, mask, np.ones(num_outputs, bool))]
        norms = steps[0].nodes
    else:
        if isinstance(graph.dynamics, DiscreteTime):
            steps = live_in_time(mask, num_inputs, num_outputs, graph.dynamics.num_steps)
        else:  # in continuous time: one evaluation of f, of the many that the solver asks for
            steps = [Live(np.any(mask, axis=1), mask)]
        norms = np.any([np.any(step.edges, axis=0) for step in steps], axis=0)
    return _graph_row("graph", steps, norms, num_inputs, size)


def _graph_row(
    name: str, steps: Sequence[Live], norms: np.ndarray, num_inputs: int, size: int
) -> tuple[Row, int]:
    """The row of a graph that runs in `steps`, and how many inputs it listens to."""
    nodes = np.any([step.nodes for step in steps], axis=0)
    edges = np.any([step.edges for step in steps], axis=0)
    live_inputs = int(steps[0].nodes[:num_inputs].sum())
    row = Row(
        name,
        params=int(9 * nodes.sum() + 2 * norms.sum() + edges.sum()),
        macs=int(sum(9 * step.nodes.sum() + step.edges.sum() for step in steps)) * size**2,
        nodes=len(nodes),
        live_nodes=int(nodes.sum()),
        dead_inputs=num_inputs - live_inputs,
        edges=int(edges.sum()),
    )
    return row, live_inputs


@_rows.register
def _(model: MobileNetGraphs, image_size: int) -> Sequence[Row]:
    sizes = _sizes(model, image_size)
    head, features = _head(model)
    rows = [Row("norm", params=2 * int(features.sum()), macs=0), head]
    needed = features
    for index in reversed(range(model.num_graphs)):
        graph: BlockedGraph = getattr(model, f"graph_{index}")
        live = live_in_blocks(graph, np.asarray(graph.edges.real_edges()), needed)
        num_inputs = graph.block_sizes[0]
        row, _ = _graph_row(f"graph_{index}", [live], live.nodes, num_inputs, sizes[index + 1])
        rows.insert(0, row)
        needed = live.nodes[:num_inputs]
    per_output = _size(model.stem.kernel) // model.stem.out_features
    params = per_output * int(needed.sum())
    return [Row("stem", params=params, macs=params * sizes[0] ** 2), *rows]


def _head(model: MobileNetGraphs) -> tuple[Row, np.ndarray]:
    """The last layer, and which features it listens to."""
    if not isinstance(model.head, SparseLinear):
        num_features, num_classes = model.head.in_features, model.head.out_features
        return _dense_head("head", num_features, num_classes), np.ones(num_features, bool)
    mask = np.asarray(model.head.real_edges())
    edges, features = int(mask.sum()), np.any(mask, axis=1)
    row = Row("head", edges, edges, len(mask), int(features.sum()), edges=edges)
    return row, features


@_rows.register
def _(model: MobileNetV1, image_size: int) -> Sequence[Row]:
    size = size_after(image_size, model.stem_stride)
    kernel = _size(model.stem.kernel)
    rows = [Row("stem", kernel + 2 * model.stem.out_features, kernel * size**2)]
    for index in range(13):
        layer = getattr(model, f"layer_{index}")
        size = size_after(size, layer.stride)
        num_in, num_out = layer.mix.in_features, layer.mix.out_features
        weights = 9 * num_in + num_in * num_out
        rows.append(Row(f"layer_{index}", weights + 2 * (num_in + num_out), weights * size**2))
    rows.append(_dense_head("head", model.head.in_features, model.head.out_features))
    return rows


_rows.register(ResNet, resnet_rows)


def _reference_rows(model: MobileNetGraphs) -> Sequence[Row]:
    """As the published code's `model_profiling`: fractions of edges are truncated row by row."""
    sizes = [112, 112, 56, 28, 14, 7]  # after the stem and after each graph
    rows = []
    for index in range(model.num_graphs):
        graph: BlockedGraph = getattr(model, f"graph_{index}")
        num_inputs, num_outputs = graph.block_sizes[0], graph.block_sizes[-1]
        mask = np.asarray(graph.edges.real_edges())
        edges = _reference_edges(graph.edges)
        nodes, inputs = (
            int(np.any(mask, axis=1).sum()),
            int(np.any(mask[:num_inputs], axis=1).sum()),
        )
        area = sizes[index + 1] ** 2
        if index == 0:
            per_output = _size(model.stem.kernel) // model.stem.out_features
            rows.append(Row("stem", per_output * inputs, per_output * inputs * sizes[0] ** 2))
        rows.append(
            Row(
                f"graph_{index}",
                # A sum of float32 numbers there, which rounds above 2**24.
                int(np.float32(nodes * 9) + np.float32(edges)),
                int(np.float32(nodes * 9 * area) + np.float32(edges * area)),
                len(mask),
                nodes,
                num_inputs - inputs,
                int(edges),
            )
        )
        outputs = int(np.any(mask[:, -num_outputs:], axis=0).sum())
    pool = Row("average", 0, outputs * sizes[-1] ** 2)
    if isinstance(model.head, SparseLinear):
        edges = int(_reference_edges(model.head))
        return [*rows, pool, Row("head", edges, edges, edges=edges)]
    weights = outputs * model.head.out_features
    return [*rows, pool, Row("head", weights, weights)]


def _reference_edges(edges: SparseLayer) -> float:
    return edges.weights.size * (1 - edges.sparsity)


def _sizes(model: MobileNetGraphs, image_size: int) -> list[int]:
    """Height and width after the stem and after each graph."""
    sizes = [size_after(image_size, model.stem_stride)]
    for index in range(model.num_graphs):
        sizes.append(size_after(sizes[-1], getattr(model, f"graph_{index}").stride))
    return sizes


def _dense_head(name: str, num_in: int, num_out: int) -> Row:
    return Row(name, params=num_in * num_out + num_out, macs=num_in * num_out)


def _size(variable: nnx.Variable) -> int:
    return variable[...].size
