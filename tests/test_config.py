"""Configurations: files, arguments, overrides, checks, JSON."""

import ast
import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from dnw_jax.config import differing_fields, from_json, load_config, schema, to_json, validate
from dnw_jax.config.schema import EDGES
from dnw_jax.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
DIGITS = str(CONFIGS / "digits.py")


def write(folder: Path, body: str, name: str = "mine.py") -> str:
    """A config file whose `get_config(depth=5, rate=0.1, flip=True, wiring="static")` is `body`."""
    path = folder / name
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(depth=5, rate=0.1, flip=True, wiring='static'):\n"
        "    c = ConfigDict()\n"
        f"    {body}\n"
        "    return c\n"
    )
    return str(path)


@pytest.fixture
def empty(tmp_path: Path) -> str:
    return write(tmp_path, "pass")


# The files in configs/.


ARGUMENTS = {
    "digits.py": {"wiring": ("static", "discrete", "continuous"), "edges": EDGES},
    "mnist_tiny.py": {"wiring": ("static", "discrete", "continuous"), "edges": EDGES},
    "cifar10_tiny.py": {"wiring": ("static", "discrete", "continuous"), "edges": EDGES},
    "cifar10_mbv1.py": {"edges": EDGES, "multiplier": (0.225, 0.5)},
    "cifar10_mobilenet.py": {"width": (0.25, 1.0)},
    "imagenet_mbv1.py": {"edges": EDGES, "multiplier": (0.15, 0.49), "small": (False, True)},
    "imagenet_resnet.py": {
        "arch": ("resnet18", "resnet152"),
        "sparsity": (0.9, 0.1),
        "first_layer": ("sparse", "dense"),
        "edges": EDGES,
    },
    "cifar10_resnet.py": {"arch": ("resnet50",), "edges": EDGES, "width": (0.25, 1.0)},
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_config_file_loads(path: Path) -> None:
    """With every combination of arguments; each argument sets the field of `model`."""
    arguments = ARGUMENTS[path.name]
    for values in itertools.product(*arguments.values()):
        chosen = dict(zip(arguments, values, strict=True))
        texts = ",".join(f"{name}={value}" for name, value in chosen.items())
        config = load_config(f"{path}:{texts}", {"init_from": "runs/complete"})
        if "multiplier" in chosen:
            chosen["sparsity"] = 1 - chosen.pop("multiplier")
        assert {name: config.model[name] for name in chosen} == chosen
        validate(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_config_docstrings_have_command_run_time_and_accuracy(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python -m dnw_jax.main --config=configs/{path.name}" in docstring
    assert "Run time:" in docstring
    assert "Test accuracy:" in docstring


def test_the_recipe_of_the_paper() -> None:
    config = load_config(str(CONFIGS / "cifar10_tiny.py"))
    assert (config.batch_size, config.num_epochs) == (512, 160)
    assert config.optimizer.to_dict() == {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "no_decay": "",
        "nesterov": False,
    }
    assert [share * config.num_epochs for share in config.schedule.milestones] == [80, 120]
    assert (config.schedule.name, config.schedule.factor) == ("multistep", 0.1)
    assert config.model.sparsity == 0.95


# Defaults, then the file, then the overrides.


def test_overrides_precede_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "c.seed = 1; c.batch_size = 64; c.model = ConfigDict({'depth': depth})")
    config = load_config(f"{path}:depth=3", {"seed": "2"})
    assert config.seed == 2
    assert config.batch_size == 64
    assert config.model.depth == 3
    assert config.num_epochs == 160
    assert config.model.solver.name == "dopri5"


def test_the_last_override_of_a_field_counts(empty: str) -> None:
    assert load_config(empty, [("seed", "1"), ("seed", "2")]).seed == 2


def test_a_config_has_every_field_and_is_locked(empty: str) -> None:
    config = load_config(empty)
    for name, field in schema.fields_of("tiny").items():
        assert config[name] == field.default
    with pytest.raises(AttributeError):
        config.model.new_field = 1
    config.batch_size = 8  # existing fields can be set
    validate(config)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("batch_size", "8", 8),
        ("loss.label_smoothing", "0", 0.0),
        ("optimizer.learning_rate", "1e-2", 0.01),
        ("dataset.flip", "false", False),
        ("dataset.flip", "True", True),
        ("dataset.flip", "0", False),
        ("optimizer.nesterov", "1", True),
        ("num_steps", "None", None),
        ("num_steps", "7", 7),
        ("profile_steps", "(3,4)", (3, 4)),
        ("profile_steps", "3,4", (3, 4)),
        ("profile_steps", "none", None),
        ("schedule.milestones", "(3,4.5)", (3.0, 4.5)),
        ("schedule.milestones", "[80, 120]", (80.0, 120.0)),
        ("schedule.milestones", "0.5", (0.5,)),
        ("schedule.milestones", "()", ()),
        ("dataset.data_dir", "../shared/a=b,c", "../shared/a=b,c"),
        ("dataset.data_dir", "12", "12"),
        ("dataset.data_dir", "", ""),
        ("model.edges", "random", "random"),
    ],
)
def test_override_texts_get_the_fields_type(
    empty: str, field: str, text: str, value: object
) -> None:
    got = load_config(empty, {field: text})[field]
    # repr shows the type, also inside a tuple: 1 is not 1.0.
    assert repr(got) == repr(value)


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ("c.optimizer = ConfigDict({'learning_rate': 1})", "optimizer.learning_rate", 1.0),
        ("c.schedule = ConfigDict({'milestones': [1, 2]})", "schedule.milestones", (1.0, 2.0)),
    ],
)
def test_file_values_get_the_fields_type(
    tmp_path: Path, body: str, field: str, value: object
) -> None:
    assert repr(load_config(write(tmp_path, body))[field]) == repr(value)


