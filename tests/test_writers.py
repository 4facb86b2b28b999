"""A run writes rows, TensorBoard events and pictures; resuming deletes those of later steps."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import rows
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dnw_jax.run.writers import Progress, Writer
from dnw_jax.step.metrics import edge_churn

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def write(workdir: Path, start: int, *steps: int) -> None:
    """Starts at step `start` and writes two rows and a picture at each of `steps`."""
    with Writer(workdir, start) as writer:
        for step in steps:
            writer.scalars(step, step / 16, "train", {"loss": 1 / step, "accuracy": 0.5})
            writer.scalars(step, step / 16, "test", {"loss": 2 / step})
            writer.picture(step, "graph", PICTURE)


def events(workdir: Path) -> Iterator[Event]:
    """Yields all events of all files in order.

    A record of the file format holds a length, the CRC of the length, the event, and its CRC.
    """
    for path in sorted((workdir / "tensorboard").glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_the_fields_of_a_row(tmp_path: Path) -> None:
    write(tmp_path, 0, 4)
    train, test = rows(tmp_path)
    assert train == {"step": 4, "epoch": 0.25, "split": "train", "loss": 0.25, "accuracy": 0.5}
    assert test == {"step": 4, "epoch": 0.25, "split": "test", "loss": 0.5}


def test_rows_and_events_are_on_disk_at_once(tmp_path: Path) -> None:
    with Writer(tmp_path, 0) as writer:
        writer.scalars(1, 0.5, "train", {"loss": 1.0})
        assert rows(tmp_path) == [{"step": 1, "epoch": 0.5, "split": "train", "loss": 1.0}]
        assert [event.step for event in events(tmp_path) if event.summary.value] == [1]


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9])
def test_rows_after_the_start_are_deleted(tmp_path: Path, start: int) -> None:
    write(tmp_path, 0, 1, 2, 4)
    write(tmp_path, start, 10)
    kept = [step for step in (1, 2, 4) if step <= start]
    assert [row["step"] for row in rows(tmp_path)] == [
        n for step in [*kept, 10] for n in [step] * 2
    ]


@pytest.mark.parametrize("length", [1, 10, 40])
def test_an_incomplete_row_is_deleted(tmp_path: Path, length: int) -> None:
    write(tmp_path, 0, 1, 2)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    line = json.dumps({"step": 2, "epoch": 0.1, "split": "train", "loss": 1.25})
    path.write_text(whole + line[:length])
    with Writer(tmp_path, 2):
        pass
    assert path.read_text() == whole


def test_a_row_without_its_line_break_is_kept(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole.removesuffix("\n"))
    with Writer(tmp_path, 2):
        pass
    assert path.read_text() == whole


def test_tensorboard_holds_every_value_and_picture(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2)
    values = [(event.step, value) for event in events(tmp_path) for value in event.summary.value]
    scalars = {(step, v.tag): v.simple_value for step, v in values if v.HasField("simple_value")}
    assert scalars == {
        (1, "train/loss"): 1.0,
        (1, "train/accuracy"): 0.5,
        (1, "test/loss"): 2.0,
        (2, "train/loss"): 0.5,
        (2, "train/accuracy"): 0.5,
        (2, "test/loss"): 1.0,
    }
    pictures = [(step, v.tag, v.image) for step, v in values if v.HasField("image")]
    assert [(step, tag) for step, tag, _ in pictures] == [(1, "wiring/graph"), (2, "wiring/graph")]
    image = pictures[0][2]
    assert (image.height, image.width) == PICTURE.shape[:2]
    (tmp_path / "from_tensorboard.png").write_bytes(image.encoded_image_string)
    np.testing.assert_array_equal(Image.open(tmp_path / "from_tensorboard.png"), PICTURE)


def test_a_resumed_run_purges_later_tensorboard_events(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3)
    write(tmp_path, 2, 3)
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [1, 3]


def test_pictures_are_png_files(tmp_path: Path) -> None:
    write(tmp_path, 0, 7, 123)
    paths = sorted((tmp_path / "wiring").iterdir())
    assert [path.name for path in paths] == ["graph_00000007.png", "graph_00000123.png"]
    np.testing.assert_array_equal(Image.open(paths[0]), PICTURE)


@pytest.mark.parametrize(
    ("before", "now", "live", "replaced"),
    [
        ([[1, 1], [0, 0]], [[1, 1], [0, 0]], 2, 0.0),
        ([[1, 1], [0, 0]], [[1, 0], [1, 0]], 2, 0.5),
        ([[1, 1], [0, 0]], [[0, 0], [1, 1]], 2, 1.0),
        ([[1, 0], [0, 0]], [[1, 1], [1, 1]], 4, 0.75),
        ([[1, 1], [1, 1]], [[1, 0], [0, 0]], 1, 0.0),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]], 0, 0.0),
    ],
)
def test_edge_churn(
    before: list[list[int]], now: list[list[int]], live: int, replaced: float
) -> None:
    counted, share = edge_churn(jnp.array(before, bool), jnp.array(now, bool))
    assert int(counted) == live
    assert float(share) == replaced


def test_without_a_terminal_lines_replace_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, 3, 32) as bar:
        bar.advance(2, "moving")
        bar.log("a log line")
        bar.line("an evaluation")
    output = capsys.readouterr()
    assert output.out == "a log line\nan evaluation\n"
    assert output.err == ""
