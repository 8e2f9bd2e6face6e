"""Metrics by name: against sklearn, SciPy, and figures by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import jaccard_score

from onnx_obc.core.errors import RecipeError
from onnx_obc.runtime.metric import Metric, Sample, cut, mean, standard_error
from onnx_obc.runtime.metrics import NAMES, named_metric

RNG = np.random.default_rng(0)


def value(name: str, samples: list[Sample], dense: list[Sample] | None = None, **options: Any) -> float:
    metric = named_metric(name, ("y",), **options)
    return metric.value([metric.note(x) for x in samples], [metric.note(x) for x in dense or samples])


def samples_of(outputs: np.ndarray, labels: Any = None, feeds: dict[str, np.ndarray] | None = None) -> list[Sample]:
    feed = feeds or {"x": np.zeros((len(outputs), 1))}
    return list(cut(feed, {"y": outputs}, len(outputs), labels))


def test_classes() -> None:
    scores, labels = RNG.standard_normal((200, 10)), RNG.integers(0, 10, 200)
    order = np.argsort(-scores, axis=1)
    assert value("top-1", samples_of(scores, labels)) == np.mean(order[:, 0] == labels)
    assert value("top-5", samples_of(scores, labels)) == np.mean((order[:, :5] == labels[:, None]).any(axis=1))
    other = RNG.standard_normal((200, 10))
    same = np.mean(scores.argmax(axis=1) == other.argmax(axis=1))
    assert value("agreement", samples_of(other), samples_of(scores)) == same


@pytest.mark.parametrize("form", ["first", "last", "classes"])
def test_mean_iou_is_that_of_sklearn(form: str) -> None:
    scores, labels = RNG.standard_normal((6, 4, 5, 7)), RNG.integers(0, 4, (6, 5, 7))
    labels[0, 0] = 255  # not judged
    found = scores.argmax(axis=1)
    outputs = {"first": scores, "last": scores.transpose(0, 2, 3, 1), "classes": found}[form]
    told = labels != 255
    wanted = jaccard_score(labels[told], found[told], average="macro")
    assert value("mean-iou", samples_of(outputs, labels)) == pytest.approx(wanted)


def test_mean_iou_of_masks_in_bytes() -> None:
    scores, labels = RNG.standard_normal((4, 21, 5, 7)), RNG.integers(0, 21, (4, 5, 7))
    wanted = value("mean-iou", samples_of(scores, labels))
    assert value("mean-iou", samples_of(scores, labels.astype(np.uint8))) == wanted
    assert value("mean-iou", samples_of(scores.argmax(axis=1).astype(np.uint8), labels.astype(np.uint8))) == wanted


def test_labels_that_say_nothing() -> None:
    with pytest.raises(ValueError, match="no pixel's label is among the 3 classes"):
        value("mean-iou", samples_of(RNG.standard_normal((2, 3, 4, 4)), np.full((2, 4, 4), 255)))
    with pytest.raises(ValueError, match="a label is nan; leave such samples out"):
        value("spearman", samples_of(RNG.standard_normal((3, 1)), np.array([1.0, np.nan, 2.0])))


def test_rank_correlation_of_numbers_and_of_pairs_of_texts() -> None:
    found, labels = RNG.standard_normal((50, 1)), RNG.standard_normal(50)
    assert value("spearman", samples_of(found, labels)) == pytest.approx(spearmanr(found[:, 0], labels).statistic)
    vectors, scores = RNG.standard_normal((30, 2, 8)), RNG.standard_normal(30)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in vectors]
    pairs = [(row, scores[row]) for row in range(30) for _ in range(2)]
    wanted = spearmanr(cosines, scores).statistic
    assert value("spearman", samples_of(vectors.reshape(60, 8), np.array(pairs))) == pytest.approx(wanted)
    tokens = np.stack([vectors.reshape(60, 8), 9 * np.ones((60, 8))], axis=1)  # the second token is padding
    mask = np.tile([1, 0], (60, 1))
    masked = samples_of(tokens, np.array(pairs), {"attention_mask": mask})
    assert value("spearman", masked) == pytest.approx(wanted)


def test_perplexity() -> None:
    scores, ids = RNG.standard_normal((3, 6, 11)), RNG.integers(0, 11, (3, 6))
    mask = np.ones((3, 6), np.int64)
    mask[1, 4:] = 0
    logs = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
    each = [-logs[n, t, ids[n, t + 1]] for n in range(3) for t in range(5) if mask[n, t + 1]]
    found = value("perplexity", samples_of(scores, None, {"input_ids": ids, "attention_mask": mask}))
    assert found == pytest.approx(np.exp(np.mean(each)))


def test_word_error_rate() -> None:
    pytest.importorskip("jiwer", reason="needs jiwer, which is not there")
    labels = np.array(["a cat sat", "so it was"])
    assert value("word-error-rate", samples_of(np.array([["a cat"], ["so it is"]]), labels)) == pytest.approx(2 / 6)
    words = ["a", "cat", "sat", "so", "it", "was"]
    ids = np.array([[0, 1, 2], [3, 4, 4]])
    decoded = value("word-error-rate", samples_of(ids, labels), decode=lambda ids: " ".join(words[i] for i in ids))
    assert decoded == pytest.approx(1 / 6)


def test_average_precision_by_hand() -> None:
    pytest.importorskip("pycocotools", reason="needs pycocotools, which is not there")
    truth = np.array([[[1, 0, 0, 10, 10], [2, 20, 20, 30, 40], [-1, 0, 0, 0, 0]]], np.float64)

    def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> float:
        outputs = {"boxes": np.array([boxes]), "scores": np.array([scores]), "labels": np.array([labels])}
        metric = named_metric("map", ())
        notes = [metric.note(x) for x in cut({}, outputs, 1, truth)]
        return metric.value(notes, notes)

    right = [[0.0, 0, 10, 10], [20, 20, 30, 40]]
    assert found(right, [0.9, 0.8], [1, 2]) == pytest.approx(1)
    assert found(right, [0.9, 0.8], [1, 1]) == pytest.approx(0.5)
    assert found([[0, 0, 10, 7.2], right[1]], [0.9, 0.8], [1, 2]) == pytest.approx(0.5 + 0.5 * 5 / 10)  # IoU 0.72


@pytest.mark.parametrize("name", NAMES)
def test_outputs_that_a_metric_cannot_read(name: str) -> None:
    metric = named_metric(name, ())
    with pytest.raises(ValueError, match=r"labels are|no output|needs|output of 16 numbers"):
        metric.value([metric.note(Sample({}, {"y": np.zeros((2, 2, 2, 2))}, None))], [])


def test_an_unknown_name_is_told_what_is_like_it() -> None:
    with pytest.raises(RecipeError, match=r"did you mean top-1\?.*file.py:function"):
        named_metric("top1", ())


def test_feeds_of_several_samples_are_cut_by_their_labels() -> None:
    outputs = {"y": np.arange(6.0).reshape(3, 2)}
    samples = list(cut({"x": np.zeros((3, 1))}, outputs, 1, np.arange(3)[None]))
    assert [sample.label for sample in samples] == [0, 1, 2] and samples[1].outputs["y"].tolist() == [2, 3]
    whole = list(cut({"x": np.zeros((3, 1))}, outputs, 1, np.array([7])))
    assert [sample.label for sample in whole] == [7] and whole[0].outputs["y"].shape == (3, 2)


def test_the_standard_error_is_that_of_a_mean() -> None:
    dense, other = RNG.standard_normal(2000), RNG.standard_normal(2000)
    metric = Metric("mean", lambda sample: sample, mean)
    wanted = (other - dense).std(ddof=1) / np.sqrt(2000)
    assert standard_error(metric, list(dense), list(other)) == pytest.approx(wanted, rel=0.5)  # of 20 groups
    assert standard_error(metric, list(dense), list(dense)) == 0
    assert standard_error(metric, [1.0], [2.0]) is None


def test_pixels_of_a_class_that_the_output_has_not() -> None:
    scores = RNG.standard_normal((2, 4, 5, 7))
    with pytest.raises(ValueError, match=r"classes 0 … 3, or 255 for none, not 4"):
        value("mean-iou", samples_of(scores, np.full((2, 5, 7), 4)))
    one = RNG.standard_normal((2, 1, 5, 7))  # a score of one class: nothing to choose the largest of
    with pytest.raises(ValueError, match=r"classes 0 … 0"):
        value("mean-iou", samples_of(one, RNG.integers(0, 2, (2, 5, 7))))


def test_padding_in_front_predicts_nothing() -> None:
    scores, ids = RNG.standard_normal((1, 6, 11)), RNG.integers(0, 11, (1, 6))
    mask = np.array([[0, 0, 1, 1, 1, 1]])
    padded = value("perplexity", samples_of(scores, None, {"input_ids": ids, "attention_mask": mask}))
    plain = value("perplexity", samples_of(scores[:, 2:], None, {"input_ids": ids[:, 2:]}))
    assert padded == pytest.approx(plain)
    with pytest.raises(ValueError, match="input_ids reach"):
        value("perplexity", samples_of(scores[:, :, :3], None, {"input_ids": ids + 3}))


def pairs_of(vectors: np.ndarray, scores: np.ndarray) -> list[Sample]:
    """Embeddings (rows, 2, width), all first texts before all second ones, as sorting by length may leave them."""
    rows = len(vectors)
    labels = np.array([(row, scores[row]) for _ in range(2) for row in range(rows)])
    return samples_of(vectors.transpose(1, 0, 2).reshape(2 * rows, -1), labels)


def test_a_model_that_says_the_same_of_all_ranks_nothing() -> None:
    scores = RNG.standard_normal(30)
    assert value("spearman", pairs_of(np.ones((30, 2, 8)), scores)) == 0
    assert value("spearman", samples_of(np.ones((30, 1)), scores)) == 0


def test_pairs_of_texts_are_left_out_together() -> None:
    metric, rows = named_metric("spearman", ()), 203
    vectors, scores = RNG.standard_normal((rows, 2, 8)), RNG.standard_normal(rows)
    dense, other = (
        [metric.note(sample) for sample in pairs_of(x, scores)]
        for x in (vectors, vectors + 0.5 * RNG.standard_normal(vectors.shape))
    )
    by_row = {first[1][0]: (first, second) for first, second in zip(dense[:rows], dense[rows:], strict=True)}
    other_by_row = {a[1][0]: (a, b) for a, b in zip(other[:rows], other[rows:], strict=True)}
    differences = []
    for group in range(20):  # the same by whole pairs
        kept = [row for row in range(rows) if row % 20 != group]
        a, b = ([note for row in kept for note in of[row]] for of in (by_row, other_by_row))
        differences.append(metric.value(b, a) - metric.value(a, a))
    wanted = np.sqrt(19 / 20 * np.square(np.array(differences) - np.mean(differences)).sum())
    assert standard_error(metric, dense, other) == pytest.approx(wanted)
    with pytest.raises(ValueError, match=r"of 200 of 203 text pairs one text alone .* --eval"):
        metric.value(dense[: rows + 3], dense[: rows + 3])
    assert metric.value(dense[1:], dense[1:]) == pytest.approx(metric.value(dense, dense), abs=0.05)  # but for one


def test_boxes_of_all_images_in_one_output_are_those_of_none() -> None:
    outputs = {"boxes": np.ones((7, 4)), "scores": np.ones(7), "labels": np.ones(7)}  # of two images
    truth = np.array([[[1, 0, 0, 10, 10]], [[1, 0, 0, 20, 20]]], np.float64)
    (first, second) = cut({"x": np.zeros((2, 3))}, outputs, 2, truth)
    assert not first.outputs and second.feed["x"].shape == (3,)
    with pytest.raises(ValueError, match="no output is named like boxes"):
        named_metric("map", ()).note(first)


def test_an_image_with_a_single_box() -> None:
    outputs = {"boxes": np.ones((1, 7, 4)), "scores": np.ones((1, 7)), "labels": np.ones((1, 7))}
    (sample,) = cut({"x": np.zeros((1, 3))}, outputs, 1, np.array([[[1, 0, 0, 10, 10]]], np.float64))
    truth, found = named_metric("map", ()).note(sample)
    assert truth.tolist() == [[1, 0, 0, 10, 10]] and found.shape == (7, 6)
