"""The programs in README and the guides run, and print the lines that are shown there."""

import re
from pathlib import Path

import pytest

from dnw_jax.config import schema
from dnw_jax.main import main

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


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=str)
def test_fields_flags_and_links_of_a_page_exist(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text()
    fields = {name for model in schema.MODELS for name in schema.fields_of(model)}
    assert set(re.findall(r"--config\.([\w.]+)=", text)) <= fields
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    for command in re.findall(r"-m dnw_jax\.main((?:\\\n|.)*)", text):
        assert set(re.findall(r" (--[\w-]+)", command)) <= flags, command
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / link).exists(), link
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
