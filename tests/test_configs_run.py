"""Every configuration file, wiring and rule makes a step through `main`."""

from pathlib import Path

import numpy as np
import pytest
from small_runs import ROOT, checkpoint_steps, rows, run

from dnw_jax.main import main

FILES = sorted((ROOT / "configs").glob("*.py"))
TINY = ("cifar10_tiny", "mnist_tiny")
TFDS = ROOT.parent / "shared" / "data" / "tfds"


pytestmark = pytest.mark.usefixtures("quick_compilation")


def flags(fields: list[str]) -> list[str]:
    return [f"--config.{field}" for field in fields]


def check(workdir: Path, steps: int, num_test: int) -> None:
    """Asserts that the run in `workdir` made `steps` steps and wrote all its files."""
    assert [step for step in checkpoint_steps(workdir) if step > 0] == [steps]
    train, test = rows(workdir)
    assert train["step"] == test["step"] == steps
    assert (train["split"], test["split"]) == ("train", "test")
    assert np.isfinite([train["loss"], test["loss"]]).all()
    assert test["num_examples"] == num_test
    # Graphs have pictures, convolutions have none.
    layers = {name.partition("/")[2] for name in train if name.startswith("live_edges/")}
    graphs = {name for name in layers if "graph" in name or name == "head"}
    pictures = {path.stem.rpartition("_")[0] for path in (workdir / "wiring").glob("*.png")}
    assert pictures == graphs


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in TINY else pytest.mark.slow)
        for path in FILES
        if path.stem != "digits"
    ],
)
def test_every_config_file_on_synthetic_images(path: Path, tmp_path: Path) -> None:
    fields = ["dataset.name=synthetic", "num_steps=1", "batch_size=8"]
    if path.stem not in TINY:
        fields += ["model.width=0.0625", "dataset.image_size=16"]
    assert main([f"--config={path}", f"--workdir={tmp_path}", *flags(fields)]) == 0
    check(tmp_path, 1, 200)


def test_digits_on_real_images(tmp_path: Path) -> None:
    config = ROOT / "configs" / "digits.py"
    assert main([f"--config={config}", f"--workdir={tmp_path}", *flags(["num_steps=2"])]) == 0
    check(tmp_path, 2, 360)


@pytest.mark.slow
@pytest.mark.skipif(not TFDS.is_dir(), reason="needs CIFAR-10 in ../shared/data/tfds")
def test_cifar10_on_real_images(tmp_path: Path) -> None:
    config = ROOT / "configs" / "cifar10_tiny.py"
    small = ["model.num_nodes=24", "model.num_inputs=4", "model.num_outputs=8", "model.depth=3"]
    fields = [f"dataset.data_dir={TFDS}", "num_steps=2", "batch_size=16", *small]
    assert main([f"--config={config}", f"--workdir={tmp_path}", *flags(fields)]) == 0
    check(tmp_path, 2, 10_000)


@pytest.mark.parametrize(
    ("wiring", "edges"),
    [
        ("static", "dnw"),
        ("static", "random"),
        ("static", "complete"),
        ("static", "dnw_no_update"),
        ("static", "targeted_dropout"),
        ("static", "targeted_dropout_per_node"),
        ("discrete", "dnw"),
        pytest.param("continuous", "random", marks=pytest.mark.slow),
    ],
)
def test_every_wiring_and_rule(tmp_path: Path, wiring: str, edges: str) -> None:
    run(tmp_path, num_steps="1", model__wiring=wiring, model__edges=edges)
    check(tmp_path, 1, 200)
    live = rows(tmp_path, "train")[0]["live_edges/graph"]
    assert live == (576 if edges == "complete" else 288)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edges", "small"), [("dnw", "true"), ("random", "false"), ("targeted_dropout", "true")]
)
def test_a_chain_of_graphs_with_every_kind_of_rule(tmp_path: Path, edges: str, small: str) -> None:
    config = ROOT / "configs" / "imagenet_mbv1.py"
    fields = ["dataset.name=synthetic", "dataset.image_size=16", "num_steps=2", "batch_size=8"]
    fields += ["model.width=0.0625", f"model.edges={edges}", f"model.small={small}"]
    assert main([f"--config={config}", f"--workdir={tmp_path}", *flags(fields)]) == 0
    check(tmp_path, 2, 200)
    live = {k: v for k, v in rows(tmp_path, "train")[0].items() if k.startswith("live_edges/")}
    assert len(live) == 5 + (small == "true")
    assert live["live_edges/graph_3"] == 192 * 176 - int(192 * 176 * 0.9915625)
