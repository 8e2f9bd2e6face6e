"""Whisper's word error rate on sentences that espeak-ng speaks, greedily decoded from the three ONNX files.

Calibrated on other sentences, whose text is fed to the decoders token by token as it should be: the decoder takes all
of it, the decoder with past what follows the first two tokens, behind the caches that the dense decoder made of these.
"""

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

from benchmarks.common.evaluation import Score, cpu_session
from onnx_obc.runtime.metric import Sample
from onnx_obc.runtime.metrics import word_error_rate

START, NO_TIMES, END = 50257, 50362, 50256
LONGEST = 60  # tokens of a sentence
FILES = ("encoder", "decoder", "decoder_with_past")
SPOKEN = {"encoder": 8, "decoder": 48, "decoder_with_past": 48}  # sentences that each is calibrated on
SCORED = 30  # sentences
RATE = 16000
Features = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[Any]]


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
            name: cpu_session((files or {}).get(name, folder / f"{name}.onnx"), threads) for name in FILES
        }
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._suppressed = json.loads((folder / "suppressed.json").read_text())

    def states(self, features: Features) -> npt.NDArray[np.float32]:
        """What the encoder says of a sound, (1, 1500, 384)."""
        states: npt.NDArray[np.float32] = self._sessions["encoder"].run(None, {"input_features": features})[0]
        return states

    def steps(self, states: npt.NDArray[np.float32]) -> Iterator[tuple[str, Feed, int]]:
        """Which decoder is run on which feed, and the token that it gives, until the end."""
        name, feed = "decoder", {"input_ids": np.array([[START, NO_TIMES]]), "encoder_hidden_states": states}
        caches: Feed = {}
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

    def text(self, states: npt.NDArray[np.float32]) -> str:
        """What is said."""
        return str(self._tokenizer.decode([token for _, _, token in self.steps(states) if token != END]))

    def forced(self, states: npt.NDArray[np.float32], sentence: str) -> tuple[dict[str, Feed], npt.NDArray[np.float32]]:
        """What each decoder is fed where the text is known, and the logits (tokens, vocabulary) of all its tokens."""
        ids = np.array([[START, NO_TIMES, *self._tokenizer.encode(f" {sentence}").ids]])
        decoder, after = self._sessions["decoder"], self._sessions["decoder_with_past"]
        whole: Feed = {"input_ids": ids, "encoder_hidden_states": states}
        begun = decoder.run(None, {**whole, "input_ids": ids[:, :2]})
        out = dict(zip([x.name for x in decoder.get_outputs()], begun, strict=True))
        first = out.pop("logits")[0, -1:]  # (1, vocabulary)
        rest: Feed = {key.replace("present", "past_key_values"): array for key, array in out.items()}
        rest["input_ids"] = ids[:, 2:]
        feeds = {"decoder": whole, "decoder_with_past": rest}
        return feeds, np.concatenate([first, after.run(["logits"], rest)[0][0]])


def calibration(folder: Path, csv_file: Path) -> dict[str, list[Feed]]:
    """The feeds that each of the files is calibrated with."""
    sentences, whisper = read_sentences(csv_file, max(SPOKEN.values())), Whisper(folder)
    every = [
        {"encoder": {"input_features": sound}} | whisper.forced(whisper.states(sound), text)[0]
        for text, sound in zip(sentences, spoken(sentences), strict=True)
    ]
    return {name: [feeds[name] for feeds in every[:: len(every) // count]] for name, count in SPOKEN.items()}


def transcription(folder: Path, csv_file: Path) -> list[tuple[str, Feed, int]]:
    """What writing down one sentence runs: each file by its name, its last feed, and how often it runs."""
    whisper = Whisper(folder)
    sound = next(spoken(read_sentences(csv_file, 1)))
    states = whisper.states(sound)
    runs: list[tuple[str, Feed]] = [("encoder", {"input_features": sound})]
    runs += [(name, dict(feed)) for name, feed, _ in whisper.steps(states)]
    names, last = [name for name, _ in runs], dict(runs)
    return [(f"{name}.onnx", last[name], names.count(name)) for name in FILES]


def score(folder: Path, dense: Path, csv_file: Path, reference: npt.NDArray[np.generic] | None = None) -> Score:
    """The word error rate, of words without case and punctuation. predictions: the texts; agreement: the share of
    them that the reference has too; outputs: the logits of every token of what is really said."""
    whisper = Whisper(dense, {name: folder / f"{name}.onnx" for name in FILES})
    plain, metric, sentences = BasicTextNormalizer(), word_error_rate(None), read_sentences(csv_file, SCORED)
    notes, texts, logits = [], [], []
    for sentence, sound in zip(sentences, spoken(sentences), strict=True):
        states = whisper.states(sound)
        texts.append(plain(whisper.text(states)))
        notes.append(metric.note(Sample({}, {"text": np.array(texts[-1], object)}, plain(sentence))))
        logits.append(whisper.forced(states, sentence)[1])
    agreement = None if reference is None else float(np.mean(np.array(texts) == reference))
    return Score(metric.value(notes, notes), np.array(texts), agreement, np.concatenate(logits))
