from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_obc.core.errors import RecipeError
from onnx_obc.core.level import NM, Block, Level, Unstructured
from onnx_obc.pipeline.recipe import Recipe, Rule, make_recipe, read_recipe

DOCS = Path(__file__).parents[2] / "docs" / "recipe.md"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_is_int8() -> None:
    choice = Recipe().choose("any")
    assert choice is not None
    assert choice.level == Level(bits=8) and choice.activation_bits == 8


def test_the_first_rule_that_matches_wins_and_fills_up_from_the_recipe() -> None:
    recipe = Recipe(
        weights="int4",
        sparsity="2:4",
        asymmetric=True,
        layers=(
            Rule(match="head", skip=True),
            Rule(match="*/conv[12]", weights="int8", asymmetric=False),
            Rule(match="*conv*", sparsity="none", activations="none"),
            Rule(match="*/conv1", skip=True),
        ),
    )
    level = {name: recipe.choose(name) for name in ("head", "a/conv1", "a/conv3", "Head", "a/fc")}
    assert level["head"] is None
    assert level["a/conv1"] is not None and level["a/conv1"].level == Level(NM(2, 4), 8)
    assert level["a/conv3"] is not None and level["a/conv3"].level == Level(None, 4, symmetric=False)
    assert level["a/conv3"].activation_bits is None
    assert level["Head"] == level["a/fc"]  # patterns mind the case
    assert level["a/fc"] is not None and level["a/fc"].level == Level(NM(2, 4), 4, symmetric=False)
    recipe.check_rules(["head", "a/conv1"])
    with pytest.raises(RecipeError, match=r"'\*/conv\[12\]' matches no layer; did you mean 'a/conv3'\?"):
        recipe.check_rules(["head", "a/conv3"])


def test_activations_of_float_layers_stay_float() -> None:
    choice = Recipe(weights="float", sparsity="0.5", asymmetric=True).choose("any")
    assert choice is not None
    assert choice.level == Level(Unstructured(0.5)) and choice.activation_bits is None


@pytest.mark.parametrize(
    ("text", "sparsity"),
    [
        ("2:4", NM(2, 4)),
        ("4:8", NM(4, 8)),
        ("1:2", NM(1, 2)),
        ("8:16", NM(8, 16)),
        ("16:64", NM(16, 64)),
        ("1:30", NM(1, 30)),
        ("'2:4'", NM(2, 4)),
        ("0.6", Unstructured(0.6)),
        (".6", Unstructured(0.6)),
        ("block4:0.7", Block(4, 0.7)),
        ("none", None),
        ("0", None),
    ],
)
def test_sparsity_in_yaml_is_what_is_written(text: str, sparsity: object, tmp_path: Path) -> None:
    """YAML 1.1 would read 2:4 as a number in base 60, and reads .6 as a float."""
    recipe = read_recipe(write(tmp_path, f"sparsity: {text}\nlayers:\n- match: '*'\n  sparsity: {text}\n"))
    choice = recipe.choose("any")
    assert choice is not None and choice.level.sparsity == sparsity


@pytest.mark.parametrize(
    ("text", "value"), [("0.01", 0.01), (".5", 0.5), ("1", 1.0), ("1e-3", 0.001), ("1.e-3", 0.001), ("+2.5e1", 25.0)]
)
def test_numbers_are_still_numbers(text: str, value: float, tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, f"damp: {text}\nthreads: 4\n"))
    assert recipe.damp == value and recipe.threads == 4


