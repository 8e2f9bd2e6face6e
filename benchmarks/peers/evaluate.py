"""What a written file is worth: its score, how far its outputs are from the dense model's, its size and speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.processes import shortened
from benchmarks.common.subjects import Subject, open_data
from onnx_obc import ObcError
from onnx_obc.core.arrays import Feed
from onnx_obc.graph.model import read_model
from onnx_obc.graph.save import file_bytes
from onnx_obc.runtime.judge import Judge
from onnx_obc.runtime.session import Execution
from onnx_obc.targets.bench import bench

ENGINES = ("onnxruntime", "openvino")
ROUNDS = 5
BATCH = 16  # samples in a run that is timed
IMAGES, SENTENCES = 5000, 512  # samples that outputs are compared on, at most


class Evaluator:
    """Holds the dense model's predictions, and its outputs on data that calibrates nothing."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.dense = subject.score(subject.path, None)
        dense = read_model(subject.path)
        most = IMAGES if subject.classifier else SENTENCES
        samples = open_data(dense, subject.held_out, replace(subject.options, samples=most))
        feeds = list(samples.feeds())
        self.samples = samples.count
        self._judge = Judge(dense, feeds, Execution(device="cpu"))
        self._feed: Feed = {name: np.repeat(array[:1], BATCH, axis=0) for name, array in feeds[0].items()}

    def worth(self, path: Path) -> dict[str, Any]:
        """The figures of a file, as fields of a row: `error` alone if onnxruntime does not run it."""
        try:
            loss = self._judge.loss(path)
        except ObcError as error:
            return {"error": shortened(str(error))}
        score = self._subject.score(path, self.dense.predictions)
        return {
            "score": score.value,
            "agreement": score.agreement,
            "loss": loss,
            "bytes": file_bytes(path),
            "speed": {engine: self._speed(path, engine) for engine in ENGINES},
        }

    def _speed(self, path: Path, engine: str) -> dict[str, Any]:
        """How many times faster than the dense file, run in turn with it: the median of the rounds, and quartiles."""
        try:
            _, timed = bench((self._subject.path, path), engine, self._feed, rounds=ROUNDS).files
        except ObcError as error:
            return {"error": shortened(str(error))}
        return {"ratio": timed.ratio, "quartiles": [timed.low, timed.high], "ms": 1e3 * timed.seconds}
