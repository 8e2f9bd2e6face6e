"""Calibration data from text: sentences from a .csv, .tsv, .txt or .jsonl file through a tokenizer.json.

- `.txt`: every line that is not blank is a sample.
- `.jsonl`: every line is an object, whose field `text` is a sample; without one, each of its fields that holds text. A
  line can also be just a string.
- `.csv`, `.tsv`: every cell that holds text is a sample. Text holds a letter and is no number. A first row of plain
  words is the header, if no later row is like it, and skipped. A column in which half of the cells or more repeat
  another holds labels and is left out, and a note says so.

Metrics compare with labels: in a table whose rows hold one text and one column of numbers or of labels, that is the
text's label, words as their place in alphabetical order; where rows hold two texts and a number, each text has the row
and its number. A `.jsonl` line may have a field `label`, a number or text.

Sentences are cut to `max_tokens` (128), or to what the graph fixes if that is less. They fill input_ids,
attention_mask, token_type_ids and position_ids (0, 1, 2, …), as far as the model has them.

Sentences share a feed only if they have the same number of tokens, so that there is no padding: what a model computes
for padding is no calibration data. To let many share a feed, they are sorted by length, longest first, in windows of
512; the last tenth, at most 256, is sorted by itself. Padding is used only where the graph fixes the number of tokens,
or the batch: then up to the longest sentence of the feed.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from tokenizers import Tokenizer

from ...core.arrays import Feed
from ...core.errors import CalibrationError
from ...core.plural import counted
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Samples, Shown, existing
from .feeds import HANDS, deliver, plan_samples

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
MAX_TOKENS = 128
WINDOW = 512
LAST = 256

Tokens: TypeAlias = tuple[Sequence[int], Sequence[int]]  # ids, and types, of one sentence


@dataclass(frozen=True)
class Padding:
    """What stands beside a sentence that is shorter than its feed."""

    token: int
    kind: int
    left: bool


def open_text(path: Path, inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Samples of a text file. Raises CalibrationError."""
    length = _check_inputs(inputs)
    limit = min(length or MAX_TOKENS, options.max_tokens or length or MAX_TOKENS)
    tokenizer, padding = _tokenizer_for(options.tokenizer, limit)
    sentences, notes, labels = read_sentences(path)
    plan = plan_samples(len(sentences), f"sentences in {path}", inputs, options)
    encoded = tokenizer.encode_batch([sentences[index] for index in plan.order])
    for index, encoding in zip(plan.order, encoded, strict=True):
        if not encoding.ids:
            raise CalibrationError(
                f"{path}: {sentences[index][:40]!r} gives no token; remove it, or mend the tokenizer"
            )
    order = _by_length([len(encoding.ids) for encoding in encoded])
    tokens: list[Tokens] = [(encoded[place].ids, encoded[place].type_ids) for place in order]

    def name_of(position: int) -> str:
        return f"{sentences[plan.order[order[position]]][:40]!r} of {path}"

    def load(position: int) -> Feed:
        first = position // plan.step * plan.step
        wanted = length or max(len(ids) for ids, _ in tokens[first : first + plan.step])
        values = dict(zip(INPUTS, _values(tokens[position], wanted, padding), strict=True))
        return {spec.name: values[spec.name].astype(spec.dtype) for spec in inputs}

    def label(position: int) -> object:
        assert labels is not None
        return labels[plan.order[order[position]]]

    def shown(position: int) -> Shown:
        return Shown(text=sentences[plan.order[order[position]]])

    plan = replace(plan, notes=plan.notes + notes)
    named = None if labels is None else label
    return replace(deliver(plan, load, inputs, f"sentences of {path}", name_of, label=named), shown=shown)


def _values(tokens: Tokens, length: int, padding: Padding) -> tuple[np.ndarray[Any, Any], ...]:
    """input_ids, attention_mask, token_type_ids and position_ids of one sentence, each (length,) int64."""
    ids, kinds = tokens
    spare = length - len(ids)
    where = slice(spare, None) if padding.left else slice(0, len(ids))
    input_ids, types = np.full(length, padding.token), np.full(length, padding.kind)  # (length,)
    mask, positions = np.zeros(length, np.int64), np.arange(length)  # (length,)
    input_ids[where], types[where], mask[where] = ids, kinds, 1
    return input_ids, mask, types, positions


