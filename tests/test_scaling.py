"""Bytes on each device, and the model of a step's time on many devices."""

import json
from pathlib import Path

import jax
import pytest

from dnw_jax.models import build_model
from dnw_jax.step.state import create_train_state
from experiments.benchmarks import device_bytes, device_programs, scaling
from experiments.benchmarks.device_bytes import arrays_on_device
from experiments.benchmarks.device_cases import CASES, config_of
from experiments.benchmarks.links import SLICES


def test_the_state_is_whole_on_every_device_and_the_batch_is_split() -> None:
    held = list(arrays_on_device("digits", 8, 256))
    (indices,) = (array for array in held if array.num_parts > 1)
    assert indices.bytes_on_device == indices.shape[0] * 256 // 8 * 4
    config = config_of(CASES["digits"], 256)
    state = create_train_state(config, build_model(config), steps_per_epoch=5)
    in_state = sum(array.bytes_on_device for array in held if array.group != "batch")
    assert in_state == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_bytes_of_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    device_bytes.main(["--cases", "imagenet_mbv1", "--devices", "256"])
    printed = capsys.readouterr().out
    assert "imagenet_mbv1, 256 devices, batch_size 4096, bfloat16\n" in printed
    assert f"{2816 * 3072 * 4 / 1e6:.3f} MB  graph_3.edges.weight float32[2816, 3072]" in printed
    assert "batch: 2 arrays, split into 256 parts" in printed


def test_times_of_all_reduces() -> None:
    by_size = {(s.kind, s.num_devices): s for s in SLICES}
    assert by_size["v5e", 1].all_reduce_seconds(1e9, 40) == 0
    # A pod of 51.2 TB/s is published: each of 256 chips sends 200 GB/s, and each byte twice.
    assert by_size["v5e", 256].all_reduce_seconds(1e9, 0) == pytest.approx(2e9 / 200e9)
    assert by_size["v5e", 256].all_reduce_seconds(0, 3) == pytest.approx(3 * 32e-6)
    assert by_size["h200", 8].all_reduce_seconds(1e9, 0) == pytest.approx(2 * 7 / 8 / 450)
    for kind in ("v5e", "h200"):
        waits = [s.all_reduce_seconds(0, 40) for s in SLICES if s.kind == kind]
        assert waits == sorted(waits)


ROW = {
    "case": "imagenet_mbv1",
    "target": "v5e-4",
    "mode": "train",
    "dtype": "bfloat16",
    "batch_per_device": 64,
    "batch_size": 256,
    "compile_cpu_seconds": 1.0,
    "argument_bytes": 3,
    "output_bytes": 2,
    "alias_bytes": 1,
    "temp_bytes": 10**9,
    "generated_code_bytes": 0,
    "flops": 197e12 / 1000,
    "xla_bytes": 1e9,
    "memory_bytes": 819e6 * 20,
    "unpadded_bytes": 819e6 * 10,
    "padded_arrays": [["f32[8,32]{1,0}", 4096, 1024]],
    "cycles": 0,
    "collectives": {"all-reduce": [0, 2 * 10**8]},
}


def test_tables_go_into_a_file(tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    rows.write_text(json.dumps(ROW) + "\n")
    marks = ("<!-- printed: begin -->", "<!-- printed: end -->")
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    scaling.main([f"--rows={rows}", f"--into={page}", "--decodes=1000", "--pipeline=0.5"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    # 20 ms for the memory, and 2 ms for 0.2 GB at 100 GB/s in a pod.
    row = (
        "| 256 x v5e | 64 | 16,384 | 20.0 | - | 2.00 | 0.00 | 91% | 744,727 | 1.7 | 11,636 | 23.3 |"
    )
    assert row in text
    device_programs.main([f"--rows={rows}", "--table", f"--into={page}"])
    text = page.read_text()
    assert (
        "| v5e-4 | 64 | 1 | 1 | 0.197 | 1 | 16.4 | 2.00x | 20 | - | 0 all-reduce 200 MB |" in text
    )
    assert "Most padding on v5e-4: f32[8,32]{1,0} 4.00x." in text


def test_a_file_without_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="2"):
        scaling.main([f"--rows={page}", f"--into={page}"])
    assert "is not a file that holds" in capsys.readouterr().err
