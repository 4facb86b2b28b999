"""The programs in README and the guides run, and print the lines that are shown there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "sparse_training.md"


def blocks(path: Path, language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in fences if name == language]


@pytest.mark.slow
def test_the_guide_to_sparse_training(capsys: pytest.CaptureFixture[str]) -> None:
    """With 3 training steps instead of 600: all but the accuracies must be as shown."""
    programs = "\n".join(blocks(GUIDE, "python"))
    assert programs.count("steps=600") == 1
    exec(compile(programs.replace("steps=600", "steps=3"), str(GUIDE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    shown = [line for text in blocks(GUIDE, "") for line in text.splitlines() if line.strip()]
    trained = re.compile(r"\d+\.\d%( of the test images)?$")
    assert len(shown) > 10
    for line in shown:
        if trained.search(line):  # an accuracy: compare only the words before it
            beginning = trained.sub("", line)
            assert any(text.startswith(beginning) for text in printed), line
        else:
            assert line in printed


def test_the_readme_on_your_own_model() -> None:
    programs = [text for text in blocks(ROOT / "README.md", "python") if "sparsify" in text]
    for program in programs:
        exec(compile(program, "README.md", "exec"), {})
    assert programs