REFUSED: dict[str, str] = {
    "weigths: int4": "unknown option 'weigths'; did you mean 'weights'?",
    "layers: [{match: a, spartsity: 0.5}]": "unknown option 'layers.0.spartsity'; did you mean 'sparsity'?",
    "layers: [{match: a, threads: 2}]": "unknown option 'layers.0.threads'; known: match, skip, weights",
    "refine: 2000": "refine: write none, auto, or a number of sweeps from 1 to 1000, not 2000",
    "refine: true": "a number of sweeps from 1 to 1000",
    "zzz: x.npz": "unknown option 'zzz'; known: weights, activations",
    "weights: int9": "weights: should be 'float', 'int8', 'int7', 'int6', 'int5', 'int4', 'int3' or 'int2', not 'int9'",
    "weights: 8": "weights: should be 'float'",
    "weights: [int8]": "not ['int8']",
    "sparsity: 3:2": "sparsity '3:2' must keep some of the weights, and not all of them; write e.g. 2:4",
    "sparsity: 60": "sparsity '60': the pruned fraction must lie between 0 and 1; write e.g. 0.6, or 2:4",
    "sparsity: 70": "sparsity '70': the pruned fraction must lie between 0 and 1; write e.g. 0.6, or 2:4",
    "sparsity: 1:1": "sparsity '1:1' must keep some of the weights, and not all of them; write e.g. 2:4",
    "threads: 1:30": "threads: should be a valid integer",
    "damp: 1:30.5": "damp: should be a valid number",
    "sparsity: block4": "sparsity 'block4' is not known; write 2:4",
    "sparsity: 1.5": "sparsity '1.5': the pruned fraction must lie between 0 and 1",
    "sparsity: [2, 4]": "sparsity: should be a valid string, not [2, 4]",
    "sparsity: true": "sparsity: should be a valid string, not True",
    "sparsity:": "sparsity: should be a valid string, not None",
    "layers: [{match: a, sparsity: 9:9}]": "sparsity '9:9'",
    "damp: -1": "damp: should be greater than or equal to 0, not -1",
    "damp: .nan": "damp: should be a finite number, not nan",
    "damp: a lot": "damp: should be a valid number, unable to parse string as a number, not 'a lot'",
    "threads: 0": "threads: should be greater than or equal to 1, not 0",
    "threads: 1.5": "threads: should be a valid integer",
    "threads: 99999": "threads: should be less than or equal to 1024, not 99999",
    "memory: 0": "memory: should be greater than 0, not 0",
    "memory: .inf": "memory: should be a finite number, not inf",
    "seed: -1": "seed: should be greater than or equal to 0, not -1",
    "verify: maybe": "verify: should be a valid boolean",
    "target: coreml": "target: should be 'onnxruntime', 'openvino', 'deepsparse' or 'tensorrt', not 'coreml'",
    "layers: 5": "layers: should be a valid tuple, not 5",
    "layers: abc": "layers: should be a valid tuple, not 'abc'",
    "layers: [5]": "layers.0: should be a valid dictionary or instance of Rule, not 5",
    "layers: [{skip: true}]": "layers.0.match: field required",
    "layers: [{match: 3}]": "layers.0.match: should be a valid string, not 3",
    "- weights: int8": "a recipe is a mapping of options such as `weights: int8`; see docs/recipe.md",
    "int8": "a recipe is a mapping of options",
    "": "a recipe is a mapping of options",
    "3: 4": "a recipe is a mapping of options",
    "weights: [int8": "not valid YAML",
    "weights: !!python/object/apply:os.getcwd []": "not valid YAML",
    "seed: 2020-13-45": "not valid YAML",
    "\x00": "not valid YAML",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_recipe_is_refused_on_one_line(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "pydantic" not in message
    assert REFUSED[text] in message


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    binary = tmp_path / "recipe.yaml"
    binary.write_bytes(b"\xff\xfe\x00weights")
    for path, message in [
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "is a folder"),
        (binary, "not valid YAML"),
    ]:
        with pytest.raises(RecipeError, match=message):
            read_recipe(path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([*Recipe.model_fields, "weight"])


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, plain | st.lists(st.dictionaries(st.sampled_from([*Rule.model_fields]), plain))))
def test_whatever_is_in_a_recipe_it_is_read_or_refused(values: dict[str, Any]) -> None:
    try:
        recipe = make_recipe(values)
    except RecipeError as error:
        assert "\n" not in str(error)
    else:
        recipe.choose("any")


def test_a_recipe_reads_back_from_its_report(tmp_path: Path) -> None:
    recipe = Recipe(sparsity="2:4", layers=(Rule(match="*fc", sparsity="0.5"), Rule(match="*", skip=True)))
    assert read_recipe(write(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


def test_the_example_in_the_documentation_is_complete_and_valid(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    example = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    recipe = read_recipe(write(tmp_path, example))
    assert recipe.model_fields_set == set(Recipe.model_fields)
    assert {name for rule in recipe.layers for name in rule.model_fields_set} == set(Rule.model_fields)


@pytest.mark.parametrize("model", [Recipe, Rule])
def test_every_option_is_documented_with_its_default(model: type[Recipe | Rule]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: default.strip("`") for name, _, default in rows}
    for name, field in Recipe.model_fields.items() if model is Recipe else Rule.model_fields.items():
        assert name in documented, name
        if model is Recipe and name != "layers":
            assert documented[name] == yaml.safe_dump(field.default).split("\n")[0], name


def test_the_baseline_has_no_order() -> None:
    with pytest.raises(RecipeError, match="solver baseline takes no inputs into account"):
        make_recipe({"solver": "baseline", "sequential": True})
