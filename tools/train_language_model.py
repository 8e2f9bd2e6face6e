"""Train a small causal language model, and export it with its key/value cache. For evaluation only.

    pip install -r tools/requirements-models.txt -c constraints.txt
    python tools/train_language_model.py --text wikitext2-valid.txt --out work-models/language-model

A Llama of 2.4 million weights: 4 layers of width 192, 4 heads that share 2 keys and values, and a byte-level BPE of
2048 tokens trained on the same text. The graph is prefill and step in one: `input_ids`, `attention_mask`,
`position_ids` and `past_key_values.N.key/.value`, all of free length, give `logits` and `present.N.key/.value`.
Training ends after `--minutes`, so two runs differ; `--export` exports what was trained before once more.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

OPSET = 18
VOCABULARY, WIDTH, LAYERS, HEADS, KEYS, INNER = 2048, 192, 4, 4, 2, 512
WINDOW, BATCH, RATE, WARM_UP = 128, 4, 3e-3, 0.04  # tokens; windows in a step; learning rate; share of the time


def train_tokenizer(texts: Sequence[Path]) -> Tokenizer:
    """A byte-level BPE: every text has a token, so none is unknown."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(text) for text in texts], trainer)
    return tokenizer


def train(tokenizer: Tokenizer, texts: Sequence[Path], minutes: float) -> LlamaForCausalLM:
    """The model after so many minutes of AdamW, the learning rate falling along a cosine."""
    ids = np.concatenate([tokenizer.encode(text.read_text(encoding="utf-8")).ids for text in texts])  # (tokens,)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    print(f"{len(ids)} tokens, {sum(p.numel() for p in model.parameters())} weights", flush=True)
    began, step, mean = time.monotonic(), 0, math.log(VOCABULARY)
    while (done := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * done))
        starts = rng.integers(0, len(ids) - WINDOW, BATCH)
        windows = torch.from_numpy(np.stack([ids[start : start + WINDOW] for start in starts])).long()
        loss = model(input_ids=windows, labels=windows, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, mean = step + 1, 0.98 * mean + 0.02 * float(loss.detach())
        if step % 50 == 0:
            print(f"{step} steps, {100 * done:.0f} % of the time: training perplexity {math.exp(mean):.1f}", flush=True)
    return model.eval()


class WithCache(nn.Module):
    """A causal model whose caches are plain arguments and results: key, value, key, value, … of each layer in turn."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        width, old = ids.shape[1], past[0].shape[2]
        rows = torch.arange(old, old + width)[:, None]  # (tokens, 1)
        seen = (torch.arange(old + width)[None] <= rows)[None, None] & (mask[:, None, None] > 0)  # (N, 1, tokens, all)
        bias = torch.where(seen, 0.0, -1e9)
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model(
            input_ids=ids, attention_mask=bias, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return (out.logits, *(x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)))


def export(model: LlamaForCausalLM, path: Path) -> None:
    """Prefill and step as one graph; raises AssertionError unless onnxruntime continues a cache as torch does."""
    import onnxruntime

    model.config._attn_implementation = "eager"
    module = WithCache(model).eval()
    parts = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{part}" for part in parts)]
    outputs = ["logits", *(f"present.{part}" for part in parts)]
    past = [torch.randn(2, KEYS, 3, WIDTH // HEADS) for _ in parts]
    ids = torch.arange(14).reshape(2, 7)
    example = (ids, torch.ones(2, 10, dtype=torch.int64), torch.arange(3, 10).repeat(2, 1), *past)
    axes = {name: {0: "batch", 1: "tokens"} for name in names[:3]} | {"logits": {0: "batch", 1: "tokens"}}
    axes |= {"attention_mask": {0: "batch", 1: "total"}}
    axes |= {name: {0: "batch", 2: "past"} for name in names[3:]} | {
        name: {0: "batch", 2: "total"} for name in outputs[1:]
    }
    with torch.no_grad():
        torch.onnx.export(
            module, example, path, input_names=names, output_names=outputs, dynamic_axes=axes,
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(path)
        for tokens, old in ((5, 0), (1, 6), (4, 9)):
            past = [torch.randn(1, KEYS, old, WIDTH // HEADS) for _ in parts]
            total = old + tokens
            feed = (torch.arange(tokens)[None], torch.ones(1, total, dtype=torch.int64), torch.arange(old, total)[None])
            wanted = module(*feed, *past)
            given = {name: array.numpy() for name, array in zip(names, (*feed, *past), strict=True)}
            for got, expected in zip(session.run(None, given), wanted, strict=True):
                np.testing.assert_allclose(got, expected.numpy(), atol=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 text to train on")
    parser.add_argument("--out", type=Path, default=Path("work-models/language-model"), help="the folder to write")
    parser.add_argument("--minutes", type=float, default=12, help="how long to train")
    parser.add_argument("--export", action="store_true", help="train nothing, only export the trained model again")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trained = options.out / "torch"
    if not options.export:
        tokenizer = train_tokenizer(options.text)
        tokenizer.save(str(options.out / "tokenizer.json"))
        train(tokenizer, options.text, options.minutes).save_pretrained(trained)
    export(LlamaForCausalLM.from_pretrained(trained), options.out / "model.onnx")


if __name__ == "__main__":
    main()
