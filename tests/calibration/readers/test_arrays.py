"""Arrays from .npz and .npy files, folders and dicts."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.readers.arrays import _npz_headers
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.model import InputSpec

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
X = [InputSpec("x", FLOAT, (None, 3, 4, 4))]
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((7, 3, 4, 4), np.float32)
STATEFUL = [
    InputSpec("input", FLOAT, (None, 8)),
    InputSpec("state", FLOAT, (2, None, 5)),
    InputSpec("rate", INT, ()),
]


def stateful_feeds() -> dict[str, np.ndarray]:
    return {
        "input": RNG.standard_normal((6, 1, 8), np.float32),
        "state": RNG.standard_normal((6, 2, 1, 5), np.float32),
        "rate": np.array(16000),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "data.npz", x=ROWS)
    samples = open_samples(tmp_path / "data.npz", X, DataOptions(batch=4))
    assert samples.count == 7
    np.testing.assert_array_equal(np.concatenate([b.feed["x"] for b in samples.read(0, 7)]), ROWS)
    np.testing.assert_array_equal(np.concatenate([b.feed["x"] for b in samples.read(0, 7)]), ROWS)  # and again
    assert str(tmp_path / "data.npz") in samples.source


def test_uncompressed_arrays_stay_on_disk(tmp_path: Path) -> None:
    fortran = np.asfortranarray(ROWS)
    np.savez(tmp_path / "data.npz", x=fortran, y=np.zeros((0, 2)), z=np.array(3))
    np.savez_compressed(tmp_path / "packed.npz", x=ROWS)
    headers = _npz_headers(tmp_path / "data.npz", "xz")
    assert headers["x"] is not None and headers["x"].offset is not None and headers["x"].fortran
    assert headers["y"] is None  # not looked at
    packed = _npz_headers(tmp_path / "packed.npz", "x")["x"]
    assert packed is not None and packed.offset is None
    inputs = [*X, InputSpec("z", INT, ())]
    np.savez(tmp_path / "data.npz", x=fortran, z=np.array(3))
    (batch,) = open_samples(tmp_path / "data.npz", inputs, DataOptions()).read(0, 7)
    np.testing.assert_array_equal(batch.feed["x"], ROWS)
    assert batch.feed["x"].flags.c_contiguous and type(batch.feed["x"]) is np.ndarray
    assert batch.feed["z"].shape == () and batch.feed["z"] == 3


def test_npy_and_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", ROWS[3:])
    np.savez(tmp_path / "a.npz", x=ROWS[:3])
    (tmp_path / "notes.txt").write_text("not data")
    samples = open_samples(str(tmp_path), X, DataOptions(batch=4))
    np.testing.assert_array_equal(np.concatenate([b.feed["x"] for b in samples.read(0, 7)]), ROWS)
    assert [b.count for b in samples.read(0, 7)] == [4, 3]
    assert open_samples(tmp_path / "b.npy", X, DataOptions()).count == 4
    with pytest.raises(CalibrationError, match="names no input"):
        open_samples(tmp_path / "b.npy", STATEFUL, DataOptions())


def test_files_of_other_lengths_make_feeds_of_their_own(tmp_path: Path) -> None:
    inputs = [InputSpec("x", FLOAT, (None, None))]
    for i, length in enumerate((3, 3, 5, 3)):
        np.save(tmp_path / f"{i}.npy", np.full((2, length), i, np.float32))
    samples = open_samples(tmp_path, inputs, DataOptions())
    assert [b.feed["x"].shape for b in samples.read(0, 8)] == [(4, 3), (2, 5), (2, 3)]
    assert [b.first for b in samples.read(0, 8)] == [0, 4, 6]
    with pytest.raises(CalibrationError, match=r"samples of input 'x' differ \(\(3,\) and \(5,\)\)"):
        list(open_samples(tmp_path, [InputSpec("x", FLOAT, (8, None))], DataOptions()).read(0, 8))


def test_whole_feeds(tmp_path: Path) -> None:
    feeds = stateful_feeds()
    np.savez(tmp_path / "data.npz", **feeds)
    for data in (tmp_path / "data.npz", feeds, feeds | {"rate": np.full(6, 16000)}):
        samples = open_samples(data, STATEFUL, DataOptions(batch=4))
        assert (samples.count, samples.step, samples.batch) == (6, 1, 1)
        batches = list(samples.read(2, 5))
        assert [(b.first, b.count) for b in batches] == [(2, 1), (3, 1), (4, 1)]
        np.testing.assert_array_equal(batches[1].feed["state"], feeds["state"][3])
        np.testing.assert_array_equal(batches[1].feed["input"], feeds["input"][3])
        assert batches[1].feed["rate"] == 16000 and batches[1].feed["rate"].shape == ()


def test_whole_feeds_repeat_only_what_the_graph_fixes() -> None:
    inputs = [InputSpec("x", FLOAT, (None, 2)), InputSpec("anchors", FLOAT, (5, 4))]
    anchors = RNG.standard_normal((5, 4), np.float32)
    samples = open_samples({"x": np.zeros((3, 1, 2), np.float32), "anchors": anchors}, inputs, DataOptions())
    assert samples.count == 3
    np.testing.assert_array_equal(next(samples.read(2, 3)).feed["anchors"], anchors)
    feeds = stateful_feeds() | {"input": np.zeros((5, 8), np.float32)}
    with pytest.raises(CalibrationError, match="'input' has no axis that counts feeds"):
        open_samples(feeds, STATEFUL, DataOptions())


def test_rows_beside_whole_feeds_are_feeds_of_one_sample() -> None:
    feeds = stateful_feeds() | {"input": RNG.standard_normal((6, 8), np.float32)}
    samples = open_samples(feeds, STATEFUL, DataOptions())
    assert samples.count == 6
    states = {row.tobytes(): number for number, row in enumerate(feeds["state"])}
    for batch in samples.read(0, 6):
        number = states[batch.feed["state"].tobytes()]
        np.testing.assert_array_equal(batch.feed["input"], feeds["input"][number : number + 1])
    state_first = [*STATEFUL[:1], InputSpec("state", FLOAT, (2, None, 5)), STATEFUL[2]]
    with pytest.raises(CalibrationError, match="'state' has no axis that counts feeds"):  # no batch in front
        open_samples(stateful_feeds() | {"state": np.zeros((2, 6, 5), np.float32)}, state_first, DataOptions())


def test_whole_feeds_must_agree() -> None:
    with pytest.raises(CalibrationError, match="'state' has 5 feeds, but 'input' has 6; axis 0 must agree"):
        open_samples(stateful_feeds() | {"state": np.zeros((5, 2, 1, 5), np.float32)}, STATEFUL, DataOptions())
    with pytest.raises(CalibrationError, match=r"'state' is feeds of \(3, 1, 5\).*3 where 2 is fixed"):
        open_samples(stateful_feeds() | {"state": np.zeros((6, 3, 1, 5), np.float32)}, STATEFUL, DataOptions())


def test_files_must_have_one_form(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.save(tmp_path / "b.npy", ROWS[None])
    with pytest.raises(CalibrationError, match=r"a\.npy holds samples, but .*b\.npy holds feeds"):
        open_samples(tmp_path, X, DataOptions())


def test_samples_along_different_axes() -> None:
    data = {"input": np.zeros((2, 8), np.float32), "state": np.zeros((2, 2, 5), np.float32), "rate": np.array(1)}
    inputs = [InputSpec("input", FLOAT, (1, 8)), *STATEFUL[1:]]
    with pytest.raises(CalibrationError, match=r"do not lie along the first axis of every input.*give whole feeds"):
        open_samples(data, inputs, DataOptions())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.float32, np.float16),
        (np.int32, np.int64),
        (np.int64, np.int32),
        (np.uint8, np.int64),
        (np.bool_, np.int64),
        (">f4", np.float32),
    ],
)
def test_safe_conversions(given: type, wanted: type) -> None:
    values = np.array([[0, 1], [1, 1]]).astype(given)
    (batch,) = open_samples({"x": values}, [InputSpec("x", np.dtype(wanted), (None, 2))], DataOptions()).read(0, 2)
    assert batch.feed["x"].dtype == np.dtype(wanted) and batch.feed["x"].dtype.isnative
    np.testing.assert_array_equal(batch.feed["x"].astype(int), [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("values", "wanted", "message"),
    [
        (np.zeros((2, 2), np.uint8), np.float32, r"holds uint8 values, but the model takes float32; scale them"),
        (np.zeros((2, 2), np.int64), np.float32, r"holds int64 values, but the model takes float32"),
        (np.zeros((2, 2), np.float32), np.int64, r"holds float32 values, but the model takes int64; round them"),
        (np.zeros((2, 2), np.float32), np.bool_, r"holds float32 values, but the model takes bool; convert"),
        (np.zeros((2, 2), np.complex64), np.float32, r"holds complex64 values"),
        (np.array([["a", "b"]]), np.float32, r"holds str\d+ values"),
    ],
)
def test_unsafe_conversions(values: np.ndarray, wanted: type, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_samples({"x": values}, [InputSpec("x", np.dtype(wanted), (None, 2))], DataOptions())


@pytest.mark.parametrize(
    ("values", "wanted", "message"),
    [
        (np.array([[0], [2**40]]), np.int32, f"sample 1 of .*'x' holds {2**40}, which int32 cannot hold"),
        (np.array([[-1], [2]]), np.uint8, "sample 0 of .*'x' holds -1, which uint8 cannot hold"),
        (np.array([[0.0], [1e39]]), np.float32, "sample 1 of .*too large for float32"),
        (np.array([[0.0], [np.nan]]), np.float32, "sample 1 of .*'x' holds NaN; remove the sample"),
    ],
)
def test_values_are_checked_when_read(values: np.ndarray, wanted: type, message: str) -> None:
    samples = open_samples({"x": values}, [InputSpec("x", np.dtype(wanted), (None, 1))], DataOptions())
    with pytest.raises(CalibrationError, match=message):
        list(samples.read(0, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"X": ROWS}, "no array for the model's input 'x', only for 'X'; rename 'X' to it"),
        ({}, "no array for the model's input 'x', only for none; add it"),
        ({"x": ROWS, "label": np.zeros(7)}, "has 'label', which the model does not take; leave it out"),
        ({"x": ROWS[0]}, r"'x' has 3 axes, \(3, 4, 4\), but the model takes \(any, 3, 4, 4\); add the batch axis"),
        ({"x": ROWS[0, 0]}, r"'x' has 2 axes"),
        (
            {"x": np.zeros((7, 3, 5, 4), np.float32)},
            r"'x' is \(7, 3, 5, 4\).* 5 where 4 is fixed; bring it to that size",
        ),
        ({"x": np.zeros((7, 4, 4, 3), np.float32)}, "4 where 3 is fixed; move the channels to the front"),
        ({"x": ROWS[:0]}, "there are no samples in arrays from Python"),
    ],
)
def test_arrays_that_do_not_fit(data: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_samples(data, X, DataOptions())


def test_lengths_must_agree() -> None:
    inputs = [InputSpec("ids", INT, (None, 4)), InputSpec("mask", INT, (None, 4))]
    data = {"ids": np.zeros((5, 4), int), "mask": np.zeros((4, 4), int)}
    with pytest.raises(CalibrationError, match="'mask' has 4 samples, but 'ids' has 5; axis 0 must agree"):
        open_samples(data, inputs, DataOptions())


def test_nearest_name() -> None:
    inputs = [InputSpec("input_ids", INT, (None, 4)), InputSpec("attention_mask", INT, (None, 4))]
    data = {"input_ids": np.zeros((5, 4), int), "atention_mask": np.zeros((5, 4), int)}
    with pytest.raises(CalibrationError, match=r"input 'attention_mask', .*; rename 'atention_mask' to it"):
        open_samples(data, inputs, DataOptions())


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_broken_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"nothing that numpy wrote")
    with pytest.raises(CalibrationError, match=r"cannot be read \(.*; save it anew"):
        open_samples(path, X, DataOptions())
    (np.savez if name == "a.npz" else np.save)(path, ROWS)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(CalibrationError, match="cannot be read"):
        open_samples(path, X, DataOptions())


def test_damaged_compressed_array_is_found_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    rows = RNG.standard_normal((400, 3, 4, 4), np.float32)
    np.savez_compressed(path, x=rows)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    samples = open_samples(path, X, DataOptions())
    with pytest.raises(CalibrationError, match="cannot be read"):
        list(samples.read(0, samples.count))


@pytest.mark.parametrize("kind", ["npy", "npz", "packed"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(-4, 3)", "its header gives no shape"),
        ("(True, 3)", "its header gives no shape"),
        ("(4.0, 3)", "its header is damaged"),
        ("(99, 3)", "the file ends early"),
        ("(" * 4000, "its header is damaged"),
        ("{'shape':" * 900, "its header is damaged"),
    ],
)
def test_headers_that_lie(tmp_path: Path, kind: str, shape: str, message: str) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(48)
    path = tmp_path / ("x.npy" if kind == "npy" else "x.npz")
    if kind == "npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "packed" else zipfile.ZIP_STORED) as archive:
            archive.writestr("x.npy", data)
    with pytest.raises(CalibrationError, match=rf"x\.np. ?.*cannot be read \({message}\); save it anew"):
        open_samples(path, [InputSpec("x", FLOAT, (None, 3))], DataOptions())


def test_encrypted_members(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=ROWS)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    for start in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[start] |= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CalibrationError, match=r"cannot be read \(.*encrypted"):
        open_samples(tmp_path / "x.npz", X, DataOptions())


def test_packed_members_are_unpacked_once_and_only_those_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=ROWS, labels=np.arange(7))
    unpacked: list[str] = []
    original = np.lib.npyio.NpzFile.__getitem__

    def counting(self: Any, name: str) -> Any:
        unpacked.append(name)
        return original(self, name)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", counting)
    samples = open_samples(tmp_path / "x.npz", X, DataOptions(batch=2))
    assert unpacked == []
    assert len(list(samples.read(0, 7))) == len(list(samples.read(0, 7))) == 4
    assert sorted(unpacked) == ["labels", "x"]
    np.savez_compressed(tmp_path / "more.npz", x=ROWS, **{f"a{i}": np.zeros(4) for i in range(9)})
    with pytest.raises(CalibrationError, match=r"'a0', 'a1'.*which the model does not take"):
        open_samples(tmp_path / "more.npz", X, DataOptions())
    assert sorted(unpacked) == ["labels", "x"]


def test_text_for_an_input_of_text(tmp_path: Path) -> None:
    spec = [InputSpec("s", np.dtype(object), (None, 1))]
    words = np.array([["a"], ["b"], ["grün"]])
    np.savez(tmp_path / "s.npz", s=words)
    for data in (tmp_path / "s.npz", {"s": words}, {"s": words.astype(object)}, [{"s": words}]):
        feed = next(iter(open_samples(data, spec, DataOptions()).feeds()))["s"]
        assert feed.dtype == object and feed.tolist() == [["a"], ["b"], ["grün"]]
    np.savez(tmp_path / "o.npz", s=words.astype(object))
    with pytest.raises(CalibrationError, match="holds Python objects; save plain arrays of numbers, or of str"):
        open_samples(tmp_path / "o.npz", spec, DataOptions())
    with pytest.raises(CalibrationError, match="holds other objects than text"):
        next(open_samples({"s": np.array([[1]], dtype=object)}, spec, DataOptions()).read(0, 1))
    with pytest.raises(CalibrationError, match=r"holds float64 values, but the model takes text; .*astype\(str\)"):
        open_samples({"s": np.zeros((2, 1))}, spec, DataOptions())


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"x": 1}], dtype=object))
    with pytest.raises(CalibrationError, match="holds Python objects"):
        open_samples(tmp_path / "a.npz", X, DataOptions())


def test_labels_come_with_their_samples(tmp_path: Path) -> None:
    classes = np.arange(7) % 3
    np.savez(tmp_path / "data.npz", x=ROWS, labels=classes)
    for data in (tmp_path / "data.npz", {"x": ROWS, "labels": classes}):
        samples = open_samples(data, X, DataOptions(batch=3))
        for batch in samples.read(0, 7):
            assert batch.labels is not None and batch.labels.dtype == np.int64 and set(batch.feed) == {"x"}
            for x, label in zip(batch.feed["x"], batch.labels, strict=True):
                assert label == classes[[np.array_equal(x, row) for row in ROWS].index(True)]
    assert next(open_samples({"x": ROWS}, X, DataOptions()).read(0, 7)).labels is None
    for wrong in (classes[:-1], np.int64(3)):
        with pytest.raises(CalibrationError, match=r"'labels' is .* of each of the 7 samples along its first axis"):
            open_samples({"x": ROWS, "labels": wrong}, X, DataOptions())


@pytest.mark.parametrize("labels", [np.arange(7.0), np.arange(14).reshape(7, 2), np.array(list("abcdefg"))])
def test_labels_may_be_anything_that_there_is_one_of_for_each_sample(labels: np.ndarray) -> None:
    for batch in open_samples({"x": ROWS, "labels": labels}, X, DataOptions(batch=3)).read(0, 7):
        assert batch.labels is not None and batch.labels.shape[1:] == labels.shape[1:]
        for x, label in zip(batch.feed["x"], batch.labels, strict=True):
            assert np.array_equal(label, labels[[np.array_equal(x, row) for row in ROWS].index(True)])


def test_an_input_named_labels_is_an_input() -> None:
    specs = [*X, InputSpec("labels", INT, (None,))]
    batch = next(open_samples({"x": ROWS, "labels": np.arange(7)}, specs, DataOptions()).read(0, 7))
    assert batch.labels is None and "labels" in batch.feed
