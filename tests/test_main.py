"""The command line reports wrong settings in one short message, before it creates any file."""

import subprocess
import sys
from pathlib import Path

import pytest

from dnw_jax.config.schema import EDGES
from dnw_jax.main import main

ROOT = Path(__file__).parent.parent
DIGITS = f"--config={ROOT / 'configs' / 'digits.py'}"
BEGINNING = "starts from the beginning"


def error_of(capsys: pytest.CaptureFixture[str], workdir: Path, *arguments: str) -> str:
    """Returns the message of a command that must end with exit code 2 and create no file."""
    assert main([*arguments, f"--workdir={workdir}"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert "Traceback" not in output.err
    assert len(output.err.splitlines()) < 24  # one screen
    assert not workdir.exists()
    return output.err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.wiring=dense", "'dense': must be one of static, discrete, continuous"),
        ("model.edges=dwn", "'dwn': must be one of " + ", ".join(EDGES)),
        ("model.sparsity=1.5", "1.5: must be a number in [0, 1)"),
        ("model.sparsity=-0.5", "-0.5: must be a number in [0, 1)"),
        ("batch_size=0", "0: must be an integer >= 1"),
        ("num_epochs=-1", "-1: must be an integer >= 1"),
        ("model.sparsty=0.5", "'0.5': no such field; did you mean model.sparsity?"),
    ],
)
@pytest.mark.parametrize("separator", ["=", " "], ids=["equals", "space"])
def test_invalid_fields(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    separator: str,
    override: str,
    expected: str,
) -> None:
    field, _, text = override.partition("=")
    words = f"--config.{field}{separator}{text}".split()
    message = error_of(capsys, tmp_path / "run", DIGITS, *words)
    assert message.splitlines()[1:] == [f"  {field} = {expected}"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (f"{DIGITS}:wirring=static", "takes: wiring: str = 'static', edges: str = 'dnw'"),
        (f"{DIGITS}:wiring=dense", "model.wiring = 'dense': must be one of static"),
        (f"--config={ROOT / 'configs' / 'digit.py'}", "configs/digits.py"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_invalid_config_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: str, config: str, expected: str
) -> None:
    assert expected in error_of(capsys, tmp_path / "run", f"--mode={mode}", config)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([DIGITS], "--workdir"),
        (["--workdir=w"], "needs --config"),
        ([DIGITS, "--workdir=w", "--mode=trian"], "'train', 'evaluate'"),
        ([DIGITS, "--workdir=w", "--wrkdir=v"], "--wrkdir=v"),
        ([DIGITS, "--work=w"], "--workdir"),
        ([DIGITS, "--workdir=w", "seed=3"], "seed=3"),
        ([DIGITS, "--workdir=w", "--config.seed"], "--config.seed needs a value"),
        ([DIGITS, "--config.seed", "--workdir=w"], "--config.seed needs a value"),
        ([DIGITS, "--workdir=w", "--step=best"], "--step is for --mode=evaluate"),
    ],
)
def test_wrong_flags(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_of_two_equal_overrides_the_last_one_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = ["--config.seed=-1", "--config.batch_size", "-7", "--config.seed=-2"]
    message = error_of(capsys, tmp_path / "run", *overrides, DIGITS)
    assert "seed = -2" in message
    assert "batch_size = -7" in message


@pytest.mark.parametrize("saved", [None, "checkpoints/8", "seed_3/checkpoints/8"])
def test_an_interrupt_reports_how_to_resume(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, saved: str | None
) -> None:
    path, workdir = tmp_path / "interrupted.py", tmp_path / "run"
    path.write_text("def get_config():\n    raise KeyboardInterrupt\n")
    if saved:
        (workdir / saved).mkdir(parents=True)
        (workdir / saved / "commit_success.txt").touch()
    assert main([f"--config={path}", f"--workdir={workdir}"]) == 130
    error = capsys.readouterr().err
    resumes = f"resumes from the last checkpoint in {workdir}"
    assert error == f"interrupted: the same command {resumes if saved else BEGINNING}\n"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_process_ends_with_code_2_and_one_message(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    ended = run_python(
        "-m", "dnw_jax.main", DIGITS, f"--workdir={workdir}", "--config.model.sparsity", "2"
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[1:] == ["  model.sparsity = 2.0: must be a number in [0, 1)"]
    assert not workdir.exists()


def test_help_shows_the_flags() -> None:
    ended = run_python("-m", "dnw_jax.main", "--help")
    assert ended.returncode == 0
    for flag in ("--config", "--workdir", "--mode", "--config.model.sparsity=0.9"):
        assert flag in ended.stdout


def test_wrong_settings_are_found_without_loading_jax() -> None:
    ended = run_python(
        "-c",
        "import sys; from dnw_jax.main import main; "
        f"code = main([{DIGITS!r}, '--workdir=w', '--config.seed=-1']); "
        "print(code, sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))",
    )
    assert ended.stdout.strip() == "2 []", ended.stderr