def _by_length(lengths: list[int]) -> list[int]:
    """The places of sentences of these lengths, the longest first in each window."""
    last = len(lengths) - min(len(lengths) // HANDS, LAST)
    starts = [*range(0, last, WINDOW), last]
    ends = [*starts[1:], len(lengths)]
    return [
        place
        for start, end in zip(starts, ends, strict=True)
        for place in sorted(range(start, end), key=lambda place: -lengths[place])
    ]


def _check_inputs(inputs: list[InputSpec]) -> int | None:
    """The number of tokens that the graph fixes, or None. Raises CalibrationError if text cannot fill the inputs."""
    lengths = set()
    for spec in inputs:
        if spec.name not in INPUTS:
            about = "the model has a decoder, which " if spec.name.startswith("decoder") else ""
            raise CalibrationError(
                f"text cannot fill input {spec.name!r} ({about}needs more than {', '.join(INPUTS)}); "
                "give whole feeds from a Python function (module.py:function) or .npz"
            )
        if len(spec.shape) != 2 or spec.dtype not in (np.dtype(np.int64), np.dtype(np.int32)):
            raise CalibrationError(
                f"text fills inputs of rank 2, int64 or int32, but {spec.name!r} is {spec.dtype.name} of rank "
                f"{len(spec.shape)}; give whole feeds from a Python function (module.py:function) or .npz"
            )
        if spec.shape[1] is not None:
            lengths.add(spec.shape[1])
    if "input_ids" not in [spec.name for spec in inputs]:
        raise CalibrationError("text fits a model with an input named 'input_ids'; give arrays (.npz) or a function")
    if len(lengths) > 1:
        raise CalibrationError(
            f"the model's inputs fix different numbers of tokens ({sorted(lengths)}); give arrays (.npz)"
        )
    return next(iter(lengths), None)


def open_tokenizer(path: str) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or in a folder with one. Raises CalibrationError."""
    file = existing(Path(path))
    if file.is_dir():
        file = existing(file / "tokenizer.json")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise CalibrationError(
            f"{file}: no valid tokenizer ({' '.join(str(error).split())}); give the model's tokenizer.json"
        ) from error


def _tokenizer_for(path: str | None, limit: int) -> tuple[Tokenizer, Padding]:
    if path is None:
        raise CalibrationError("text needs --tokenizer: the tokenizer.json that the model was trained with")
    tokenizer = open_tokenizer(path)
    kept = tokenizer.padding or {}
    token = kept.get("pad_id")
    for name in ("[PAD]", "<pad>"):
        token = tokenizer.token_to_id(name) if token is None else token
    padding = Padding(token or 0, kept.get("pad_type_id", 0), kept.get("direction") == "left")
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if limit <= special:
        raise CalibrationError(
            f"{counted(limit, 'token leaves', 'tokens leave')} no room for text: the tokenizer "
            f"adds {special} to every sentence; raise --max-tokens"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return tokenizer, padding


def read_sentences(path: Path) -> tuple[list[str], tuple[str, ...], list[Any] | None]:
    """The sentences of a file, in order, notes for the user, and a label for each sentence, if the file has them.

    Raises CalibrationError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                found = list(_jsonl(file, path))
                labels = [label for _, label in found]
                return [text for text, _ in found], (), None if None in labels else labels
            if path.suffix.lower() == ".txt":
                return [line.strip() for line in file if line.strip()], (), None
            return _cells(list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")), path)
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise CalibrationError(f"{path}: cannot be read ({error}); check the file") from error


def _jsonl(lines: Iterator[str], path: Path) -> Iterator[tuple[str, Any]]:
    """The texts of the lines, each with the line's label, or None."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise CalibrationError(f"{path}: line {number} is no JSON ({error}); mend or remove it") from error
        except RecursionError as error:
            raise CalibrationError(f"{path}: line {number} is nested too deep; mend or remove it") from error
        fields = value if isinstance(value, dict) else {"text": value}
        if not isinstance(fields.get("text", ""), str):
            raise CalibrationError(f'{path}: line {number} holds no text; write objects such as {{"text": "…"}}')
        label = fields.get("label") if "text" in fields else None
        label = label if isinstance(label, str | int | float) else None
        found = [fields["text"]] if "text" in fields else fields.values()
        yield from ((text, label) for text in found if isinstance(text, str) and _is_text(text))


def _cells(rows: list[list[str]], path: Path) -> tuple[list[str], tuple[str, ...], list[Any] | None]:
    rows = [row for row in rows if any(row)]
    if len(rows) > 1 and _is_header(rows[0]) and not any(map(_is_header, rows[1:])):
        rows = rows[1:]
    columns = [[cell for cell in column if _is_text(cell)] for column in zip_longest(*rows, fillvalue="")]
    labels = {number for number, cells in enumerate(columns) if cells and 2 * len(set(cells)) <= len(cells)}
    notes = tuple(
        f"column {number + 1} of {path} repeats itself like labels, and is left out" for number in sorted(labels)
    )
    texts = [[cell.strip() for n, cell in enumerate(row) if n not in labels and _is_text(cell)] for row in rows]
    cells = [cell for row in texts for cell in row]
    return cells, notes, _labels(rows, texts, sorted(labels))


def _labels(rows: list[list[str]], texts: list[list[str]], repeating: list[int]) -> list[Any] | None:
    """A label for each text of a table, see above; None if it has none. repeating: the columns of words that repeat."""
    each = {len(row) for row in texts}
    width = min(map(len, rows), default=0)
    numbers = [n for n in range(width) if all(_is_number(row[n]) for row in rows)]
    if each == {1} and not numbers and len(repeating) == 1 and repeating[0] < width:
        words = [row[repeating[0]].strip() for row in rows]
        places = {word: place for place, word in enumerate(sorted(set(words)))}
        return [places[word] for word in words]
    if each not in ({1}, {2}) or len(numbers) != 1:
        return None
    values = [float(row[numbers[0]]) for row in rows]
    if each == {1}:
        return [int(x) for x in values] if all(x.is_integer() for x in values) else values
    return [(row, value) for row, value in enumerate(values) for _ in range(2)]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _is_header(row: list[str]) -> bool:
    return all(re.fullmatch(r"[^\W\d][\w-]*", cell.strip()) for cell in row)


def _is_text(cell: str) -> bool:
    if not any(map(str.isalpha, cell)):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False  # nan, inf, 1e5
