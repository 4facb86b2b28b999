"""Several processes train one run: results, stops, errors.

`python -m experiments.hosts` does the same with larger models and more repetitions.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ROOT

from dnw_jax.errors import UserError
from dnw_jax.main import main
from dnw_jax.platform.join import Processes
from experiments.hosts import faults, saved
from experiments.hosts.cases import CASES, SMALL, flags
from experiments.hosts.equality import STEPS, TOLERANCE, compare, elastic
from experiments.hosts.launch import Run, complete, free_port

DATA_DIR = ROOT.parent / "shared" / "data" / "tfds"
needs_photographs = pytest.mark.skipif(
    not (DATA_DIR / "imagenet2012").is_dir(), reason="needs the ImageNet sample in ../shared"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for workdirs that several tests read."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(autouse=True)
def _quick(quick_compilation: None) -> None:
    """All runs of this file compile quickly."""
    del quick_compilation


@pytest.mark.slow
def test_two_hosts_of_two_devices_give_the_results_of_one_device(folder: Path) -> None:
    (comparison,) = compare(SMALL, Path(), folder, [(2, 2)])
    assert comparison.difference <= TOLERANCE
    assert comparison.num_tested == (200, 200)
    assert comparison.correct[0] == comparison.correct[1]
    assert comparison.logged == [5, 10, 15, 20]


@pytest.mark.slow
def test_a_run_moves_to_other_hosts_and_devices(folder: Path) -> None:
    result = elastic(SMALL, Path(), folder)
    assert result.difference <= TOLERANCE
    assert result.repeated


@pytest.mark.slow
def test_two_seeds_on_two_hosts_and_their_evaluation(tmp_path: Path) -> None:
    """Each seed ends as on one host; evaluation counts each of the examples once."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    complete(flags(SMALL, together, num_seeds="2"), hosts=2)
    complete(flags(SMALL, alone, num_seeds="2"))
    for seed in ("seed_0", "seed_1"):
        ours, expected = (saved.arrays(run / seed, STEPS) for run in (together, alone))
        assert saved.largest_difference(ours, expected) <= TOLERANCE
    assert len(saved.rows(together, "train")) == 4
    # The 200 examples are no multiple of the batch size, nor is that one of the three devices.
    printed = complete([*flags(SMALL, alone, num_seeds="2", batch_size="35"), "--mode=evaluate"], 3)
    assert printed.count("over 200 examples") == 2
    assert saved.rows(alone, "test")[-1]["accuracy"] == pytest.approx(
        saved.rows(together, "test")[-1]["accuracy"]
    )


@pytest.mark.slow
@needs_photographs
def test_photographs_on_two_hosts_and_a_damaged_one_on_the_second(tmp_path: Path) -> None:
    """Both save at the same step and end with code 2; once it is mended the run resumes."""
    case = flags(CASES[-1])
    fault = faults.damaged_data(case, tmp_path / "run", DATA_DIR, tmp_path)
    assert fault.exit_codes == [2, 2]
    assert "stopped because of an error in process 1" in fault.message
    assert fault.steps
    assert fault.resumed


_RARELY = {name: "50" for name in ("checkpoint__every_steps", "log__every_steps")}
LONG = flags(SMALL, num_steps="300", evaluate__every_steps="1000", **_RARELY)


@pytest.mark.slow
def test_sigterm_to_one_process_ends_both_and_the_run_resumes(folder: Path) -> None:
    fault = faults.terminate(LONG, folder / "run", None, host=1)
    assert fault.exit_codes == [143, 143]
    assert fault.resumed


@pytest.mark.slow
@pytest.mark.parametrize("host", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_resumes(folder: Path, host: int) -> None:
    fault = faults.kill(LONG, folder / "run", None, host)
    assert fault.exit_codes[host] == -9
    assert fault.exit_codes[1 - host] not in (None, 0)
    assert fault.resumed


@pytest.mark.slow
def test_a_config_that_one_host_lacks_ends_both(tmp_path: Path) -> None:
    fault = faults.missing_config(flags(SMALL), tmp_path / "run", tmp_path)
    assert fault.exit_codes == [2, 2]
    assert fault.message == "error: stopped because of an error in process 1, which reports it"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hosts_must_share_the_workdir(tmp_path: Path) -> None:
    """A relative workdir in two folders stands for a folder that is not shared."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for host in folders:
        host.mkdir()
    with Run([*flags(SMALL), "--workdir=run"], hosts=2, folders=folders) as run:
        assert run.exit_codes(120) == [2, 2], run.outputs()
        for host in range(2):
            assert "process 1 does not see the file that process 0 wrote" in run.stderr(host)
    assert [list(host.iterdir()) for host in folders] == [[], []]


@pytest.mark.slow
def test_hosts_must_have_the_same_config(tmp_path: Path) -> None:
    """Each host reads its own file of the same name."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for host, batch_size in zip(folders, (32, 64), strict=True):
        host.mkdir()
        text = (ROOT / "configs" / "digits.py").read_text()
        (host / "recipe.py").write_text(f"{text}\n\nget_digits = get_config\n" + _with(batch_size))
    others = [flag for flag in flags(SMALL, tmp_path / "run") if "--config=" not in flag]
    others = [flag for flag in others if "batch_size" not in flag]
    with Run(["--config=recipe.py", *others], hosts=2, folders=folders) as run:
        assert run.exit_codes(120) == [2, 2], run.outputs()
        assert "these differ from process 0: configuration of process 1." in run.stderr(1)
    assert not (tmp_path / "run").exists()


def _with(batch_size: int) -> str:
    return f"""
def get_config():
    config = get_digits()
    config.batch_size = {batch_size}
    return config
"""


GIVEN = "--coordinator_address, --num_processes and --process_id"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_processes=2"], f"{GIVEN} need --multihost"),
        (["--multihost", "--num_processes=2"], f"{GIVEN} belong together"),
        (
            ["--multihost", "--coordinator_address=a", "--num_processes=2", "--process_id=0"],
            "--coordinator_address is a; it must be HOST:PORT of process 0",
        ),
        (
            ["--multihost", "--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id is 2; with --num_processes=2 it must be in 0..1",
        ),
        (
            ["--multihost", "--coordinator_address=a:1", "--num_processes=0", "--process_id=0"],
            "--num_processes is 0; it must be at least 1",
        ),
    ],
)
def test_wrong_flags_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*flags(SMALL, tmp_path), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_mpi_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    with pytest.raises(UserError, match="pip install mpi4py"):
        Processes(multihost=True).join()


PROGRAM = """
import sys
from dnw_jax.platform import join
join.JOIN_SECONDS = 2
sys.exit(join.Processes(True, "localhost:{port}", 2, {process}).join())
"""


@pytest.mark.parametrize(("process", "awaited"), [(0, "all 2 processes"), (1, "process 0")])
def test_who_waits_in_vain_says_for_what(process: int, awaited: str) -> None:
    ended = run_python(PROGRAM.format(port=free_port(), process=process))
    assert ended.returncode == 2
    assert f"error: gave up after 2 s: process {process} of 2 waiting for {awaited}" in ended.stderr
    assert "Check failure" not in ended.stderr


def test_what_jax_cannot_find_must_be_given() -> None:
    ended = run_python(
        "from dnw_jax.platform.join import Processes\nProcesses(multihost=True).join()"
    )
    assert "UserError: --multihost: JAX finds no Cloud TPU" in ended.stderr
    assert ended.returncode == 1


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in another process."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
