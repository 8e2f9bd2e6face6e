"""Graphs nobody prepared for: every case there is. Needs torch and transformers."""

from __future__ import annotations

from . import graphs, modules, networks
from .case import Case

__all__ = ["CASES", "Case"]

CASES: list[Case] = [*graphs.CASES, *modules.CASES, *networks.CASES]