# Invalid values: the message has the field, its value and what is allowed.

STEPS = "(first, last) with first < last, or None"
MILESTONES = "numbers > 0, each larger than the one before"
BAD = [
    ("model.wiring", "dense", "'dense': must be one of static, discrete, continuous"),
    ("model.edges", "dwn", "'dwn': must be one of " + ", ".join(EDGES)),
    ("model.name", "huge", "'huge': must be one of tiny, mbv1, mobilenet, resnet"),
    ("model.sparsity", "1.0", "1.0: must be a number in [0, 1)"),
    ("model.sparsity", "1", "1.0: must be a number in [0, 1)"),
    ("model.sparsity", "-0.1", "-0.1: must be a number in [0, 1)"),
    ("model.sparsity", "nan", "'nan': must be a number in [0, 1)"),
    ("model.depth", "0", "0: must be an integer >= 1"),
    ("model.solver.name", "rk4", "'rk4': must be one of " + ", ".join(schema.SOLVERS)),
    ("model.solver.rtol", "0", "0.0: must be a number > 0"),
    ("model.solver.step_size", "2", "2.0: must be a number in [0, 1]"),
    ("batch_size", "0", "0: must be an integer >= 1"),
    ("batch_size", "2.5", "2.5: must be an integer >= 1"),
    ("batch_size", "True", "True: must be an integer >= 1"),
    ("batch_size", "many", "'many': must be an integer >= 1"),
    ("batch_size", "", "'': must be an integer >= 1"),
    ("batch_size", "None", "None: must be an integer >= 1"),
    ("num_epochs", "-3", "-3: must be an integer >= 1"),
    ("num_steps", "0", "0: must be an integer >= 1 or None"),
    ("seed", "-1", "-1: must be an integer in [0, 2**32)"),
    ("dtype", "float16", "'float16': must be one of float32, bfloat16"),
    ("profile_steps", "(4,3)", f"(4, 3): must be {STEPS}"),
    ("profile_steps", "5", f"(5,): must be {STEPS}"),
    ("profile_steps", "(1.0,2.0)", f"(1.0, 2.0): must be {STEPS}"),
    (
        "dataset.name",
        "svhn",
        "'svhn': must be one of cifar10, mnist, digits, synthetic, imagenet2012",
    ),
    ("dataset.image_size", "7", "7: must be an integer in [8, 4096]"),
    ("dataset.flip", "yes", "'yes': must be true or false"),
    ("optimizer.learning_rate", "1e999", "inf: must be a number >= 0"),
    ("optimizer.learning_rate", "1" + "0" * 400, "1" + "0" * 400 + ": must be a number >= 0"),
    ("optimizer.learning_rate", "(1,)", "(1,): must be a number >= 0"),
    ("optimizer.momentum", "1", "1.0: must be a number in [0, 1)"),
    (
        "schedule.name",
        "step",
        "'step': must be one of multistep, cosine, linear, exponential, constant",
    ),
    ("schedule.milestones", "(0.75,0.5)", f"(0.75, 0.5): must be {MILESTONES}"),
    ("schedule.milestones", "(0,1)", f"(0.0, 1.0): must be {MILESTONES}"),
    ("schedule.milestones", "(1,1e999)", f"(1.0, inf): must be {MILESTONES}"),
    ("schedule.milestones", "(True,2)", f"(True, 2.0): must be {MILESTONES}"),
    ("schedule.factor", "0", "0.0: must be a number in (0, 1]"),
]


