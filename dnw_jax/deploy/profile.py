"""What a network costs: parameters and multiply-adds that are executed, part by part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool

from dnw_jax.deploy.liveness import Live, liveness, with_edges
from dnw_jax.deploy.network import Network, Wiring, lower
from dnw_jax.deploy.operations import Norm, Operation
from dnw_jax.deploy.products import Convolution, Depthwise, Edges, Product
from dnw_jax.deploy.table import aligned
from dnw_jax.errors import UserError

if TYPE_CHECKING:
    from flax import nnx

Convention = Literal["executed", "reference"]

# Height and width of the planes that each graph of a chain leaves, of images of 224 pixels.
# The stem leaves planes of the first size.
_REFERENCE_SIZES = {"graph_0": 112, "graph_1": 56, "graph_2": 28, "graph_3": 14, "graph_4": 7}


@dataclass(frozen=True)
class Row:
    """What one part of a network costs.

    Attributes:
      name: the part, named as in the model.
      params: numbers that the executed operations need, biases and norms included.
      macs: multiply-adds for one image; norms and averages are not counted.
      nodes, live_nodes: nodes that can fire, and nodes whose signal reaches an output. In a sparse
        convolution or linear layer the input channels are the nodes.
      dead_inputs: inputs of a graph or sparse convolution whose signal reaches no output.
      edges: edges that carry signal to an output.
    """

    name: str
    params: int
    macs: int
    nodes: int | None = None
    live_nodes: int | None = None
    dead_inputs: int | None = None
    edges: int | None = None


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
        lines = aligned(table)
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _cells(row: Row) -> tuple[str, ...]:
    counts = (row.nodes, row.live_nodes, row.dead_inputs, row.edges, row.params, row.macs)
    return (row.name, *("" if count is None else f"{count:,}" for count in counts))


def profile(
    model: "nnx.Module | Network", image_size: int = 224, convention: Convention = "executed"
) -> Profile:
    """Counts parameters and multiply-adds for one image.

    Args:
      model: a model of this package, or a network that was lowered already.
      image_size: height and width of the images in pixels. A lowered network has its own.
      convention: "executed" counts what has to be computed: the nodes and edges whose signal
        reaches an output; of a graph in continuous time one evaluation of its field. "reference"
        counts as the published code does for the paper's Table 2, for MobileNetV1-like chains
        only: always for 224 pixels; the share of edges that the budget asks for, edges that point
        backwards included; every node that has an edge; without norms and the linear bias.

    Raises:
      UserError: the model is not one of this package, the image size is not an integer of at
        least 1, the convention is unknown, or the model is not one that the convention "reference"
        counts.
    """
    if convention not in ("executed", "reference"):
        raise UserError(f"convention is {convention!r}; it must be 'executed' or 'reference'")
    network = model if isinstance(model, Network) else lower(model, image_size)
    if convention == "executed":
        return Profile(tuple(_executed_rows(network)))
    graphs = [part for part in network.wirings if part != "head"]
    if graphs != list(_REFERENCE_SIZES):
        raise UserError(
            "convention is 'reference'; the published code counts MobileNetV1-like chains only, of "
            f"{len(_REFERENCE_SIZES)} graphs; this model is a {network.model}, number of graphs: "
            f"{len(graphs)}. Count it by the convention 'executed'"
        )
    return Profile(tuple(_reference_rows(network)))


def _executed_rows(network: Network) -> Iterator[Row]:
    """Yields a row for each part that has parameters."""
    live = liveness(network)
    for part, operations in network.parts.items():
        if any(isinstance(operation, Product | Depthwise | Norm) for operation in operations):
            yield _executed_row(part, operations, network, live)


def _executed_row(part: str, operations: Sequence[Operation], network: Network, live: Live) -> Row:
    macs = sum(_macs(op, live) * network.sizes[op.output].area for op in operations)
    if part in network.wirings:
        params, edges = _graph_params(network.wirings[part], operations, live)
        inputs = live.channels[operations[0].inputs[0]]
        nodes = with_edges(edges)
    else:
        params = sum(_params(operation, live) for operation in operations)
        sparse = [op.output for op in operations if isinstance(op, Product) and op.mask is not None]
        if not sparse:
            return Row(part, params, macs)
        edges = live.edges[sparse[0]]
        inputs = nodes = with_edges(edges)
    # The table leaves the dead inputs of a sparse linear layer out.
    is_linear = all(not isinstance(op, Convolution | Depthwise) for op in operations)
    return Row(
        part,
        params,
        macs,
        nodes=len(nodes),
        live_nodes=int(nodes.sum()),
        dead_inputs=None if is_linear else int((~inputs).sum()),
        edges=int(edges.sum()),
    )


def _macs(operation: Operation, live: Live) -> int:
    """Returns the multiply-adds for each pixel of the output."""
    match operation:
        case Product():
            return int(live.edges[operation.output].sum())
        case Depthwise():
            return 9 * int(live.channels[operation.output].sum())
    return 0


def _params(operation: Operation, live: Live) -> int:
    """Returns how many of an operation's numbers are needed."""
    num_channels = int(live.channels[operation.output].sum())
    match operation:
        case Product() | Depthwise():
            biases = 0 if operation.bias is None else num_channels
            return _macs(operation, live) + biases
        case Norm():
            return 2 * num_channels
    return 0


