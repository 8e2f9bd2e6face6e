"""Text for decoders with caches: the feeds, whatever the caches are called, and what cannot be filled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_decoders import HEADS, NAMES, WIDTH, decoder, encoder, write_text
from small_graphs import run

from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.samples import Samples
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.model import input_specs

Feed = dict[str, np.ndarray]
DEEP = WIDTH // HEADS


def samples_of(model: onnx.ModelProto, folder: Path, text: int = 400, words: int = 40, **options: Any) -> Samples:
    path, tokenizer = write_text(folder, text, words)
    given = DataOptions(**{"tokenizer": tokenizer, "max_tokens": 16, **options})
    held = ir.from_proto(model)
    return open_samples(path, input_specs(held), given, held)


def whole(model: onnx.ModelProto, feed: Feed, names: tuple[str, ...], tokens: np.ndarray) -> np.ndarray:
    """The logits of a window (1, tokens) at once, from empty caches."""
    shape = feed[names[0]].shape
    empty = np.zeros((*shape[:-2], 0, shape[-1]), np.float32)
    given = {name: empty for name in names if name} | {"input_ids": tokens}
    given |= {"position_ids": np.arange(tokens.shape[1])[None], "attention_mask": np.ones_like(tokens)}
    return run(model, given)[0]


@pytest.mark.parametrize("naming", NAMES)
def test_the_caches_continue_the_window(naming: str, tmp_path: Path) -> None:
    names = NAMES[naming]
    model = decoder(names)
    feeds = list(samples_of(model, tmp_path).feeds())
    assert len(feeds) == 50  # 25 windows of 16 tokens, each in two
    for first, rest in zip(feeds[::2], feeds[1::2], strict=True):
        cut, axis = first["input_ids"].shape[1], -2
        assert first[names[0]].shape[axis] == 0 and rest[names[0]].shape[axis] == cut
        assert rest["attention_mask"].shape == (1, 16) and (rest["attention_mask"] == 1).all()
        np.testing.assert_array_equal(rest["position_ids"], np.arange(cut, 16)[None])
        tokens = np.concatenate([first["input_ids"], rest["input_ids"]], axis=1)
        parts = [run(model, feed)[0] for feed in (first, rest)]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole(model, rest, names[:2], tokens), atol=1e-4)
    assert len({feed["input_ids"].shape[1] for feed in feeds[::2]}) > 5  # prefixes of many lengths


def test_cache_position_has_no_batch(tmp_path: Path) -> None:
    feeds = list(samples_of(decoder(extra=("cache_position",)), tmp_path).feeds())
    cut = feeds[0]["input_ids"].shape[1]
    np.testing.assert_array_equal(feeds[1]["cache_position"], np.arange(cut, 16))
    assert set(feeds[0]) == {"input_ids", "cache_position", *NAMES["optimum"][:2]}


def test_tokens_one_at_a_time(tmp_path: Path) -> None:
    model = decoder(tokens=1)
    free = decoder()
    feeds = list(samples_of(model, tmp_path, samples=5).feeds())
    assert len(feeds) == 5 and {feed["input_ids"].shape for feed in feeds} == {(1, 1)}
    path, _ = write_text(tmp_path)
    text = [int(word[1:]) for word in path.read_text().split()]
    windows = np.array(text).reshape(-1, 16)
    samples = samples_of(model, tmp_path, samples=5)
    for position, feed in enumerate(feeds):
        past = feed["position_ids"].item()
        assert feed[NAMES["optimum"][0]].shape == (1, HEADS, past, DEEP)
        window = int(samples.name_of(position).split("window ")[1].split(" ")[0])
        expected = whole(free, feed, NAMES["optimum"][:2], windows[window : window + 1])[0, past]
        np.testing.assert_allclose(run(model, feed)[0][0, 0], expected, atol=1e-4)


def test_samples_can_be_read_in_parts_and_again(tmp_path: Path) -> None:
    samples = samples_of(decoder(), tmp_path, samples=10)
    assert samples.count == 20 and samples.step == 1
    everything = list(samples.feeds())
    part = [batch.feed for batch in samples.part(7, 12).read(1, 4)]
    for one, other in zip(part, everything[8:11], strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert samples.shown(0).text  # type: ignore[union-attr]
    other_seed = samples_of(decoder(), tmp_path, samples=10, seed=1)
    assert [f["input_ids"].shape for f in other_seed.feeds()] != [f["input_ids"].shape for f in everything]


def test_merged_encoder_decoder(tmp_path: Path) -> None:
    onnx.save(encoder(), tmp_path / "encoder.onnx")
    model = decoder(NAMES["decoder"], states=True, merged=True)
    samples = samples_of(model, tmp_path, samples=3, encoder=str(tmp_path / "encoder.onnx"))
    feeds = list(samples.feeds())
    for first, rest in zip(feeds[::2], feeds[1::2], strict=True):
        assert not first["use_cache_branch"].item() and rest["use_cache_branch"].item()
        cross = "past_key_values.0.encoder.key"
        assert first[cross].shape == (1, HEADS, 0, DEEP) and rest[cross].shape == (1, HEADS, 16, DEEP)
        tokens = np.concatenate([first["input_ids"], rest["input_ids"]], axis=1)
        (expected,) = run(encoder(), {"input_ids": tokens})
        np.testing.assert_allclose(rest["encoder_hidden_states"], expected, rtol=1e-5)
        both = np.concatenate([run(model, feed)[0] for feed in (first, rest)], axis=1)
        at_once = {**first, "input_ids": tokens, "position_ids": np.arange(16)[None]}
        at_once["attention_mask"] = np.ones((1, 16), np.int64)
        np.testing.assert_allclose(both, run(model, at_once)[0], atol=1e-4)


def test_an_encoder_is_asked_for(tmp_path: Path) -> None:
    model = decoder(NAMES["decoder"], states=True)
    with pytest.raises(CalibrationError, match=r"'encoder_hidden_states' from an encoder; give --encoder encoder.onnx"):
        samples_of(model, tmp_path)
    onnx.save(decoder(), tmp_path / "encoder.onnx")
    with pytest.raises(CalibrationError, match=r"text cannot fill its input 'past_key_values.0.key'"):
        samples_of(model, tmp_path, encoder=str(tmp_path / "encoder.onnx"))
    with pytest.raises(CalibrationError, match=r"takes no encoder_hidden_states; leave it out"):
        samples_of(decoder(), tmp_path, encoder=str(tmp_path / "encoder.onnx"))


def test_unknown_inputs_name_the_remedy(tmp_path: Path) -> None:
    model = decoder()
    for value in model.graph.input:
        value.name = value.name.replace("past_key_values.0.key", "memory_of_keys")
    for node in model.graph.node:
        node.input[:] = [name.replace("past_key_values.0.key", "memory_of_keys") for name in node.input]
    with pytest.raises(CalibrationError, match=r"'memory_of_keys', float32\[any, 2, any, 16\]; give --calib module.py"):
        samples_of(model, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"names": ("past_key_values.0.key", "past_key_values.0.value", "a", "b")},
            r"no output of the model continues",
        ),
        ({"past": 8}, r"'past_key_values.0.key', float32\[any, 2, 8, 16\], is of fixed length"),
        ({"ids": "tokens_in"}, r"text cannot fill input 'tokens_in'"),
    ],
)
def test_models_that_need_a_function(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=message) as caught:
        samples_of(decoder(**change), tmp_path)
    assert "\n" not in str(caught.value) and "module.py:function" in str(caught.value)


def test_data_that_does_not_do(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"gives token 59, but the model's embedding has 40 rows"):
        samples_of(decoder(), tmp_path, words=60)
    with pytest.raises(CalibrationError, match=r"holds 10 tokens, and a window takes 16; give more text, or lower"):
        samples_of(decoder(), tmp_path, text=10)
    with pytest.raises(CalibrationError, match=r"text needs --tokenizer"):
        samples_of(decoder(), tmp_path, tokenizer=None)
    with pytest.raises(CalibrationError, match=r"--max-tokens 1 leaves no token behind a cache"):
        samples_of(decoder(), tmp_path, max_tokens=1)
    held = ir.from_proto(decoder())
    path, tokenizer = write_text(tmp_path)
    path.write_bytes(b"w1 w2 \xff w3")
    with pytest.raises(CalibrationError, match=r"is not UTF-8 text"):
        open_samples(path, input_specs(held), DataOptions(tokenizer=tokenizer), held)


def test_batches_are_said_to_be_of_one(tmp_path: Path) -> None:
    samples = samples_of(decoder(), tmp_path, batch=8)
    assert any("--batch 8 has no effect" in note for note in samples.notes)
    assert not replace(samples, notes=()).notes


def test_the_vocabulary_is_seen_behind_a_cast(tmp_path: Path) -> None:
    model = decoder()
    gather = next(node for node in model.graph.node if node.input[0] == "table")
    gather.input[1] = "ids_32"
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["input_ids"], ["ids_32"], to=onnx.TensorProto.INT32))
    with pytest.raises(CalibrationError, match=r"embedding has 40 rows"):
        samples_of(model, tmp_path, words=60)
