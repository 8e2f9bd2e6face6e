"""Metrics by name. Each says which output and which labels it reads; for others the user writes a function."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from ..core.arrays import Array, Float64
from ..core.errors import RecipeError
from ..core.plural import counted
from .metric import Metric, Sample, mean
from .sqnr import is_float

VOID = 255  # the class of pixels that are not judged
OWN = "or write a function(outputs, labels) and give --metric file.py:function"


def named_metric(name: str, scores: Collection[str], decode: Callable[[Sequence[int]], str] | None = None) -> Metric:
    """The metric of this name. Raises RecipeError.

    scores: the outputs that are class scores. decode: token ids to text, for the word error rate.
    """
    if name == "top-1" or name == "top-5":
        return top(int(name[-1]), scores)
    if name == "agreement":
        return agreement(scores)
    if name == "word-error-rate":
        return word_error_rate(decode)
    plain = {
        "mean-iou": MEAN_IOU,
        "map": MEAN_AVERAGE_PRECISION,
        "spearman": SPEARMAN,
        "perplexity": PERPLEXITY,
    }
    if name in plain:
        return plain[name]
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(NAMES)}"
    raise RecipeError(f"--metric {name}: no metric of that name; {hint}; {OWN}")


NAMES = ("top-1", "top-5", "agreement", "mean-iou", "map", "spearman", "perplexity", "word-error-rate")


# ---- Classes: an output (classes,) of scores for each sample, and its class as the label.


def top(most: int, scores: Collection[str]) -> Metric:
    """The share of samples whose class is among the `most` largest scores."""

    def note(sample: Sample) -> float:
        values = _scores(sample, scores)
        label = np.asarray(sample.label)
        if label.ndim or label.dtype.kind not in "iu" or not 0 <= label < values.size:
            raise ValueError(f"labels are classes 0 … {values.size - 1}, not {label.tolist()!r}")
        return float(label in np.argsort(-values, kind="stable")[:most])

    return Metric(f"top-{most}", note, mean)


def agreement(scores: Collection[str]) -> Metric:
    """The share of samples with the dense model's class."""

    def note(sample: Sample) -> int:
        return int(_scores(sample, scores).argmax())

    def value(notes: Sequence[Any], dense: Sequence[Any]) -> float:
        return float(np.mean(np.array(notes) == np.array(dense)))

    return Metric("agreement", note, value, labels=False)


def _scores(sample: Sample, scores: Collection[str]) -> Float64:
    """The first output of scores, (classes,) float64; of those that look like it, if none is known to be."""
    vectors = {n: x for n, x in sample.outputs.items() if isinstance(x, np.ndarray) and x.size > 1 and x.ndim == 1}
    name = next((name for name in vectors if name in scores), next(iter(vectors), None))
    if name is None:
        raise ValueError(f"no output is a vector of class scores for each sample; {OWN}")
    return np.asarray(vectors[name], np.float64)


# ---- Pixels: an output (classes, height, width) of scores or (height, width) of classes, and classes as the label.


def _intersections(sample: Sample) -> Float64:
    """Pixels in both and in either, by class: (2, classes)."""
    label = np.asarray(sample.label)
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise ValueError(f"labels are (height, width) integers, a class for each pixel, not {_kind(sample.label)}")
    for output in sample.outputs.values():
        if isinstance(output, np.ndarray) and output.shape == label.shape and output.dtype.kind in "iu":
            classes, found = int(max(output.max(), label[label != VOID].max(initial=0))) + 1, output
            break
        if isinstance(output, np.ndarray) and output.ndim == 3 and label.shape in (output.shape[1:], output.shape[:2]):
            axis = 0 if output.shape[1:] == label.shape else 2
            classes, found = output.shape[axis], output.argmax(axis=axis)
            break
    else:
        raise ValueError(f"no output is (classes, {label.shape[0]}, {label.shape[1]}), as the labels are; {OWN}")
    told = (label >= 0) & (label != VOID)
    if (most := int(label[told].max(initial=0))) >= classes:
        raise ValueError(f"labels are classes 0 … {classes - 1}, or {VOID} for none, not {most}; {OWN}")
    label, found = label.astype(np.int64), found.astype(np.int64)  # their products do not fit into bytes
    pairs = np.bincount(label[told] * classes + found[told], minlength=classes**2).reshape(classes, classes)
    both = np.diagonal(pairs)
    return np.stack([both, pairs.sum(axis=0) + pairs.sum(axis=1) - both]).astype(np.float64)