def _graph_params(
    wiring: Wiring, operations: Sequence[Operation], live: Live
) -> tuple[int, Bool[np.ndarray, "sources targets"]]:
    """Returns how many numbers a graph needs, and its live edges by node.

    The steps of a graph in time share their numbers. A number that several steps need counts once.
    """
    num_nodes = wiring.targets.stop
    edges = np.zeros((len(wiring.sources), num_nodes), bool)
    kernels, norms = np.zeros(num_nodes, bool), np.zeros(num_nodes, bool)
    for operation in operations:
        if operation.nodes is None:
            continue
        targets = slice(operation.nodes.start, operation.nodes.stop)
        match operation:
            case Edges():
                sources = slice(operation.sources.start, operation.sources.stop)
                edges[sources, targets] |= live.edges[operation.output]
            case Depthwise():
                kernels[targets] |= live.channels[operation.output]
            case Norm():
                norms[targets] |= live.channels[operation.output]
    return int(9 * kernels.sum() + 2 * norms.sum() + edges.sum()), edges


def _reference_rows(network: Network) -> Iterator[Row]:
    """Counts as the published code's `model_profiling`, row by row.

    There the fraction of edges that the budget asks for is truncated in each row.
    """
    for part, size in _REFERENCE_SIZES.items():
        wiring = network.wirings[part]
        area, edges = size**2, _reference_edges(wiring)
        fires = np.any(wiring.mask, axis=1)
        nodes, inputs = int(fires.sum()), int(fires[: wiring.num_inputs].sum())
        if part == "graph_0":
            (stem,) = network.parts["stem"]
            assert isinstance(stem, Convolution)
            weights = inputs * stem.weights[..., 0].size
            yield Row("stem", weights, weights * size**2)
        yield Row(
            part,
            # The published code adds float32 numbers, which are rounded above 2**24.
            int(np.float32(nodes * 9) + np.float32(edges)),
            int(np.float32(nodes * 9 * area) + np.float32(edges * area)),
            nodes=len(fires),
            live_nodes=nodes,
            dead_inputs=wiring.num_inputs - inputs,
            edges=int(edges),
        )
    last, size = list(_REFERENCE_SIZES.items())[-1]
    wiring = network.wirings[last]
    outputs = int(np.any(wiring.mask[:, -wiring.num_outputs :], axis=0).sum())
    yield Row("average", 0, outputs * size**2)
    if "head" in network.wirings:
        edges = int(_reference_edges(network.wirings["head"]))
        yield Row("head", edges, edges, edges=edges)
    else:
        weights = outputs * network.sizes[network.output].channels
        yield Row("head", weights, weights)


def _reference_edges(wiring: Wiring) -> float:
    return wiring.mask.size * (1 - wiring.sparsity)
