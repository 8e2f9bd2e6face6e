"""What `open_samples` makes of each kind of data, and what all kinds have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_decoders import NAMES, WORDS, decoder
from small_graphs import run

from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.readers.feeds import spread
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.model import InputSpec, input_specs

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
X = [InputSpec("x", FLOAT, (None, 4))]


@pytest.mark.parametrize(("available", "count"), [(1, 1), (7, 7), (64, 64), (1000, 64), (5000, 1024), (50000, 50000)])
def test_spread_takes_distinct_indices_evenly(available: int, count: int) -> None:
    order = spread(available, count)
    assert len(set(order)) == count
    gaps = np.diff([-1, *sorted(order), available])
    assert max(gaps) <= -(-available // count) + 1


@pytest.mark.parametrize("count", [100, 1024, 10000])
def test_first_and_last_samples_are_spread_over_sorted_data(count: int) -> None:
    order = np.array(spread(count, count))
    for part in (order[: count // 10], order[-(count // 10) :], order[-min(256, count // 10) :]):
        assert abs(part.mean() / count - 0.5) < 0.1
        assert part.min() < 0.12 * count and part.max() > 0.88 * count


def test_fewer_samples_than_asked_for_is_noted() -> None:
    samples = open_samples({"x": np.zeros((5, 4), np.float32)}, X, DataOptions(samples=8))
    assert samples.count == 5
    assert "5 of 8 samples asked for were found" in samples.notes[0] and "damping" in samples.notes[0]
    assert open_samples({"x": np.zeros((5, 4), np.float32)}, X, DataOptions()).notes == ()


def test_samples_of_evenly_spread_rows() -> None:
    rows = np.arange(12, dtype=np.float32)[:, None].repeat(4, 1)
    samples = open_samples({"x": rows}, X, DataOptions(samples=3))
    (batch,) = samples.read(0, 3)
    np.testing.assert_array_equal(batch.feed["x"][:, 0], [2, 6, 10])


def test_batches_are_in_order_and_hold_no_other_sample() -> None:
    rows = np.arange(10, dtype=np.float32)[:, None].repeat(4, 1)
    samples = open_samples({"x": rows}, X, DataOptions(batch=4))
    assert [(b.first, b.count) for b in samples.read(1, 10)] == [(1, 4), (5, 4), (9, 1)]
    everything = np.concatenate([b.feed["x"] for b in samples.read(0, 10)])
    np.testing.assert_array_equal(everything[3:7], next(samples.read(3, 7)).feed["x"])
    assert samples.batch == 4 and samples.step == 1


def test_batch_changes_no_sample() -> None:
    rows = np.random.default_rng(0).standard_normal((37, 4), np.float32)
    small, large = (open_samples({"x": rows}, X, DataOptions(samples=20, batch=batch)) for batch in (1, 16))
    np.testing.assert_array_equal(
        np.concatenate([b.feed["x"] for b in small.read(0, 20)]),
        np.concatenate([b.feed["x"] for b in large.read(0, 20)]),
    )


def test_fixed_batch_drops_what_does_not_fill_a_feed() -> None:
    inputs = [InputSpec("x", FLOAT, (4, 2))]
    samples = open_samples({"x": np.zeros((11, 2), np.float32)}, inputs, DataOptions(batch=7))
    assert (samples.count, samples.step, samples.batch) == (8, 4, 4)
    assert [b.count for b in samples.read(0, 8)] == [4, 4]
    assert any("3 of 11" in note for note in samples.notes) and any("--batch 7" in note for note in samples.notes)
    with pytest.raises(ValueError, match="steps of 4"):
        list(samples.read(0, 6))
    with pytest.raises(
        CalibrationError, match=r"the samples .* do not fill one feed: there are 3, and the model takes 4"
    ):
        open_samples({"x": np.zeros((3, 2), np.float32)}, inputs, DataOptions())


def test_part() -> None:
    rows = np.arange(10, dtype=np.float32)[:, None].repeat(4, 1)
    samples = open_samples({"x": rows}, X, DataOptions(batch=4))
    part = samples.part(6, 10)
    assert part.count == 4
    (batch,) = part.read(1, 4)
    assert (batch.first, batch.count) == (1, 3)
    np.testing.assert_array_equal(batch.feed["x"][:, 0], [7, 8, 9])
    with pytest.raises(ValueError, match="do not lie among"):
        list(part.read(0, 5))


def test_samples_pass_through() -> None:
    samples = open_samples({"x": np.zeros((5, 4), np.float32)}, X, DataOptions())
    assert open_samples(samples, X, DataOptions()) is samples


def test_random() -> None:
    inputs = [
        InputSpec("x", FLOAT, (None, 3, None)),
        InputSpec("ids", INT, (None, 5)),
        InputSpec("attention_mask", INT, (None, 5)),
        InputSpec("flag", np.dtype(bool), (None, 50)),
        InputSpec("rate", INT, ()),
    ]
    samples = open_samples("random", inputs, DataOptions(allow_random=True, batch=10))
    assert samples.count == 64 and samples.synthetic
    feed = next(samples.read(0, 64)).feed
    assert {name: array.shape for name, array in feed.items()} == {
        "x": (10, 3, 16),
        "ids": (10, 5),
        "attention_mask": (10, 5),
        "flag": (10, 50),
        "rate": (),
    }
    assert [feed[spec.name].dtype for spec in inputs] == [spec.dtype for spec in inputs]
    assert feed["ids"].min() >= 0 and 20 < feed["ids"].max() < 100
    assert (feed["attention_mask"] == 1).all() and 0 < feed["flag"].mean() < 1
    assert abs(feed["x"].std() - 1) < 0.2
    again = open_samples("random", inputs, DataOptions(allow_random=True, batch=3))
    np.testing.assert_array_equal(next(again.read(6, 9)).feed["x"], feed["x"][6:9])
    other = open_samples("random", inputs, DataOptions(allow_random=True, batch=10, seed=1))
    assert not np.array_equal(next(other.read(0, 10)).feed["x"], feed["x"])


def test_random_fills_a_large_fixed_batch_and_takes_a_size() -> None:
    inputs = [InputSpec("x", FLOAT, (100, 3, None, None))]
    samples = open_samples("random", inputs, DataOptions(allow_random=True, size=(8, 6)))
    assert samples.count == 100
    assert next(samples.read(0, 100)).feed["x"].shape == (100, 3, 8, 6)


def random_feed(proto: onnx.ModelProto, **options: Any) -> dict[str, np.ndarray]:
    model = ir.from_proto(proto)
    samples = open_samples("random", input_specs(model), DataOptions(allow_random=True, **options), model)
    return next(samples.read(0, samples.count)).feed


@pytest.mark.parametrize(
    "proto",
    [
        *(decoder(names) for names in NAMES.values()),
        decoder(tokens=1),
        decoder(tokens=1, past=8),
        decoder(extra=("attention_mask", "cache_position")),
        decoder(NAMES["decoder"], states=True, merged=True),
    ],
    ids=[*NAMES, "one", "fixed", "steps", "merged"],
)
def test_random_numbers_fill_a_decoder_with_caches(proto: onnx.ModelProto) -> None:
    feed = random_feed(proto)
    tokens, past = feed["input_ids"].shape[1], next(x for name, x in feed.items() if x.ndim > 3).shape[-2]
    assert past > 1 and feed["input_ids"].max() < WORDS
    assert feed["attention_mask"].shape == (len(feed["input_ids"]), past + tokens)
    places = feed.get("position_ids", feed.get("cache_position"))
    assert places is not None and (np.atleast_2d(places) == np.arange(past, past + tokens)).all()
    assert np.isfinite(run(proto, feed)[0]).all()


def test_random_caches_of_several_samples_share_a_feed_where_all_begin_with_the_batch() -> None:
    assert {len(array) for array in random_feed(decoder(), batch=3).values()} == {3}
    assert random_feed(decoder(NAMES["stacked"]), batch=3)["past.0"].shape[:2] == (2, 1)


def test_random_must_be_allowed() -> None:
    with pytest.raises(CalibrationError, match="--allow-random"):
        open_samples("random", X, DataOptions())


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", x=np.zeros((2, 4), np.float32))
    with pytest.raises(CalibrationError, match=r"calibratoin.npz: not found; did you mean .*calibration.npz\?"):
        open_samples(tmp_path / "calibratoin.npz", X, DataOptions())
    with pytest.raises(CalibrationError, match="nor is the folder"):
        open_samples(str(tmp_path / "no" / "x.npz"), X, DataOptions())


def test_folders_of_no_or_two_kinds(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"this folder holds no \.npz, .npy or image file"):
        open_samples(tmp_path, X, DataOptions())
    (tmp_path / "a.csv").write_text("A sentence.\n")
    with pytest.raises(CalibrationError, match=r"did you mean .*a\.csv"):
        open_samples(tmp_path, X, DataOptions())
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4), np.float32))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(CalibrationError, match="both arrays and images"):
        open_samples(tmp_path, X, DataOptions())


@pytest.mark.parametrize(
    ("name", "message"),
    [("data.pkl", ".pkl is no known kind"), ("feeds.py", "say which function"), ("cat.jpg", "give the folder")],
)
def test_files_that_are_no_data(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CalibrationError, match=message):
        open_samples(tmp_path / name, X, DataOptions())


@pytest.mark.parametrize(
    ("data", "message"),
    [(3, "of type int cannot be read"), (iter([]), "pass the function"), (np.zeros((2, 4)), "of type ndarray")],
)
def test_objects_that_are_no_data(data: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_samples(data, X, DataOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DataOptions(preprocess="unit"), "--preprocess does not apply to arrays"),
        (DataOptions(tokenizer="t.json"), "--tokenizer does not apply to arrays"),
        (DataOptions(augment=2), "--augment does not apply to arrays"),
        (DataOptions(samples=0), "--samples 0: ask for at least 1"),
        (DataOptions(batch=-1), "--batch -1: ask for at least 1"),
    ],
)
def test_options_that_do_not_apply(options: DataOptions, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_samples({"x": np.zeros((5, 4), np.float32)}, X, options)
