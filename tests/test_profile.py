"""What a network costs: counts by hand on small networks."""

from pathlib import Path

import jax
import pytest
from flax import nnx

import dnw_jax
from dnw_jax.deploy.network import lower
from dnw_jax.edges import RULES
from dnw_jax.models.mobilenet import MobileNetGraphs, Stage

CONFIGS = Path(__file__).parent.parent / "configs"

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_dense_network_is_counted_whole() -> None:
    config = dnw_jax.load_config(f"{CONFIGS}/cifar10_mobilenet.py:width=0.25")
    model = dnw_jax.build_model(config)
    report = dnw_jax.profile(model, image_size=32)
    assert report.params == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # By hand: the stem, the 3x3 and the 1x1 convolution of a layer, the head.
    assert report.rows[0].macs == 27 * 8 * 32**2
    assert report.rows[2].macs == (9 * 16 + 16 * 32) * 16**2
    assert report.rows[-1].macs == 256 * 10
    assert report.macs == sum(row.macs for row in report.rows)


@pytest.mark.slow
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


def test_a_lowered_network_is_counted_at_its_size() -> None:
    config = dnw_jax.load_config(f"{CONFIGS}/cifar10_mobilenet.py:width=0.25")
    model = dnw_jax.build_model(config)
    assert dnw_jax.profile(lower(model, 20)) == dnw_jax.profile(model, 20)


def chain_of_two_graphs() -> nnx.Module:
    stages = [Stage(4, 6, 1, 1), Stage(6, 6, 2, 2)]
    return MobileNetGraphs(
        3, 5, 32, 0.5, RULES["complete"], small=False, stages=stages, rngs=nnx.Rngs(0)
    )


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
    with pytest.raises(dnw_jax.UserError, match="of 5 graphs"):
        dnw_jax.profile(chain_of_two_graphs(), 32, "reference")
    with pytest.raises(dnw_jax.UserError, match="convention is 'paper'"):
        dnw_jax.profile(model, convention="paper")
    with pytest.raises(dnw_jax.UserError, match="model is a Linear"):
        dnw_jax.profile(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
