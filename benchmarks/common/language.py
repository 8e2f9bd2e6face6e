"""Perplexity of a causal language model file on running text, and what of its outputs is compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

from benchmarks.common.evaluation import Score, cpu_session
from onnx_obc.core.arrays import Feed
from onnx_obc.runtime.metric import Sample
from onnx_obc.runtime.metrics import PERPLEXITY

WINDOWS, TOKENS = 512, 128  # evenly spread over the text; tokens in each
COMPARED = 8  # one window in so many has its logits compared
BATCH = 8
WRITTEN = 32  # tokens behind a prompt


def perplexity(
    model: Path | str,
    text: Path | str,
    tokenizer: Path | str,
    reference: npt.NDArray[np.generic] | None = None,
    threads: int = 0,
) -> Score:
    """The perplexity for each token, from empty caches. outputs: logits of some windows, (tokens, vocabulary).

    predictions: the likeliest next token of these; agreement: their share that the reference has too.
    """
    ids = np.array(Tokenizer.from_file(str(tokenizer)).encode(Path(text).read_text(encoding="utf-8")).ids)  # (tokens,)
    windows = ids[: len(ids) // TOKENS * TOKENS].reshape(-1, TOKENS)
    windows = windows[np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).astype(int)]
    session = cpu_session(model, threads)
    notes, kept = [], []
    for start in range(0, len(windows), BATCH):
        chosen = windows[start : start + BATCH]
        logits = session.run(["logits"], _feed(session, chosen))[0]  # (batch, tokens, vocabulary)
        notes += [
            PERPLEXITY.note(Sample({"input_ids": row}, {"logits": scores}, None))
            for row, scores in zip(chosen, logits, strict=True)
        ]
        kept += [scores for i, scores in enumerate(logits, start) if i % COMPARED == 0]
    outputs = np.concatenate(kept)
    predicted = outputs.argmax(axis=1)
    agreement = None if reference is None else float(np.mean(predicted == reference))
    return Score(PERPLEXITY.value(notes, notes), predicted, agreement, outputs)


def generation(feeds: Iterator[Feed]) -> list[tuple[Feed, int]]:
    """What writing some tokens behind a prompt runs: feeds, and how often each. feeds: of one window, see
    `onnx_obc.calibration.readers.decoder`: its beginning, and the rest behind the caches of that."""
    prompt, rest = next(feeds), next(feeds)
    past = next(array.shape[2] for name, array in rest.items() if name.startswith("past"))
    ends = {"input_ids": 1, "position_ids": 1, "attention_mask": past + 1}
    token = {name: array[:, : ends[name]] if name in ends else array for name, array in rest.items()}
    return [(prompt, 1), (token, WRITTEN)]


def _feed(session: ort.InferenceSession, ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
    """One feed of windows (batch, tokens) with empty caches."""
    values: dict[str, npt.NDArray[np.generic]] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy(),
    }
    for value in session.get_inputs():
        if value.name.startswith("past"):
            _, heads, _, width = value.shape
            values[value.name] = np.zeros((len(ids), heads, 0, width), np.float32)
    return values