def _mean_iou(notes: Sequence[Any], dense: Sequence[Any]) -> float:
    classes = max(note.shape[1] for note in notes)
    total = np.stack([np.pad(note, ((0, 0), (0, classes - note.shape[1]))) for note in notes]).sum(axis=0)
    there = total[1] > 0
    if not there.any():
        raise ValueError(f"no pixel's label is among the {classes} classes of the output; number them from 0")
    return float((total[0][there] / total[1][there]).mean())


MEAN_IOU = Metric("mean-iou", _intersections, _mean_iou)


# ---- Boxes: outputs `boxes` (boxes, 4) as x1, y1, x2, y2, `scores` (boxes,) and `labels` or `classes` (boxes,), and
# ---- (boxes, 5) of class, x1, y1, x2, y2 as the label; rows of class −1 fill up.


def _boxes(sample: Sample) -> tuple[Array, Array]:
    """The boxes there are, (n, 5) of class, x1, y1, x2, y2, and those that were found, (m, 6) with a score last."""
    truth = np.asarray(sample.label, np.float64)
    truth = truth[None] if truth.shape == (5,) else truth  # of a feed of one image with one box
    if truth.ndim != 2 or truth.shape[1] != 5:
        raise ValueError(f"labels are (boxes, 5): class, x1, y1, x2, y2; not {_kind(sample.label)}")
    parts: dict[str, Array] = {}
    taken: set[str] = set()
    for key, words in {"boxes": ("box",), "scores": ("score", "conf"), "classes": ("label", "class")}.items():
        fitting = (n for n in sample.outputs if n not in taken and any(word in n.lower() for word in words))
        name = next(fitting, "")
        output = sample.outputs.get(name)
        if not isinstance(output, np.ndarray):
            raise ValueError(f"no output is named like {key}; {OWN}")
        taken.add(name)
        parts[key] = output.reshape(-1, 4) if key == "boxes" else output.reshape(-1)
    if len({len(part) for part in parts.values()}) > 1:
        raise ValueError(f"boxes, scores and classes differ in number; {OWN}")
    found = np.column_stack([parts["classes"], parts["boxes"], parts["scores"]]).astype(np.float64)  # (m, 6)
    return truth[truth[:, 0] >= 0], found


