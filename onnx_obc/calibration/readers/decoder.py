"""Calibration data from text for decoders: running text in windows, and the caches that the dense model makes of it.

The text becomes one stream of tokens, cut into windows of `max_tokens` (128), as language models are trained and
calibrated (GPTQ: Frantar et al. 2022). Text of tables and .jsonl is joined by line breaks. No window is padded.

A model without caches takes whole windows. Where it has caches of past keys and values, every window gives two samples:
its first tokens, up to a place drawn at random, with empty caches; and the rest, with the caches that the dense model
made of the first. A model that takes so many tokens at a time gives one sample for each window: the tokens behind that
place, with the caches of those before. Each sample is a feed of its own, since caches of different lengths share none.

Inputs are known by their names: input_ids or decoder_input_ids; attention_mask, which covers the cache too;
position_ids, cache_position, token_type_ids; use_cache_branch; caches, whose names hold `past` or `cache`, and
which come out under the same name but for the words past, present, in, out, new and the like; encoder_hidden_states and
encoder_attention_mask, from the model named as `--encoder`, which reads the same window. Caches of the encoder's keys
and values (`encoder` or `cross` in the name) are what the decoder's first run gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core.arrays import Array, Feed
from ...core.errors import CalibrationError
from ...core.plural import counted
from ...graph.model import InputSpec, input_specs, read_model
from ...runtime.session import Session, open_session
from ..options import DataOptions
from ..samples import Batch, Samples, Shown, existing
from .feeds import check_range, plan_samples
from .text import INPUTS, MAX_TOKENS, open_tokenizer, read_sentences

IDS = ("input_ids", "decoder_input_ids")
MASKS = ("attention_mask", "decoder_attention_mask")
STATES, STATES_MASK = ("encoder_hidden_states", "encoder_outputs"), "encoder_attention_mask"
POSITIONS, TYPES, STEPS, BRANCH = "position_ids", "token_type_ids", "cache_position", "use_cache_branch"
PLAIN = (*IDS, *MASKS, *STATES, STATES_MASK, POSITIONS, TYPES, STEPS, BRANCH)
MOVING = {"past", "present", "new", "in", "out", "input", "output", "old", "updated"}  # what tells a cache in from out
LOOKUPS = {"Gather": (0, 1), "GatherBlockQuantized": (0, 1), "EmbedLayerNormalization": (2, 0)}  # table, and rows
RANK = 3  # of a cache, at least: batch, positions, width


@dataclass(frozen=True)
class Cache:
    """An input of past keys or values, and the output that it becomes.

    shape: with 1 for the batch and 0 along the axis of positions. cross: of the encoder's keys or values. output: None
    where the model hands it on to no step.
    """

    name: str
    output: str | None
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True)
class Decoder:
    """A decoder's inputs, sorted. step: how many tokens it takes at a time, None if any."""

    inputs: tuple[InputSpec, ...]
    caches: tuple[Cache, ...]
    ids: str
    step: int | None
    rows: int | None  # of the embedding, so many tokens there are


def is_decoder(inputs: list[InputSpec]) -> bool:
    """Whether text is to be read for a decoder: what it takes is more than a sentence, and looks like it."""
    names = [spec.name for spec in inputs]
    return any(name in PLAIN and name not in INPUTS for name in names) or any(map(is_cache, inputs))


