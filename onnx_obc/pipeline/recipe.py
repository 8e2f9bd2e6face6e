"""What the user asked for, validated: one level for all layers, and rules for layers by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from ..core.errors import RecipeError, quoted, shortened
from ..core.files import read_regular
from ..core.level import Choice, Level, parse_bits, parse_sparsity
from ..core.options import names
from ..runtime.session import Execution
from ..targets.names import WeightForm
from ..targets.registry import TARGETS
from .floor import parse_quality
from .options import LEARNED, Activations, BlockSize, FinishOptions, MethodOptions, RunOptions, UniformOptions, Weights

LARGEST, MOST_VALUES = 2**20, 20_000  # bytes and values of a recipe
ACTIVATION_BITS: dict[str, int | None] = {"none": None, "int8": 8, "dynamic": 8, "int16": 16, "int4": 4}


class _Strict(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("sparsity", mode="before", check_fields=False)
    @classmethod
    def _sparsity_is_text(cls, value: object) -> object:
        """YAML reads 0.6 as a number; it is meant as it is written."""
        plain = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
        return str(value) if plain else value

    @field_validator("sparsity", check_fields=False)
    @classmethod
    def _sparsity_is_known(cls, value: str | None) -> str | None:
        if value is not None:
            parse_sparsity(value)
        return value


class Rule(_Strict, frozen=True):
    """Overrides for the layers of the name `match`, or that match it as a shell pattern; None: as in the recipe.

    source: who says so, in messages.
    """

    source: ClassVar[str] = "the recipe"

    match: str
    skip: bool = False
    weights: Weights | None = None
    sparsity: str | None = None
    activations: Activations | None = None
    asymmetric: bool | None = None
    block: BlockSize | None = None

    def matches(self, layer: str) -> bool:
        """Whether the rule is about the layer of this name, which may hold brackets as exporters write them."""
        return layer == self.match or fnmatchcase(layer, self.match)


class SkipOption(Rule, frozen=True):
    """What the option --skip says."""

    source: ClassVar[str] = "--skip"
    skip: bool = True


class SkippedInBuild(Rule, frozen=True):
    """What a database was built with."""

    source: ClassVar[str] = "the build"
    skip: bool = True


class Recipe(_Strict, RunOptions, FinishOptions, MethodOptions, UniformOptions, frozen=True):  # fields: the last first
    """How a model is to be compressed: the options of these groups, as on the command line; see docs/recipe.md."""

    layers: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _options_go_together(self) -> Recipe:
        if self.weight_form not in TARGETS[self.target].weight_forms:
            taken = ", ".join(TARGETS[self.target].weight_forms)
            raise ValueError(f"weight_form: {self.target} does not take {self.weight_form}; write {taken}")
        if self.form not in TARGETS[self.target].weight_forms:
            raise ValueError(f"accuracy_level: {self.target} has no MatMulNBits; leave it out")
        if self.solver in ("baseline", "gmp") and self.sequential:
            raise ValueError(f"sequential: solver {self.solver} takes no inputs into account; leave one of them out")
        if self.solver == "adaquant" and self.global_adaprune:
            raise ValueError("global_adaprune: solver adaquant trains biases already; leave one of them out")
        if self.iterations is not None and self.solver not in ("adaprune", *LEARNED):
            raise ValueError(f"iterations: solver {self.solver} takes no gradient steps; leave it out")
        return self

    @field_validator("min_quality")
    @classmethod
    def _quality_is_known(cls, value: str | None) -> str | None:
        if value is not None:
            parse_quality(value)
        return value

    @field_validator("refine", mode="before")
    @classmethod
    def _refine_is_known(cls, value: object) -> object:
        sweeps = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000
        if not sweeps and value not in ("none", "auto"):
            raise ValueError("write none, auto, or a number of sweeps from 1 to 1000")
        return value

    def memory_bytes(self) -> float:
        """Bytes for Hessians and activations at a time: `memory`, or half of what is free now."""
        return psutil.virtual_memory().available / 2 if self.memory is None else self.memory * 2**30

    def execution(self) -> Execution:
        """Where and how models run, in the memory that is free now."""
        return Execution(self.device, self.threads, self.memory_bytes())

    def changed(self, group: type) -> dict[str, Any]:
        """The options of a group that are not at their defaults, by name."""
        given = {name: getattr(self, name) for name in names(group)}
        return {name: value for name, value in given.items() if value != Recipe.model_fields[name].default}

    @property
    def correct(self) -> bool:
        """Whether anything is tried beyond solving layers."""
        return self.effort != "fast"

    @property
    def form(self) -> WeightForm:
        """The form of the target's that integer weights are written in."""
        forms: dict[int | None, WeightForm] = {None: self.weight_form, 0: "nbits-0", 1: "nbits-1", 4: "nbits-4"}
        return forms[self.accuracy_level]

    def choose(self, layer: str) -> Choice | None:
        """What the layer of this name is to become: by the first rule that matches, else by the recipe itself.

        None if the rule says `skip`.
        """
        rule = self.rule_for(layer) or Rule(match="*")
        if rule.skip:
            return None
        bits = parse_bits(rule.weights or self.weights)
        wanted = rule.activations or self.activations
        activations = ACTIVATION_BITS[wanted]
        asymmetric = self.asymmetric if rule.asymmetric is None else rule.asymmetric
        if asymmetric is None:  # zero points are worth most where there are few codes, but not every kernel takes them
            asymmetric = bits is not None and bits < 8 and TARGETS[self.target].zero_points(activations)
        level = Level(
            sparsity=parse_sparsity(rule.sparsity if rule.sparsity is not None else self.sparsity),
            bits=bits,
            symmetric=bits is None or not asymmetric,
            block=None if bits is None else rule.block or self.block,
        )
        # Integer arithmetic needs integers on both sides: activations of a float layer stay float.
        return Choice(level) if bits is None else Choice(level, activations, wanted == "dynamic")

    def rule_for(self, layer: str) -> Rule | None:
        """The rule of this recipe that decides on the layer of this name, the first that matches; None if none does."""
        return next((rule for rule in self.layers if rule.matches(layer)), None)

    def check_rules(self, layers: Sequence[str], others: Sequence[str] = ()) -> None:
        """Raise RecipeError for a rule that matches no layer; `others` are weights that stay as they are anyway.

        Of a model without layers the rules are not to blame: that there is nothing to compress is said elsewhere.
        """
        for rule in self.layers if layers else ():
            if not any(rule.matches(name) for name in (*layers, *(others if rule.skip else ()))):
                where = "--skip or a rule of the recipe" if rule.skip else "a rule of the recipe"
                raise RecipeError(f"{where}: {rule.match!r} matches no layer; {_nearest(rule.match, layers)}")


