"""What a database is made from besides its model: the samples, and what of a recipe its solutions depend on."""

from __future__ import annotations

from ..calibration.samples import Samples
from ..core.options import names
from ..pipeline.options import MethodOptions
from ..pipeline.recipe import Recipe
from .calibration import samples_key
from .files import Manifest, content_key


def split_key(calibrating: Samples, held_out: Samples) -> str:
    """A hash of all samples, and of which of them were held out."""
    return content_key(samples_key(calibrating), samples_key(held_out))


def options_of(recipe: Recipe) -> dict[str, object]:
    """What of a recipe a database depends on."""
    plain = recipe.model_dump(mode="json")
    return {**{name: plain[name] for name in names(MethodOptions)}, "skip": [rule.match for rule in recipe.layers]}


def other_than(manifest: Manifest, samples: str, recipe: Recipe) -> str:
    """What else a database was made from than samples of this `split_key` and this recipe, in words; empty if from the
    same."""
    made, wanted = {**options_of(Recipe()), **manifest.recipe}, options_of(recipe)  # options may be new
    told = ["other samples"] if manifest.samples != samples else []
    told += [f"{name} {made[name]}, not {wanted[name]}" for name in wanted if made[name] != wanted[name]]
    return " and ".join(told)
