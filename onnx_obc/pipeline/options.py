"""The words of a recipe, without what validates it: light to import."""

from __future__ import annotations

from typing import Literal, TypeAlias

Activations: TypeAlias = Literal["none", "int8", "int4"]
Weights: TypeAlias = Literal["float", "int8", "int7", "int6", "int5", "int4", "int3", "int2"]
