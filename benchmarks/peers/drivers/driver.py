"""What the drivers share. A driver runs in the environment of its tool, and imports nothing of onnx-obc's own.

python use_TOOL.py --model in.onnx --calibration FOLDER --method NAME --output out.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Feed: TypeAlias = "dict[str, np.ndarray[Any, Any]]"


@dataclass(frozen=True)
class Task:
    """A model to quantize. calibration: a folder of .npz files, each of which is one feed: arrays by input name."""

    model: Path
    calibration: Path
    output: Path

    def feeds(self) -> list[Feed]:
        """All feeds, in the order of their files; the batch varies."""
        found = []
        for path in sorted(self.calibration.glob("*.npz")):
            with np.load(path) as arrays:
                found.append(dict(arrays))
        return found

    def samples(self) -> list[Feed]:
        """All samples, each a feed of batch 1."""
        return [
            {name: array[i : i + 1] for name, array in feed.items()}
            for feed in self.feeds()
            for i in range(len(next(iter(feed.values()))))
        ]


def padded(feeds: list[Feed]) -> list[Feed]:
    """Sentences padded to the longest and masked, images as they are: for methods that join the activations of all."""
    if any(array.ndim != 2 for array in feeds[0].values()):
        return feeds
    longest = max(array.shape[1] for feed in feeds for array in feed.values())
    return [{n: np.pad(a, ((0, 0), (0, longest - a.shape[1]))) for n, a in feed.items()} for feed in feeds]


Method: TypeAlias = Callable[[Task], None]


def main(methods: Mapping[str, Method]) -> None:
    """Run the method that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--method", choices=list(methods), required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    methods[options.method](Task(options.model, options.calibration, options.output))
