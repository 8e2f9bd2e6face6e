"""Text files through a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.readers.text import read_sentences
from onnx_obc.calibration.samples import Samples
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.model import InputSpec

INT = np.dtype(np.int64)
WORDS = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3} | {f"w{i}": 4 + i for i in range(50)}
BERT = [InputSpec(name, INT, (None, None)) for name in ("input_ids", "attention_mask", "token_type_ids")]


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    made = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.enable_padding(pad_id=3, length=64)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return str(path)


def write(path: Path, lengths: list[int]) -> Path:
    """A .txt whose line i is `w<i>` and then `w0` up to a number of words."""
    path.write_text("\n".join(" ".join([f"w{i % 50}", *["w0"] * (length - 1)]) for i, length in enumerate(lengths)))
    return path


def feeds(samples: Samples) -> list[dict[str, np.ndarray]]:
    return [batch.feed for batch in samples.read(0, samples.count)]


def test_sentences_of_one_length_share_a_feed(tmp_path: Path, tokenizer: str) -> None:
    path = write(tmp_path / "a.txt", [3, 1, 3, 2])
    inputs = [*BERT, InputSpec("position_ids", np.dtype(np.int32), (None, None))]
    samples = open_samples(path, inputs, DataOptions(tokenizer=tokenizer))
    first, second, third = feeds(samples)
    np.testing.assert_array_equal(first["input_ids"], [[1, 4, 4, 4, 2], [1, 6, 4, 4, 2]])
    np.testing.assert_array_equal(second["input_ids"], [[1, 7, 4, 2]])
    np.testing.assert_array_equal(third["input_ids"], [[1, 5, 2]])
    assert (first["attention_mask"] == 1).all() and (first["token_type_ids"] == 0).all()
    np.testing.assert_array_equal(first["position_ids"], [np.arange(5)] * 2)
    assert first["position_ids"].dtype == np.int32 and first["input_ids"].dtype == np.int64
    assert [(b.first, b.count) for b in samples.read(1, 4)] == [(1, 1), (2, 1), (3, 1)]


def test_last_tenth_is_sorted_by_itself(tmp_path: Path, tokenizer: str) -> None:
    lengths = [1 + i % 20 for i in range(100)]
    samples = open_samples(write(tmp_path / "a.txt", lengths), BERT, DataOptions(tokenizer=tokenizer))
    tokens = [b.feed["input_ids"].shape[1] for b in samples.read(0, 100) for _ in range(b.count)]
    assert tokens[:90] == sorted(tokens[:90], reverse=True) and tokens[90:] == sorted(tokens[90:], reverse=True)
    assert tokens[90] > tokens[89]
    assert sorted(tokens) == sorted(length + 2 for length in lengths)
    first = [batch.feed["input_ids"][row, 1] for batch in samples.read(0, 100) for row in range(batch.count)]
    for position, word in enumerate(first):  # each under the name of its own sentence
        assert samples.name_of(position).startswith(f"'w{word - 4}") and samples.name_of(position).endswith("a.txt")


def test_fixed_length_is_padded_and_cut(tmp_path: Path, tokenizer: str) -> None:
    inputs = [InputSpec(spec.name, INT, (None, 6)) for spec in BERT]
    samples = open_samples(write(tmp_path / "a.txt", [9, 2]), inputs, DataOptions(tokenizer=tokenizer))
    (feed,) = feeds(samples)
    np.testing.assert_array_equal(feed["input_ids"], [[1, 4, 4, 4, 4, 2], [1, 5, 4, 2, 3, 3]])
    np.testing.assert_array_equal(feed["attention_mask"], [[1] * 6, [1, 1, 1, 1, 0, 0]])


def test_fixed_batch_is_padded_to_its_longest(tmp_path: Path, tokenizer: str) -> None:
    inputs = [InputSpec(spec.name, INT, (2, None)) for spec in BERT]
    path = write(tmp_path / "a.txt", [4, 3, 2, 1, 1])
    first, second = feeds(open_samples(path, inputs, DataOptions(tokenizer=tokenizer)))
    assert first["input_ids"].shape[0] == second["input_ids"].shape[0] == 2
    for feed in (first, second):
        assert feed["attention_mask"].all(axis=1).any()  # no longer than its longest sentence
        assert ((feed["input_ids"] == 3) == (feed["attention_mask"] == 0)).all()
    assert not first["attention_mask"].all()


def test_padding_on_the_left(tmp_path: Path, tokenizer: str) -> None:
    made = Tokenizer.from_file(tokenizer)
    made.enable_padding(direction="left", pad_id=0, pad_type_id=1)
    made.save(tokenizer)
    inputs = [InputSpec(spec.name, INT, (None, 5)) for spec in BERT]
    (feed,) = feeds(open_samples(write(tmp_path / "a.txt", [1]), inputs, DataOptions(tokenizer=tokenizer)))
    np.testing.assert_array_equal(feed["input_ids"], [[0, 0, 1, 4, 2]])
    np.testing.assert_array_equal(feed["attention_mask"], [[0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(feed["token_type_ids"], [[1, 1, 0, 0, 0]])


def test_max_tokens(tmp_path: Path, tokenizer: str) -> None:
    path = write(tmp_path / "a.txt", [300])
    assert feeds(open_samples(path, BERT, DataOptions(tokenizer=tokenizer)))[0]["input_ids"].shape == (1, 128)
    options = DataOptions(tokenizer=tokenizer, max_tokens=9)
    assert feeds(open_samples(path, BERT[:1], options))[0]["input_ids"].shape == (1, 9)
    with pytest.raises(CalibrationError, match="2 tokens leave no room for text"):
        open_samples(path, BERT, DataOptions(tokenizer=tokenizer, max_tokens=2))


def test_batch_changes_no_sample(tmp_path: Path, tokenizer: str) -> None:
    path = write(tmp_path / "a.txt", [1 + i % 7 for i in range(60)])
    small, large = (open_samples(path, BERT, DataOptions(tokenizer=tokenizer, batch=batch)) for batch in (1, 16))
    rows = [[row.tolist() for feed in feeds(each) for row in feed["input_ids"]] for each in (small, large)]
    assert rows[0] == rows[1]
    assert len(feeds(large)) < 15 and small.batch == 1


@pytest.mark.parametrize(
    ("name", "content", "sentences"),
    [
        ("a.txt", "One.\n\n  Two \n", ["One.", "Two"]),
        (
            "a.csv",
            'A dog, a cat,2.5\n"He said ""no, thanks"".",x y,0\n',
            ["A dog", "a cat", 'He said "no, thanks".', "x y"],
        ),
        (
            "a.csv",
            "sentence1,sentence2,score\nA dog.,A cat.,3\nA cow.,A pig.,4.0\n",
            ["A dog.", "A cat.", "A cow.", "A pig."],
        ),
        ("a.csv", "One\nTwo\n", ["One", "Two"]),
        ("a.csv", "id,text\n1,A b c\n2,nan\n\n3,42\n", ["A b c"]),
        ("a.tsv", "A, b\t1\nC, d\t2\n", ["A, b", "C, d"]),
        ("a.jsonl", '{"text": "A b", "label": "x"}\n\n{"text": "C d", "label": "y"}\n', ["A b", "C d"]),
        ("a.jsonl", '{"q": "A b?", "a": "C.", "n": 3, "m": "7"}\n"Just so."\n', ["A b?", "C.", "Just so."]),
    ],
)
def test_sentences(tmp_path: Path, name: str, content: str, sentences: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8-sig")
    assert read_sentences(path)[:2] == (sentences, ())


def test_label_columns_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("review,sentiment\nGood film.,positive\nBad film.,negative\nFine film.,positive\nOh no.,negative\n")
    sentences, notes, _ = read_sentences(path)
    assert sentences == ["Good film.", "Bad film.", "Fine film.", "Oh no."]
    assert "column 2" in notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "there are no sentences in"),
        ("a.csv", b"1,2\n3,4\n", "there are no sentences in"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text"),
        ("a.jsonl", b'{"text": "A"}\n{"text": \n', "line 2 is no JSON"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 holds no text"),
        ("a.jsonl", b"[1, 2]\n", "line 1 holds no text"),
        ("a.csv", b'"' + b"A" * 200_000, "cannot be read .field larger"),
    ],
)
def test_bad_text(tmp_path: Path, tokenizer: str, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        open_samples(tmp_path / name, BERT, DataOptions(tokenizer=tokenizer))


def test_bad_tokenizers(tmp_path: Path, tokenizer: str) -> None:
    path = write(tmp_path / "a.txt", [3])
    with pytest.raises(CalibrationError, match="text needs --tokenizer"):
        open_samples(path, BERT, DataOptions())
    with pytest.raises(CalibrationError, match=r"tokeniser.json: not found; did you mean .*tokenizer.json"):
        open_samples(path, BERT, DataOptions(tokenizer=str(tmp_path / "tokeniser.json")))
    assert open_samples(path, BERT, DataOptions(tokenizer=str(tmp_path))).count == 1  # the folder of it
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(CalibrationError, match=r"tokenizer.json: no valid tokenizer"):
        open_samples(path, BERT, DataOptions(tokenizer=tokenizer))
    with pytest.raises(CalibrationError, match="--preprocess does not apply to text"):
        open_samples(path, BERT, DataOptions(tokenizer=tokenizer, preprocess="unit"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([*BERT, InputSpec("decoder_input_ids", INT, (None, None))], "'decoder_input_ids'.*decoder.*give whole feeds"),
        ([*BERT, InputSpec("pixels", INT, (None, None))], "cannot fill input 'pixels'"),
        ([InputSpec("input_ids", np.dtype(np.float32), (None, None))], "'input_ids' is float32 of rank 2"),
        ([InputSpec("input_ids", INT, (None,))], "'input_ids' is int64 of rank 1"),
        (BERT[1:], "an input named 'input_ids'"),
        (
            [BERT[0], InputSpec("attention_mask", INT, (None, 5)), InputSpec("token_type_ids", INT, (None, 6))],
            "different",
        ),
    ],
)
def test_inputs_that_text_cannot_fill(tmp_path: Path, tokenizer: str, inputs: list[InputSpec], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_samples(write(tmp_path / "a.txt", [3]), inputs, DataOptions(tokenizer=tokenizer))


def test_shared_sentences(shared: Path) -> None:
    sentences, notes, _ = read_sentences(shared / "data/stsb/stsb_train.csv")
    assert len(sentences) == 2 * 5749 and notes == ()
    assert sentences[:2] == ["A plane is taking off.", "An air plane is taking off."]


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("a.csv", "good film,1\nbad film,0\n", [1, 0]),
        (
            "a.csv",
            "text,label\ngood film,positive\nbad film,negative\na fine film,positive\nno film,negative\n",
            [1, 0, 1, 0],
        ),
        ("a.csv", "a cat,a dog,2.5\nmen play,boys play,5\n", [(0, 2.5), (0, 2.5), (1, 5.0), (1, 5.0)]),
        ("a.tsv", "0.5\tgood film\n0.25\tbad film\n", [0.5, 0.25]),
        ("a.csv", "good film,1,2\nbad film,0,3\n", None),
        ("a.csv", "good film\nbad film\n", None),
        ("a.txt", "good film\nbad film\n", None),
        ("a.jsonl", '{"text": "good film", "label": 1}\n{"text": "bad film", "label": 0}\n', [1, 0]),
        ("a.jsonl", '{"text": "good film", "label": 1}\n{"text": "bad film"}\n', None),
    ],
)
def test_labels_for_metrics(tmp_path: Path, name: str, text: str, labels: list[object] | None) -> None:
    (tmp_path / name).write_text(text)
    assert read_sentences(tmp_path / name)[2] == labels