@pytest.mark.parametrize(("field", "text", "problem"), BAD)
def test_invalid_values(empty: str, field: str, text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(empty, {field: text})
    heading, *problems = str(caught.value).splitlines()
    assert empty in heading
    assert problems == [f"  {field} = {problem}"]


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"model.num_nodes": "131"}, ("model.num_nodes = 131", "model.num_inputs = 32")),
        ({"model.num_nodes": "801"}, ("model.wiring = 'static'", "model.num_nodes = 801")),
        ({"model.depth": "1"}, ("model.depth = 1", "at least 2")),
        ({"batch_size": "10", "accumulate_steps": "4"}, ("batch_size = 10", "multiple")),
        ({"dataset.crop_padding": "32"}, ("dataset.crop_padding = 32", "smaller than image_size")),
        (
            {"model.wiring": "continuous", "model.solver.name": "euler"},
            ("model.solver.name = 'euler'", "model.solver.step_size = 0.0"),
        ),
        (
            {"model.wiring": "continuous", "model.solver.step_size": "0.001"},
            ("model.solver.step_size = 0.001", "model.solver.max_steps = 256"),
        ),
    ],
)
def test_settings_that_contradict_each_other(
    empty: str, settings: dict[str, str], fields: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(empty, settings)
    for text in fields:
        assert text in str(caught.value)


def test_only_static_graphs_need_blocks_of_one_size(empty: str) -> None:
    for wiring in ("discrete", "continuous"):
        load_config(empty, {"model.num_nodes": "801", "model.depth": "1", "model.wiring": wiring})


def test_all_nodes_may_be_inputs_and_outputs(empty: str) -> None:
    load_config(empty, {"model.num_nodes": "132", "model.depth": "2"})


def test_an_unknown_model_is_one_problem() -> None:
    with pytest.raises(UserError) as caught:
        load_config(DIGITS, {"model.name": "tinny", "model.sparsity": "0.5"})
    (problem,) = str(caught.value).splitlines()[1:]
    assert problem == "  model.name = 'tinny': must be one of tiny, mbv1, mobilenet, resnet"


def test_one_error_lists_all_problems(tmp_path: Path) -> None:
    path = write(tmp_path, "c.batch_size = 0; c.sede = 1; c.num_epochs = True")
    overrides = {"model.sparsity": "2", "model.num_nodes": "9", "datasett.flip": "true"}
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    lines = str(caught.value).splitlines()
    assert path in lines[0]
    expected = ("sede", "datasett.flip", "batch_size", "num_epochs", "model.sparsity")
    for field in expected:
        assert len([line for line in lines if line.strip().startswith(field + " = ")]) == 1
    assert "at most num_nodes" in str(caught.value)
    assert len(lines) < 20


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("model.sparsty", "did you mean model.sparsity?"),
        ("sparsity", "did you mean model.sparsity?"),
        ("every_steps", "evaluate.every_steps or checkpoint.every_steps or log.every_steps"),
        ("model.solver", "its fields are model.solver.name, model.solver.rtol"),
        ("optimizer.momentum.beta", "did you mean optimizer.momentum"),
        ("zzz", "the fields are"),
        ("", "no such field"),
    ],
)
def test_unknown_fields(empty: str, field: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(empty, {field: "1"})
    assert f"{field} = '1'" in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("c.model = 'tiny'", "model = 'tiny'"),
        ("c.modle = ConfigDict()", "modle = {}"),
        ("c.seed = ConfigDict({'a': 1})", "seed.a = 1"),
    ],
)
def test_unknown_fields_of_a_file(tmp_path: Path, body: str, name: str) -> None:
    with pytest.raises(UserError, match="field") as caught:
        load_config(write(tmp_path, body))
    assert name in str(caught.value)


def test_validate_reports_missing_and_changed_fields(empty: str) -> None:
    config = ConfigDict({"seed": 0, "model": {"name": "tiny"}})
    with pytest.raises(UserError) as caught:
        validate(config)
    assert "batch_size = missing: must be an integer >= 1" in str(caught.value)
    assert " seed = " not in str(caught.value)
    config = load_config(empty)
    config.model.sparsity = math.inf
    with pytest.raises(UserError, match=r"model\.sparsity = inf"):
        validate(config)


# Arguments of get_config.