def _nearest(pattern: str, layers: Sequence[str]) -> str:
    """What else a user may have meant: names of layers that are like the pattern, or have a part that is."""
    text = pattern.strip("*?")
    likeness = {
        name: max(difflib.SequenceMatcher(None, text, part).ratio() for part in (name, *name.split("/")))
        for name in layers
    }
    near = sorted((name for name in layers if likeness[name] >= 0.6), key=lambda name: -likeness[name])[:3]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "see onnx-obc inspect for the names"


def make_recipe(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate plain values, as read from YAML or from the command line. Raises RecipeError with the nearest name."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explain(error)}") from error
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error


class _Loader(yaml.SafeLoader):
    """Safe YAML without YAML 1.1's numbers in base 60, so that 2:4 is the text that it looks like, and without more
    values than a recipe has, however few lines write them."""

    def get_single_node(self) -> yaml.Node | None:
        """The document, if it is no larger than a recipe is."""
        node = super().get_single_node()
        if node is not None and _values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")
        return node


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node writes out to, aliases included."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # until it is known: an alias of itself has no end
        inner = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else ()
        parts = (x for part in inner for x in (part if isinstance(part, tuple) else (part,)))
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


_BASE_60 = ("tag:yaml.org,2002:str", re.compile(r"[-+]?[\d_]+(?::[\d_.]+)+$"))
_Loader.yaml_implicit_resolvers = {
    first: [_BASE_60, *known] for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file. Raises RecipeError."""
    try:
        values = yaml.load(read_regular(Path(path), LARGEST).decode(), Loader=_Loader)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path of --recipe") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that does not exist
        raise RecipeError(f"{path}: not valid YAML ({shortened(str(error))}); mend it there") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deep for a recipe; see docs/recipe.md") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise RecipeError(f"{path}: a recipe is a mapping of options such as `weights: int8`; see docs/recipe.md")
    return make_recipe(values, source=str(path))


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        known = list(Rule.model_fields if "layers" in first["loc"] else Recipe.model_fields)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"unknown option {location!r}; {hint}"
    what = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping) else f", not {quoted(first['input'])}"
    return f"{location}: {what[0].lower()}{what[1:]}{given}"
