"""Decoders with caches, calibrated from text or feeds: what comes out has the same caches, and goes on from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_decoders import write_text
from zoo.decoders import CONFIGS, HEADS, SIZE, WIDTH, WORDS, Config, build, encoder

from onnx_obc import DataOptions, Recipe, compress
from onnx_obc.pipeline.report import Report

Feed = dict[str, np.ndarray]
TYPES = {np.float32: 90, np.float16: 40}  # what a decoder keeps of itself, in dB, where it goes on from its caches
RECIPES = {
    "int4": (Recipe(weights="int4", activations="none", block=32, measure_speed=False), 12),
    "int8": (Recipe(measure_speed=False), 18),
}
HALF = {"int4": ("gpt2", "llama", "qwen2", "merged", "multi-head"), "int8": ("bart", "grouped-query")}
CORRECTED = ("qwen2", "int4")  # the others without corrections, which take most of the time
TOKENS, SAMPLES = 20, 8


def feed(config: Config, session: ort.InferenceSession, ids: np.ndarray, states: np.ndarray, caches: Feed) -> Feed:
    """A feed of ids (tokens,) behind caches. states: (1, frames, width)."""
    dtype = states.dtype.type
    past = next((x.shape[-2] for name, x in caches.items() if "encoder" not in name), 0)
    total = past + len(ids)
    values: Feed = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total)[None],
        "encoder_hidden_states": states,
        "use_cache_branch": np.array([past > 0]),
        **caches,
    }
    for value in session.get_inputs():
        if value.name not in values:
            shape = [{"batch": 1}.get(size, 0) if isinstance(size, str) else size for size in value.shape]
            if (
                "encoder" in value.name and config.cross == "past"
            ):  # the encoder's, as the decoder's first run gives them
                frames = states[:, :, : HEADS * SIZE].reshape(1, -1, HEADS, SIZE)
                values[value.name] = np.ascontiguousarray(frames.transpose(0, 2, 1, 3))
            else:
                values[value.name] = np.zeros(shape, dtype)
    return {value.name: values[value.name] for value in session.get_inputs()}


def run(config: Config, session: ort.InferenceSession, ids: np.ndarray, states: np.ndarray, cut: int) -> Feed:
    """The outputs of ids, the first `cut` of them in a run before, from which only the caches come."""
    caches: Feed = {}
    names = [value.name for value in session.get_outputs()]
    found: Feed = {}
    for part in (ids[:cut], ids[cut:]):
        if not len(part):
            continue
        given = feed(config, session, part, states, caches)
        found = dict(zip(names, session.run(None, given), strict=True))
        kept = "encoder" if caches else "nothing"  # what the first run made is handed on
        for name in [name for name in given if "past" in name]:
            caches[name] = given[name] if kept in name else found.get(after(name), given[name])
    return found


def after(name: str) -> str:
    """The output that continues a cache."""
    return name.replace("past_key_values", "present").replace("past", "present")


def own_feeds(config: Config, session: ort.InferenceSession) -> Iterator[Feed]:
    """What text does not give: the caches of an encoder that ran before."""
    rng = np.random.default_rng(0)
    for _ in range(2 * SAMPLES):
        states = np.tanh(rng.standard_normal((1, 7, WIDTH), np.float32))
        yield feed(config, session, rng.integers(0, WORDS, TOKENS), states, {})


def compressed(config: Config, dtype: type[np.floating], recipe: Recipe, folder: Path) -> tuple[Path, Path, Report]:
    """The dense file, the compressed one, and its report."""
    dense, small = folder / "dense.onnx", folder / "small.onnx"
    onnx.save(build(config, dtype), dense)
    text, tokenizer = write_text(folder, TOKENS * SAMPLES, WORDS)
    options = DataOptions(tokenizer=tokenizer, max_tokens=TOKENS)
    if config.cross in ("states", "merged"):
        onnx.save(encoder(dtype), folder / "encoder.onnx")
        options = DataOptions(tokenizer=tokenizer, max_tokens=TOKENS, encoder=str(folder / "encoder.onnx"))
    calibration: object = text
    if config.cross == "past":
        calibration = list(own_feeds(config, session(dense)))
        options = DataOptions()
    return dense, small, compress(dense, calibration, recipe, small, data=options).report


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interface(session: ort.InferenceSession) -> list[tuple[str, str, list[int | str | None]]]:
    return [(v.name, v.type, v.shape) for v in (*session.get_inputs(), *session.get_outputs())]


def decibels(wanted: Feed, found: Feed) -> float:
    """The least signal-to-noise ratio of the outputs."""
    worst = np.inf
    for name, array in wanted.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        assert np.isfinite(array).all() and np.isfinite(found[name]).all()
        noise = np.square(array - found[name], dtype=np.float64).sum()
        worst = min(worst, 10 * np.log10(np.square(array, dtype=np.float64).sum() / max(noise, 1e-30)))
    return float(worst)


CASES = [(config, level, np.float32) for level in RECIPES for config in CONFIGS]
CASES += [(config, level, np.float16) for level in RECIPES for config in CONFIGS if config.name in HALF[level]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "level", "dtype"), CASES, ids=[f"{config.name}-{level}-{np.dtype(x)}" for config, level, x in CASES]
)
def test_a_compressed_decoder_goes_on_from_its_caches(
    config: Config, level: str, dtype: type[np.floating], tmp_path: Path
) -> None:
    recipe, least = RECIPES[level]
    recipe = recipe.model_copy(update={"effort": "normal" if (config.name, level) == CORRECTED else "fast"})
    dense, small, report = compressed(config, dtype, recipe, tmp_path)
    assert all(check.passed for check in report.checks)
    before, now = session(dense), session(small)
    assert interface(before) == interface(now)
    rng = np.random.default_rng(5)
    states = np.tanh(rng.standard_normal((1, 7, WIDTH))).astype(dtype)
    ids = rng.integers(0, WORDS, 16)
    whole = run(config, before, ids, states, 0)
    assert (
        decibels({"logits": whole["logits"][:, 10:]}, {"logits": run(config, before, ids, states, 10)["logits"]})
        > TYPES[dtype]
    )
    ours = run(config, now, ids, states, 0)
    assert decibels(whole, ours) > least
    for cut in (1, 10, 15):
        stepped = run(config, now, ids, states, cut)
        rest = {name: x[:, cut:] if name == "logits" else x for name, x in ours.items()}
        assert decibels(rest, stepped) > 30  # the same but for what rounds at another place