def test_arguments_get_the_type_of_their_default(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "assert (depth, rate, flip, wiring) == (3, 1.0, False, 'discrete') "
        "and type(rate) is float and flip is False",
    )
    load_config(f"{path}:depth=3,rate=1,flip=false,wiring=discrete")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("width=2", "width=2: no such argument"),
        ("depth", "'depth' is not of the form key=value"),
        ("depth=3,", "'' is not of the form key=value"),
        ("depth=3,depth=4", "depth is given twice"),
        ("depth=deep", "depth=deep: must be of type int"),
        ("depth=true", "depth=true: must be of type int"),
        ("flip=2", "flip=2: must be of type bool"),
    ],
)
def test_bad_arguments(empty: str, arguments: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(f"{empty}:{arguments}")
    assert expected in str(caught.value)
    assert "takes: depth=5, rate=0.1, flip=True, wiring='static'" in str(caught.value)


def test_one_error_lists_all_bad_arguments(empty: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(f"{empty}:width=2,depth=x,flip")
    assert all(text in str(caught.value) for text in ("width=2", "depth=x", "'flip'"))


# Missing and broken files.


def test_missing_files() -> None:
    with pytest.raises(UserError, match=r"no such file.*configs/digits\.py") as caught:
        load_config(str(CONFIGS / "digit.py"))
    assert "mnist_tiny" not in str(caught.value)
    with pytest.raises(UserError, match=r"digits\.py.*mnist_tiny\.py"):
        load_config(str(CONFIGS / "zzzzzzzz.py"))


def test_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(
        UserError, match=r"no such file; did you mean .*configs/cifar10_tiny\.py or "
    ):
        load_config("no/such/folder/file.py:a=b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hold no config files"):
        load_config("no/such/folder/file.py:a=b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n", "defines no function get_config"),
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
        ("def f():\n    1 / 0\ndef get_config():\n    f()\n", "line 2: ZeroDivisionError"),
        ("def get_config():\n    return {}\n", "must return a ConfigDict"),
        ("def get_config(name):\n    return {}\n", "parameters name need default values"),
        ("def get_config(*names):\n    return {}\n", "parameters names need default values"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


# JSON and back.

positive = st.floats(1e-30, 1e30)
VALUES = {
    "seed": st.integers(0, 2**32 - 1),
    "num_steps": st.none() | st.integers(1, 10**9),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
    "profile_steps": st.none() | st.tuples(st.integers(0, 9), st.integers(10, 99)),
    "dataset.data_dir": st.text(),
    "dataset.flip": st.booleans(),
    "model.wiring": st.sampled_from(["static", "discrete", "continuous"]),
    "model.sparsity": st.floats(0, 1, exclude_max=True),
    "model.solver.rtol": positive,
    "optimizer.learning_rate": st.just(0.0) | positive,
    "schedule.milestones": st.lists(positive, unique=True).map(lambda each: tuple(sorted(each))),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_text_and_json_round_trips(values: dict[str, object]) -> None:
    texts = {name: v if isinstance(v, str) else repr(v) for name, v in values.items()}
    config = load_config(DIGITS, texts)
    for name, value in values.items():
        assert config[name] == value
    assert from_json(to_json(config)) == config


def test_json_gets_defaults_and_is_checked() -> None:
    assert from_json('{"seed": 3}').seed == 3
    assert from_json("{}").batch_size == 512
    with pytest.raises(UserError, match=r"model\.width = 2: no such field"):
        from_json('{"model": {"width": 2}}')
    with pytest.raises(UserError, match=r"model\.sparsity = nan"):
        from_json('{"model": {"sparsity": NaN}}')
    with pytest.raises(UserError, match="must hold an object"):
        from_json("[]")
    with pytest.raises(UserError, match=r"runs/a/config\.json is not JSON"):
        from_json("{", source="runs/a/config.json")


def test_json_is_nested(empty: str) -> None:
    plain = json.loads(to_json(load_config(empty)))
    assert plain["model"]["solver"]["rtol"] == 1e-3
    assert plain["schedule"]["milestones"] == [0.5, 0.75]


# Comparing two configurations, as a resume does.


def test_differing_fields() -> None:
    a = load_config(DIGITS)
    assert differing_fields(a, load_config(DIGITS)) == {}
    b = load_config(DIGITS, {"model.sparsity": "0.5", "model.solver.rtol": "0.1", "seed": "1"})
    assert differing_fields(a, b) == {
        "model.solver.rtol": "model.solver.rtol: 0.001 != 0.1",
        "model.sparsity": "model.sparsity: 0.95 != 0.5",
        "seed": "seed: 0 != 1",
    }
    older = ConfigDict(a.to_dict())
    del older.model.depth
    assert differing_fields(older, a) == {"model.depth": f"model.depth: missing != {a.model.depth}"}
