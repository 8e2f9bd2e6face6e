"""How far a model's outputs are from the dense model's: one number, without labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core.arrays import Float64

CLASSIFIERS = ("Gemm", "MatMul", "Softmax", "LogSoftmax")
TRANSPARENT = ("Add", "Identity", "Flatten", "Reshape", "Squeeze", "Cast", "DequantizeLinear", "QuantizeLinear")


class OutputLoss:
    """The mean over all samples seen, summed over the outputs.

    For class scores, logits or probabilities alike, it is KL(dense ‖ compressed) in nats, per row of classes; for every
    other float output the squared error relative to the dense output's energy, ‖y − ŷ‖² / ‖y‖². Outputs that are not
    float arrays do not count, nor what is NaN or infinite in the dense model. 0 where nothing was seen; infinite where
    the compressed output is not finite but the dense one is.
    """

    def __init__(self, scores: Collection[str]) -> None:
        """`scores`: the names of the outputs that are class scores; see `class_scores`."""
        self._scores = frozenset(scores)
        self._feeds: list[dict[str, Float64]] = []  # by output: the divergence or error of each slice of the first axis
        self._scale: dict[str, float] = {}  # rows of classes, or the dense output's energy

    def add(self, dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> None:
        """Add the outputs of one feed, by name; all the dense ones must be among the compressed ones."""
        parts: dict[str, Float64] = {}
        for name, wanted in dense.items():
            if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
                continue
            y, found = wanted.astype(np.float64), np.asarray(compressed[name], np.float64)
            if name in self._scores and of_classes(y.shape):
                classes = y.shape[-1]
                told = np.isfinite(y.max(axis=-1))  # NaN and rows without any class say nothing
                p, q = _log_probabilities(y[told].reshape(-1, classes)), _log_probabilities(found[told])
                share = np.exp(p)  # (rows, classes)
                with np.errstate(invalid="ignore"):  # classes that a mask rules out, at −∞, have no share
                    each = np.where(share > 0, share * (p - q), 0).sum(axis=1)
                loss = np.zeros(told.shape)  # (first axis, …)
                loss[told] = each
                scale = float(len(p))
            else:
                usable = np.isfinite(y)
                loss = np.zeros(y.shape)
                loss[usable] = (y[usable] - found[usable]) ** 2
                scale = float((y[usable] ** 2).sum())
            parts[name] = np.atleast_1d(loss.sum(axis=tuple(range(1, loss.ndim))))  # (first axis,)
            self._scale[name] = self._scale.get(name, 0.0) + scale
        self._feeds.append(parts)

    @property
    def value(self) -> float:
        """The loss over all that was added."""
        total = sum(
            float(parts[name].sum()) / self._scale[name]
            for parts in self._feeds
            for name in parts
            if self._scale[name] > 0
        )
        return total if np.isfinite(total) else float("inf")

    def by_sample(self) -> Float64:
        """The loss of each sample, (samples,), in units in which their mean is `value`.

        Samples are the slices of the first axis, where the outputs of a feed agree on their number; of a feed where
        they do not, all count as one.
        """
        feeds = []
        for parts in self._feeds:
            lengths = {len(part) for part in parts.values()}
            size = lengths.pop() if len(lengths) == 1 else 1
            total = np.zeros(size)
            for name, part in parts.items():
                if self._scale[name] > 0:
                    total += (part if len(part) == size else part.sum()) / self._scale[name]
            feeds.append(total)
        found = np.concatenate(feeds) if feeds else np.zeros(0)
        return np.asarray(found * len(found), np.float64)


def of_classes(shape: tuple[int, ...]) -> bool:
    """Whether an output of this shape that is class scores has a row of them for each sample."""
    return len(shape) >= 2 and shape[-1] > 1


def class_scores(model: ir.Model) -> frozenset[str]:
    """The outputs that come straight from a classifier: a matrix product or softmax, not a normalised embedding."""
    return frozenset(str(value.name) for value in model.graph.outputs if _is_class_scores(value))


def _is_class_scores(output: ir.Value) -> bool:
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in CLASSIFIERS:
            return True
        if node.op_type not in TRANSPARENT:
            return False
        value = next((source for source in node.inputs if source is not None and source.producer() is not None), None)
    return False


def _log_probabilities(scores: Float64) -> Float64:
    """Logarithms of the probabilities that each row of scores stands for, (rows, classes)."""
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3):  # behind a Softmax already
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