def open_decoder(path: Path, model: ir.Model | None, inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Samples of a text file for a decoder. Raises CalibrationError."""
    if model is None:
        name = next(spec.name for spec in inputs if spec.name not in INPUTS)
        raise CalibrationError(
            f"input {name!r} is a decoder's, which text fills only with the model at hand; give whole feeds from a "
            "Python function (module.py:function)"
        )
    decoder = sort_inputs(model, inputs)
    length = options.max_tokens or MAX_TOKENS
    if decoder.caches and length <= (decoder.step or 1):
        raise CalibrationError(f"--max-tokens {length} leaves no token behind a cache; give more")
    if not decoder.caches and decoder.step is not None:
        length = decoder.step
    windows = _windows(path, options.tokenizer, length, decoder.rows)  # (windows, tokens) int64
    copies = 2 if decoder.caches and decoder.step is None else 1
    plan = plan_samples(len(windows), f"windows in {path}", [], options, copies=copies)
    outputs = [cache.output for cache in decoder.caches if cache.output is not None]
    session = open_session(model, outputs, "cpu", threads=1) if outputs else None  # one: the caches are the same always
    encode = _encoder(options.encoder, decoder)
    last = length - (decoder.step or 1)

    def place(index: int) -> int:
        """How many tokens of a window the cache holds."""
        if not decoder.caches:
            return 0
        return int(np.random.default_rng([options.seed, index]).integers(1, last + 1))

    def span(position: int) -> tuple[int, int]:
        cut = place(plan.order[position])
        if copies == 2:
            return (0, cut) if position % 2 == 0 else (cut, length)
        return cut, (cut + decoder.step if decoder.step else length)

    def load(position: int) -> Feed:
        ids = windows[plan.order[position]]
        start, stop = span(position)
        states = encode(ids)
        caches = empty_caches(decoder)
        for first in range(0, start, decoder.step or max(start, 1)):
            assert session is not None
            after = min(first + decoder.step, start) if decoder.step else start
            made = session.run(fill(decoder, ids[first:after], first, caches, states))
            caches = next_caches(decoder, caches, made)
        return fill(decoder, ids[start:stop], start, caches, states)

    def name_of(position: int) -> str:
        start, stop = span(position)
        return f"tokens {start} to {stop - 1} of window {plan.order[position]} of {path}"

    def read(start: int, stop: int) -> Iterator[Batch]:
        check_range(start, stop, len(plan.order), 1)
        for position in range(start, stop):
            yield Batch(load(position), position, 1)

    def shown(position: int) -> Shown:
        start, stop = span(position)
        reader = open_tokenizer(str(options.tokenizer))
        return Shown(text=reader.decode(windows[plan.order[position], start:stop].tolist()))

    notes = plan.notes
    if options.batch not in (None, 1):
        notes += (f"--batch {options.batch} has no effect: samples with caches are read one by one",)
    source = f"windows of {counted(length, 'token')} of {path}"
    return replace(Samples(len(plan.order), source, read, notes=notes, name_of=name_of), shown=shown)


# ---- What the model takes.


def sort_inputs(model: ir.Model, inputs: list[InputSpec]) -> Decoder:
    """The inputs of a decoder. Raises CalibrationError for those that text and the model itself cannot fill."""
    ids = next((spec for spec in inputs if spec.name in IDS), None)
    unknown = [spec for spec in inputs if spec.name not in PLAIN and not is_cache(spec)]
    if unknown or ids is None:
        odd = unknown[0].words if unknown else ""
        raise CalibrationError(
            f"text cannot fill input {unknown[0].name!r}, {odd}; {_generator(inputs)}"
            if unknown
            else f"a decoder's tokens are an input named input_ids, which this model has not; {_generator(inputs)}"
        )
    for spec in inputs:
        wide = {STEPS: 1, BRANCH: 1}.get(spec.name, 3 if spec.name in STATES else 2)
        if not is_cache(spec) and (len(spec.shape) != wide or spec.shape[0] not in (None, 1)):
            raise CalibrationError(
                f"text fills {spec.name!r} of rank {wide} and batch 1, not {spec.words}; {_generator(inputs)}"
            )
    width = {str(value.name): value for value in model.graph.inputs}
    batch = _dimension(width[ids.name], 0)
    given = {_key(str(value.name)): str(value.name) for value in model.graph.outputs}
    caches = [
        Cache(
            spec.name,
            given.get(_key(spec.name)),
            _empty_shape(width[spec.name], spec, batch, inputs),
            is_cross(spec.name),
        )
        for spec in inputs
        if is_cache(spec)
    ]
    names = {spec.name for spec in inputs}
    for cache in caches:
        if cache.output is None and not cache.cross:
            raise CalibrationError(f"no output of the model continues the cache {cache.name!r}; {_generator(inputs)}")
        if cache.cross and not names & set(STATES):
            raise CalibrationError(
                f"the cache {cache.name!r} is of the encoder, which this model does not run; {_generator(inputs)}"
            )
    return Decoder(tuple(inputs), tuple(caches), ids.name, ids.shape[1], rows_of(model, ids.name))


def is_cache(spec: InputSpec) -> bool:
    """Whether an input is of past keys or values, by its name."""
    named = re.search(r"past|cache", spec.name.lower()) is not None and spec.name not in PLAIN
    return named and spec.dtype.kind == "f" and len(spec.shape) >= RANK


def is_cross(name: str) -> bool:
    """Whether a cache is of what the encoder said: `past_key_values.0.encoder.key`, `past_key_cross_0`."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return "encoder" in words or "cross" in words


def _key(name: str) -> tuple[str, ...]:
    """What the input and output of a cache share: past_key_values.0.key and present.0.key have 0 and key."""
    plain = re.sub(r"(past|present)_(key_values?|kv)(?=[^a-z]*\d)", r"\1", name.lower())
    return tuple(word for word in re.findall(r"[a-z]+|\d+", plain) if word not in MOVING)


def _dimension(value: ir.Value, axis: int) -> str | None:
    """The name of a free dimension, None if it is fixed or has none."""
    size = value.shape[axis] if value.shape is not None else None
    return size.value if isinstance(size, ir.SymbolicDim) else None


def _empty_shape(value: ir.Value, spec: InputSpec, batch: str | None, inputs: list[InputSpec]) -> tuple[int, ...]:
    """The shape of an empty cache: 1 along the batch, 0 along the positions."""
    free = [axis for axis, size in enumerate(spec.shape) if size is None]
    names = [_dimension(value, axis) for axis in free]
    shape = [1 if size is None else size for size in spec.shape]
    along = [axis for axis, name in zip(free, names, strict=True) if name is None or name != batch]
    if len(along) == len(free) and len(free) > 1:  # none is named like the batch of the tokens: it comes first
        along = along[1:]
    if len(along) != 1:
        why = "is of fixed length" if not along else f"leaves {len(free)} dimensions free"
        raise CalibrationError(f"the cache {spec.name!r}, {spec.words}, {why}; {_generator(inputs)}")
    shape[along[0]] = 0
    return tuple(shape)


def rows_of(model: ir.Model, ids: str) -> int | None:
    """The rows of the table that an input's integers are looked up in, None if no constant one is."""
    for node in model.graph:
        if node.op_type not in LOOKUPS:
            continue
        table, source = (node.inputs[place] for place in LOOKUPS[node.op_type])
        source = _before(source, ("Cast", "Reshape", "Identity", "Unsqueeze", "Squeeze"))
        table = _before(table, ("Cast", "DequantizeLinear", "Reshape", "Identity"))
        if source is not None and source.name == ids and table is not None and table.const_value is not None:
            return int(table.const_value.shape.numpy()[0])
    return None


def _before(value: ir.Value | None, operators: Sequence[str]) -> ir.Value | None:
    """What a value was before these operators, each by its first input."""
    while value is not None and (maker := value.producer()) is not None and maker.op_type in operators:
        value = maker.inputs[0]
    return value


def _generator(inputs: list[InputSpec]) -> str:
    """How a user makes the feeds: the remedy of most errors."""
    return (
        "give --calib module.py:function, which yields feeds, dicts of these arrays: "
        f"{', '.join(f'{spec.name} {spec.words}' for spec in inputs[:6])}{', …' if len(inputs) > 6 else ''}"
    )


# ---- What it is fed.


def empty_caches(decoder: Decoder) -> Feed:
    """Caches of no position."""
    types = {spec.name: spec.dtype for spec in decoder.inputs}
    return {cache.name: np.zeros(cache.shape, types[cache.name]) for cache in decoder.caches}


def next_caches(decoder: Decoder, caches: Feed, made: dict[str, Any]) -> Feed:
    """The caches after a run. Some merged decoders give the encoder's anew only at first: those that are empty stay."""
    after = {cache.name: made[cache.output] for cache in decoder.caches if cache.output is not None}
    kept = {cache.name for cache in decoder.caches if cache.cross and caches[cache.name].size}
    return {name: caches[name] if name in kept else after.get(name, caches[name]) for name in caches}


def fill(decoder: Decoder, ids: Array, past: int, caches: Feed, states: Array | None) -> Feed:
    """One feed: ids (tokens,) behind `past` tokens that the caches hold. states: (1, frames, width)."""
    total, new = past + len(ids), np.arange(past, past + len(ids))  # new: (tokens,)
    values: dict[str, Array] = dict(caches)
    values |= dict.fromkeys(IDS, ids[None])  # (1, tokens)
    values |= dict.fromkeys(MASKS, np.ones((1, total), np.int64))
    values |= {POSITIONS: new[None], STEPS: new, TYPES: np.zeros((1, len(ids)), np.int64), BRANCH: np.array([past > 0])}
    if states is not None:
        values |= dict.fromkeys(STATES, states)
        values |= {STATES_MASK: np.ones(states.shape[:2], np.int64)}
    return {spec.name: np.ascontiguousarray(values[spec.name], dtype=spec.dtype) for spec in decoder.inputs}


def _encoder(path: str | None, decoder: Decoder) -> Any:
    """From a window (tokens,) to what the encoder says of it, (1, tokens, width); None for models without one."""
    wanted = [spec for spec in decoder.inputs if spec.name in (*STATES, STATES_MASK)]
    if not wanted:
        if path is not None:
            raise CalibrationError(f"--encoder {path}: the model takes no encoder_hidden_states; leave it out")
        return lambda ids: None
    if path is None:
        raise CalibrationError(
            f"the model takes {wanted[0].name!r} from an encoder; give --encoder encoder.onnx if it reads text, or "
            + _generator(list(decoder.inputs)).removeprefix("give ")
        )
    model = read_model(existing(Path(path)))
    inputs = input_specs(model)
    if odd := [spec for spec in inputs if spec.name not in INPUTS]:
        raise CalibrationError(
            f"--encoder {path}: text cannot fill its input {odd[0].name!r}; {_generator(list(decoder.inputs))}"
        )
    session: Session = open_session(model, None, "cpu", threads=1)

    def encode(ids: Array) -> Array:
        mask = np.ones((1, len(ids)), np.int64)
        values = dict(zip(INPUTS, (ids[None], mask, 0 * mask, np.arange(len(ids))[None]), strict=True))
        found = session.run({spec.name: values[spec.name].astype(spec.dtype) for spec in inputs})
        return np.asarray(found[session.outputs[0]])

    return encode


def _windows(path: Path, tokenizer: str | None, length: int, rows: int | None) -> Array:
    """The windows of a text, (windows, tokens) int64; what is left over at its end is not used."""
    if tokenizer is None:
        raise CalibrationError("text needs --tokenizer: the tokenizer.json that the model was trained with")
    reader = open_tokenizer(tokenizer)
    reader.no_padding()
    reader.no_truncation()
    text = path.read_bytes().decode("utf-8-sig", "replace") if path.suffix.lower() == ".txt" else ""
    sentences = read_sentences(path)[0]  # refuses what is no text
    ids = np.array(reader.encode(text or "\n".join(sentences), add_special_tokens=False).ids, np.int64)  # (tokens,)
    if rows is not None and ids.size and ids.max() >= rows:
        raise CalibrationError(
            f"{tokenizer}: gives token {ids.max()}, but the model's embedding has {counted(rows, 'row')}; give the "
            "tokenizer that the model was trained with"
        )
    if len(ids) < length:
        raise CalibrationError(
            f"{path} holds {counted(len(ids), 'token')}, and a window takes {length}; give more text, or lower "
            "--max-tokens"
        )
    return ids[: len(ids) // length * length].reshape(-1, length)
