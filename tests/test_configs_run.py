"""Every configuration file, wiring and rule takes a step through `main`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_runs import ROOT, checkpoint_steps, rows, run, unoptimised

from dnw_jax.main import main

FILES = sorted((ROOT / "configs").glob("*.py"))
TFDS = ROOT.parent / "shared" / "data" / "tfds"


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation() -> Iterator[None]:
    with unoptimised():
        yield


def flags(fields: list[str]) -> list[str]:
    return [f"--config.{field}" for field in fields]


def check(workdir: Path, steps: int, num_test: int) -> None:
    """The run in `workdir` took so many steps and left all its parts."""
    assert checkpoint_steps(workdir) == [steps]
    train, test = rows(workdir)
    assert train["step"] == test["step"] == steps
    assert (train["split"], test["split"]) == ("train", "test")
    assert np.isfinite([train["loss"], test["loss"]]).all()
    assert test["num_examples"] == num_test
    assert len(list((workdir / "wiring").glob("*.png"))) == 1


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "digits"], ids=lambda p: p.stem)
def test_every_file_on_synthetic_images(path: Path, tmp_path: Path) -> None:
    fields = ["dataset.name=synthetic", "num_steps=1", "batch_size=8"]
    assert main([f"--config={path}", f"--workdir={tmp_path}", *flags(fields)]) == 0
    check(tmp_path, 1, 200)


def test_digits_on_its_images(tmp_path: Path) -> None:
    config = ROOT / "configs" / "digits.py"
    assert main([f"--config={config}", f"--workdir={tmp_path}", *flags(["num_steps=2"])]) == 0
    check(tmp_path, 2, 360)


@pytest.mark.skipif(not TFDS.is_dir(), reason="needs CIFAR-10 in ../shared/data/tfds")
def test_cifar10_on_its_images(tmp_path: Path) -> None:
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
        ("discrete", "dnw"),
        ("continuous", "random"),
    ],
)
def test_every_wiring_and_rule(tmp_path: Path, wiring: str, edges: str) -> None:
    run(tmp_path, num_steps="1", model__wiring=wiring, model__edges=edges)
    check(tmp_path, 1, 200)
    live = rows(tmp_path, "train")[0]["live_edges/graph"]
    assert live == (576 if edges == "complete" else 288)
