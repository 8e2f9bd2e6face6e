"""Whisper's word error rate on sentences that espeak-ng speaks, greedily decoded from the three ONNX files."""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from benchmarks.common.evaluation import cpu_session
from onnx_obc.runtime.metric import Sample
from onnx_obc.runtime.metrics import word_error_rate

START, NO_TIMES, END = 50257, 50362, 50256
LONGEST = 60  # tokens of a sentence
RATE = 16000
Features = npt.NDArray[np.float32]


def spoken(sentences: Sequence[str]) -> Iterator[Features]:
    """The log-mel spectrogram (1, 80, 3000) of each sentence."""
    extract = WhisperFeatureExtractor(feature_size=80)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        for sentence in sentences:
            subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(path), sentence], check=True)
            with wave.open(str(path)) as file:
                rate, frames = file.getframerate(), file.readframes(file.getnframes())
            sound = np.frombuffer(frames, np.int16).astype(np.float32) / 2**15  # (n,)
            at = np.arange(0, len(sound) - 1, rate / RATE)
            sound = np.interp(at, np.arange(len(sound)), sound).astype(np.float32)
            yield np.asarray(extract(sound, sampling_rate=RATE, return_tensors="np")["input_features"], np.float32)


def read_sentences(csv_file: Path | str, count: int) -> list[str]:
    """So many different sentences of the STS benchmark, evenly spread."""
    with Path(csv_file).open(newline="", encoding="utf-8") as file:
        different = list(dict.fromkeys(row[0] for row in csv.reader(file)))
    return [different[i] for i in np.linspace(0, len(different) - 1, count).astype(int)]


class Whisper:
    """The three files in onnxruntime; `files` names those that lie elsewhere than in the folder."""

    def __init__(self, folder: Path, files: dict[str, Path] | None = None, threads: int = 0) -> None:
        self._sessions = {
            name: cpu_session((files or {}).get(name, folder / f"{name}.onnx"), threads)
            for name in ("encoder", "decoder", "decoder_with_past")
        }
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._suppressed = json.loads((folder / "suppressed.json").read_text())

    def steps(self, features: Features) -> Iterator[tuple[str, dict[str, npt.NDArray[Any]], int]]:
        """Which decoder is run on which feed, and the token that it gives, until the end."""
        states = self._sessions["encoder"].run(None, {"input_features": features})[0]
        name, feed = "decoder", {"input_ids": np.array([[START, NO_TIMES]]), "encoder_hidden_states": states}
        caches: dict[str, npt.NDArray[Any]] = {}
        for _ in range(LONGEST):
            session = self._sessions[name]
            out = dict(zip([x.name for x in session.get_outputs()], session.run(None, feed), strict=True))
            logits = out.pop("logits")[0, -1]  # (vocabulary,)
            logits[self._suppressed] = -np.inf
            logits[END + 1 :] = -np.inf  # no language, task or time
            token = int(logits.argmax())
            yield name, feed, token
            if token == END:
                return
            caches |= {key.replace("present", "past_key_values"): array for key, array in out.items()}
            name, feed = "decoder_with_past", {"input_ids": np.array([[token]]), **caches}

    def text(self, features: Features) -> str:
        """What is said."""
        return str(self._tokenizer.decode([token for _, _, token in self.steps(features) if token != END]))


def score(whisper: Whisper, sentences: Sequence[str], sounds: Sequence[Features]) -> float:
    """The word error rate, of words without case and punctuation."""
    plain, metric = BasicTextNormalizer(), word_error_rate(None)
    notes = [
        metric.note(Sample({}, {"text": np.array(plain(whisper.text(sound)), object)}, plain(sentence)))
        for sentence, sound in zip(sentences, sounds, strict=True)
    ]
    return metric.value(notes, notes)
