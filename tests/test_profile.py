"""What a network costs: counts by hand, on networks small enough, and against what is computed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dnw_jax
from dnw_jax.deploy.liveness import live_in_blocks, live_in_time
from dnw_jax.edges import RULES
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.nodes import BatchNormNodes, Nodes

CONFIGS = Path(__file__).parent.parent / "configs"


def blocked(sizes: list[int], inner_outputs: int | None) -> BlockedGraph:
    rngs = nnx.Rngs(0)
    make = BatchNormNodes if inner_outputs is None else Nodes
    nodes = make(sum(sizes), rngs=rngs)
    return BlockedGraph(sizes, nodes, 0.6, RULES["dnw"], inner_outputs=inner_outputs, rngs=rngs)


@pytest.mark.parametrize("inner_outputs", [None, 2])
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, False)])
def test_dead_parts_do_not_matter(inner_outputs: int | None, needed: tuple[bool, bool]) -> None:
    """Without the dead edges every needed output is the same; without any live one it is not."""
    sizes = [3, 4, 3, 2]
    graph = blocked(sizes, inner_outputs)
    mask = np.asarray(graph.edges.real_edges())
    weights = np.where(mask, np.asarray(graph.edges.weight[...]), 0)
    live = live_in_blocks(graph, mask, np.array(needed))
    assert np.all(mask | ~live.edges)
    np.testing.assert_array_equal(live.nodes, live.edges.any(1))
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)

    def outputs(kept: np.ndarray) -> np.ndarray:
        graph.edges.rule = RULES["complete"]
        graph.edges.weight[...] = jnp.asarray(np.where(kept, weights, 0))
        return np.asarray(graph(inputs, train=True))[..., np.array(needed)]

    whole = outputs(mask)
    np.testing.assert_allclose(outputs(live.edges), whole, atol=1e-5)
    for edge in np.argwhere(live.edges)[::3]:
        kept = live.edges.copy()
        kept[tuple(edge)] = False
        assert np.abs(outputs(kept) - whole).max() > 1e-6


def test_liveness_in_time() -> None:
    # 0 (input) -> 1 -> 3 (output), 2 -> 3, 3 -> 1; two steps.
    mask = np.zeros((4, 4), bool)
    for edge in ((0, 1), (1, 3), (2, 3), (3, 1)):
        mask[edge] = True
    first, second = live_in_time(mask, num_inputs=1, num_outputs=1, num_steps=2)
    assert np.argwhere(second.edges).tolist() == [[1, 3], [2, 3]]
    assert np.argwhere(first.edges).tolist() == [[0, 1]]  # all but the input are still zero
    np.testing.assert_array_equal(first.nodes, [True, False, False, False])


def test_a_dense_network_is_counted_whole() -> None:
    config = dnw_jax.load_config(f"{CONFIGS}/cifar10_mobilenet.py:width=0.25")
    model = dnw_jax.build_model(config)
    report = dnw_jax.profile(model, image_size=32)
    assert report.params == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # By hand: stem, then 9 and the 1x1 of each layer, the head.
    assert report.rows[0].macs == 27 * 8 * 32**2
    assert report.rows[2].macs == (9 * 16 + 16 * 32) * 16**2
    assert report.rows[-1].macs == 256 * 10
    assert report.macs == sum(row.macs for row in report.rows)


@pytest.mark.parametrize("edges", ["complete", "dnw"])
def test_a_chain_of_graphs(edges: str) -> None:
    config = dnw_jax.load_config(
        f"{CONFIGS}/cifar10_mbv1.py:edges={edges}", {"model.width": "0.125"}
    )
    model = dnw_jax.build_model(config)
    report = dnw_jax.profile(model, image_size=32)
    assert [row.name for row in report.rows] == [
        "stem",
        *(f"graph_{index}" for index in range(5)),
        "norm",
        "head",
    ]
    if edges == "dnw":
        dense = dnw_jax.profile(
            dnw_jax.build_model(
                dnw_jax.load_config(
                    f"{CONFIGS}/cifar10_mbv1.py:edges=complete", {"model.width": "0.125"}
                )
            ),
            image_size=32,
        )
        assert report.macs < 0.5 * dense.macs
        assert all(
            row.edges <= whole.edges
            for row, whole in zip(report.rows, dense.rows, strict=False)
            if row.edges
        )
        return
    # Every edge that points forward, and every node.
    graph = report.rows[2]
    assert (graph.nodes, graph.live_nodes, graph.dead_inputs) == (24, 24, 0)
    assert graph.edges == 8 * 32 + 16 * 16
    assert graph.params == 24 * (9 + 2) + graph.edges
    assert graph.macs == (24 * 9 + graph.edges) * 16**2


@pytest.mark.parametrize("wiring", ["static", "discrete", "continuous"])
def test_tiny_classifiers(wiring: str) -> None:
    config = dnw_jax.load_config(
        f"{CONFIGS}/cifar10_tiny.py:wiring={wiring},edges=complete",
        {
            "model.num_nodes": "12",
            "model.num_inputs": "4",
            "model.num_outputs": "2",
            "model.depth": "3",
        },
    )
    stem, graph, head = dnw_jax.profile(dnw_jax.build_model(config), image_size=32).rows
    # Convolution 3 -> 2 and norm; single-channel convolution and bias; 1x1 2 -> 4, bias and norm.
    assert stem.params == 54 + 2 + 4 + 18 + 2 + 8 + 4 + 8
    assert stem.macs == 54 * 16**2 + (18 + 8) * 8**2
    assert head.params == 2 * 10 + 10
    steps = {
        # Blocks 4, 4, 4; the last feeds its last two nodes, themselves included.
        "static": [(12, 4 * 8 + 4 * 4 + 4 * 2)],
        "discrete": [(4, 4 * 12), (12, 144), (12, 24)],
        "continuous": [(12, 144)],
    }[wiring]
    assert graph.macs == sum(9 * nodes + edges for nodes, edges in steps) * 8**2
    assert graph.live_nodes == 12


def test_the_table_and_what_cannot_be_counted() -> None:
    config = dnw_jax.load_config(f"{CONFIGS}/cifar10_mobilenet.py:width=0.25")
    model = dnw_jax.build_model(config)
    report = dnw_jax.profile(model, image_size=32)
    lines = str(report).splitlines()
    assert lines[0].split()[:2] == ["part", "nodes"]
    assert lines[-1].split() == ["total", f"{report.params:,}", f"{report.macs:,}"]
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(dnw_jax.UserError, match="MobileNetV1-like chains only"):
        dnw_jax.profile(model, convention="reference")
    with pytest.raises(dnw_jax.UserError, match="convention is 'paper'"):
        dnw_jax.profile(model, convention="paper")
    with pytest.raises(dnw_jax.UserError, match="model is a Linear"):
        dnw_jax.profile(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