def _mean_average_precision(notes: Sequence[Any], dense: Sequence[Any]) -> float:
    """Average precision over IoU 0.5 … 0.95 and classes, by pycocotools."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ValueError("mAP needs pycocotools, not installed; install onnx-obc[metrics]")
    from contextlib import redirect_stdout
    from io import StringIO

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations: list[dict[str, Any]] = [
        {
            "image_id": number,
            "category_id": int(box[0]),
            "bbox": [*box[1:3], *(box[3:5] - box[1:3])],
            "area": float(np.prod(box[3:5] - box[1:3])),
            "iscrowd": 0,
        }
        for number, (truth, _) in enumerate(notes)
        for box in truth
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    results = [
        {
            "image_id": number,
            "category_id": int(box[0]),
            "bbox": [*box[1:3], *(box[3:5] - box[1:3])],
            "score": float(box[5]),
        }
        for number, (_, found) in enumerate(notes)
        for box in found
    ]
    if not annotations:
        raise ValueError("mAP needs boxes among the labels; there is none")
    if not results:
        return 0.0
    with redirect_stdout(StringIO()):  # the library prints what it does
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(len(notes))],
            "categories": [{"id": kind} for kind in sorted({entry["category_id"] for entry in annotations})],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


MEAN_AVERAGE_PRECISION = Metric("map", _boxes, _mean_average_precision)


# ---- Similarity: an output of one number for each sample and a number as the label; or embeddings of two texts each,
# ---- which share a row of the data, and (row, number) as the label.


def _similar(sample: Sample) -> tuple[Any, Array]:
    label = np.asarray(sample.label, np.float64)
    output = next((x for x in sample.outputs.values() if is_float(x)), None)
    if sample.label is None or output is None or label.shape not in ((), (2,)):
        raise ValueError(f"labels are a number for each sample, or for each pair of texts; not {_kind(sample.label)}")
    if not np.isfinite(label).all():
        raise ValueError(f"a label is {label.tolist()}; leave such samples out")
    if label.shape == ():
        if output.size != 1:
            raise ValueError(f"an output of {output.size} numbers cannot be ranked against a label; {OWN}")
        return float(output.reshape(())), label
    if output.ndim == 2:  # (tokens, width): the mean over tokens that count
        mask = sample.feed.get("attention_mask", np.ones(len(output)))[:, None]
        output = (output * mask).sum(axis=0) / max(mask.sum(), 1)
    return np.asarray(output, np.float64).reshape(-1), label


def _rank_correlation(notes: Sequence[Any], dense: Sequence[Any]) -> float:
    from scipy.stats import spearmanr

    if notes[0][1].shape == ():
        found, wanted = [value for value, _ in notes], [float(label) for _, label in notes]
    else:
        rows: dict[float, list[Any]] = {}
        for vector, label in notes:
            rows.setdefault(label[0], []).append((vector, label[1]))
        pairs = [row for row in rows.values() if len(row) == 2]
        if 2 * len(pairs) < len(rows):  # as where samples are drawn, or held out
            alone = f"{len(rows) - len(pairs)} of {counted(len(rows), 'text pair')}"
            raise ValueError(f"of {alone} one text alone is among the samples; give all of the pairs as --eval")
        found = [float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)) for (a, _), (b, _) in pairs]
        wanted = [row[0][1] for row in pairs]
    if len(set(wanted)) < 2:
        raise ValueError("Spearman's correlation needs two labels or more that differ")
    if len(set(found)) < 2:  # a model that says the same of all ranks nothing
        return 0.0
    return float(spearmanr(found, wanted).statistic)


def _row_of_texts(note: Any) -> float | None:
    """The row that a text shares with another one; None for a sample of its own."""
    return None if note[1].shape == () else float(note[1][0])


SPEARMAN = Metric("spearman", _similar, _rank_correlation, together=_row_of_texts)


# ---- Language: an output (tokens, vocabulary) of scores for the next token of the input `input_ids`.


def _surprise(sample: Sample) -> tuple[float, int]:
    """The negative log-likelihood of the tokens after the first, in nats, and how many they are."""
    ids = sample.feed.get("input_ids")
    scores = next((x for x in sample.outputs.values() if isinstance(x, np.ndarray) and x.ndim == 2), None)
    if ids is None or scores is None or len(scores) != len(ids):
        raise ValueError(f"perplexity needs an input input_ids and an output (tokens, vocabulary) for it; {OWN}")
    if ids.size and not 0 <= ids.min() <= ids.max() < scores.shape[1]:
        raise ValueError(f"input_ids reach {ids.max()}, but the output scores {scores.shape[1]} tokens; {OWN}")
    logits = scores[:-1].astype(np.float64)  # (tokens − 1, vocabulary)
    logits -= logits.max(axis=1, keepdims=True)
    each = np.log(np.exp(logits).sum(axis=1)) - np.take_along_axis(logits, ids[1:, None].astype(np.int64), 1)[:, 0]
    mask = np.asarray(sample.feed.get("attention_mask", np.ones_like(ids)))[-len(ids) :] > 0  # a cache lies before
    told = mask[1:] & mask[:-1]  # nothing is said before the first token, where padding is in front
    return float(each[told].sum()), int(told.sum())


def _perplexity(notes: Sequence[Any], dense: Sequence[Any]) -> float:
    tokens = sum(count for _, count in notes)
    if not tokens:
        raise ValueError("perplexity needs texts of two tokens or more")
    return float(np.exp(min(sum(total for total, _ in notes) / tokens, 700)))


PERPLEXITY = Metric("perplexity", _surprise, _perplexity, higher=False, labels=False)


# ---- Speech: an output of text, or of token ids that --tokenizer knows, and text as the label.


def word_error_rate(decode: Callable[[Sequence[int]], str] | None) -> Metric:
    """Words that are wrong, missing or too many, over those of the label, by jiwer."""

    def note(sample: Sample) -> tuple[str, str]:
        output = next(iter(sample.outputs.values()))
        if not isinstance(sample.label, str | np.str_) or not str(sample.label).strip():
            raise ValueError(f"labels are texts, not {_kind(sample.label)}")
        values = np.asarray(output)
        if values.dtype.kind in "OU":
            return str(sample.label), " ".join(map(str, values.reshape(-1)))
        if values.dtype.kind in "iu" and decode is not None:
            return str(sample.label), decode([int(x) for x in values.reshape(-1)])
        raise ValueError(f"the first output is neither text nor token ids with a --tokenizer for them; {OWN}")

    def value(notes: Sequence[Any], dense: Sequence[Any]) -> float:
        if importlib.util.find_spec("jiwer") is None:
            raise ValueError("the word error rate needs jiwer, not installed; install onnx-obc[metrics]")
        import jiwer

        return float(jiwer.wer([label for label, _ in notes], [said for _, said in notes]))

    return Metric("word-error-rate", note, value, higher=False)


def _kind(label: Any) -> str:
    if label is None:
        return "none"
    array = np.asarray(label)
    return f"{array.dtype.name}{list(array.shape)}"
