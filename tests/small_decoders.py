"""Small decoders with caches for the tests: one layer of attention, random weights, names as exporters give them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from small_graphs import random
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

WORDS, WIDTH, HEADS = 40, 32, 2
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
ID, POSITION, CROSS = "input_ids", "position_ids", ("past_key_values.0.encoder.key", "past_key_values.0.encoder.value")
NAMES = {
    "optimum": ("past_key_values.0.key", "past_key_values.0.value", "present.0.key", "present.0.value"),
    "decoder": (
        *("past_key_values.0.decoder.key", "past_key_values.0.decoder.value"),
        *("present.0.decoder.key", "present.0.decoder.value"),
    ),
    "short": ("past_0_key", "past_0_value", "present_0_key", "present_0_value"),
    "self": ("past_key_self_0", "past_value_self_0", "present_key_self_0", "present_value_self_0"),
    "kv": ("past_kv_0_k", "past_kv_0_v", "present_kv_0_k", "present_kv_0_v"),
    "cache": ("k_cache.0.in", "v_cache.0.in", "k_cache.0.out", "v_cache.0.out"),
    "stacked": ("past.0", "", "present.0", ""),
}


def decoder(
    names: tuple[str, str, str, str] = NAMES["optimum"],
    ids: str = ID,
    tokens: int | str = "tokens",
    extra: tuple[str, ...] = (POSITION, "attention_mask"),
    states: bool = False,
    merged: bool = False,
    past: int | str = "past",
) -> onnx.ModelProto:
    """A decoder. extra: more inputs. states: it looks at an encoder's. merged: and keeps what it made of them."""
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, output.split(), output.split()[0], **attributes))
        return output

    floats = {name: random(WIDTH, WIDTH, seed=i) / 6 for i, name in enumerate(("wq", "wk", "wv", "wo", "ck", "cv"))}
    floats |= {"table": random(WORDS, WIDTH), "places": random(64, WIDTH, seed=9), "head": random(WIDTH, WORDS)}
    floats |= {"zero": np.float32([0]), "low": np.float32([-1e9])}
    split = np.array([0, 0, HEADS, WIDTH // HEADS])
    ints = {"split": split, "join": np.array([0, 0, WIDTH]), "i0": np.array(0), "i1": np.array(1), "i2": np.array(2)}
    inputs: dict[str, tuple[int, list[int | str]]] = {ids: (INT, ["batch", tokens])}
    known = {POSITION: ["batch", tokens], "attention_mask": ["batch", "total"], "cache_position": [tokens]}
    inputs |= {name: (INT, known[name]) for name in extra}
    size: list[int | str] = ["batch", HEADS, past, WIDTH // HEADS]
    outputs: dict[str, list[int | str]] = {"logits": ["batch", tokens, WORDS]}
    size_out: list[int | str] = ["batch", HEADS, "total", WIDTH // HEADS]
    stacked = not names[1]

    def heads(x: str, weight: str, output: str) -> str:
        product = node("MatMul", [x, weight], f"{output}_flat")
        return node("Transpose", [node("Reshape", [product, "split"], f"{output}_4d")], output, perm=[0, 2, 1, 3])

    def attend(query: str, key: str, value: str, mask: str | None, output: str) -> str:
        turned = node("Transpose", [key], f"{output}_kt", perm=[0, 1, 3, 2])
        scores = node("MatMul", [query, turned], f"{output}_scores")
        scores = node("Add", [scores, mask], f"{output}_masked") if mask else scores
        mixed = node("MatMul", [node("Softmax", [scores], f"{output}_p", axis=-1), value], f"{output}_mixed")
        joined = node("Transpose", [mixed], f"{output}_t", perm=[0, 2, 1, 3])
        return node("Reshape", [joined, "join"], output)

    x = node("Gather", ["table", ids], "embedded")
    for place in (POSITION, "cache_position"):
        if place in extra:
            x = node("Add", [x, node("Gather", ["places", place], f"{place}_e")], f"x_{place}")
    if stacked:
        inputs[names[0]] = (FLOAT, [2, *size])
        old = [node("Gather", [names[0], f"i{i}"], f"old{i}", axis=0) for i in (0, 1)]
    else:
        inputs |= dict.fromkeys(names[:2], (FLOAT, size))
        old = list(names[:2])
    new = [heads(x, "wk", "k"), heads(x, "wv", "v")]
    outs = ["all_k", "all_v"] if stacked else list(names[2:])
    key, value = (node("Concat", [old[i], new[i]], outs[i], axis=2) for i in (0, 1))
    if stacked:
        ints["front"] = np.array([0])
        both = [node("Unsqueeze", [name, "front"], f"{name}_5d") for name in (key, value)]
        node("Concat", both, names[2], axis=0)
        outputs[names[2]] = [2, *size_out]
    else:
        outputs |= dict.fromkeys(outs, size_out)
    total = node("Gather", [node("Shape", [key], "shape"), "i2"], "total_n")
    count = node("Gather", [node("Shape", [ids], "shape_ids"), "i1"], "count_n")
    rows = node("Range", [node("Sub", [total, count], "past_n"), total, "i1"], "rows")
    ints["last"] = np.array([1])
    seen = node("LessOrEqual", [node("Range", ["i0", total, "i1"], "columns"),
                                node("Unsqueeze", [rows, "last"], "rows_2d")], "seen")  # fmt: skip
    mask = node("Where", [seen, "zero", "low"], "mask")
    x = node("Add", [x, node("MatMul", [attend(heads(x, "wq", "q"), key, value, mask, "self"), "wo"], "self_o")], "x1")
    if states:
        inputs["encoder_hidden_states"] = (FLOAT, ["batch", "frames", WIDTH])
        cross = [heads("encoder_hidden_states", "ck", "cross_k"), heads("encoder_hidden_states", "cv", "cross_v")]
        if merged:
            inputs["use_cache_branch"] = (BOOL, [1])
            inputs |= {name: (FLOAT, ["batch", HEADS, "frames_past", WIDTH // HEADS]) for name in CROSS}
            for i, name in enumerate(CROSS):
                then, other = (
                    helper.make_graph(
                        [helper.make_node("Identity", [source], [f"{kind}_{i}"])], kind, [],
                        [helper.make_tensor_value_info(f"{kind}_{i}", FLOAT, None)],
                    )
                    for kind, source in (("kept", name), ("made", cross[i]))
                )  # fmt: skip
                cross[i] = name.replace("past_key_values", "present")
                node("If", ["use_cache_branch"], cross[i], then_branch=then, else_branch=other)
                outputs[cross[i]] = ["batch", HEADS, "frames_out", WIDTH // HEADS]
        x = node("Add", [x, attend(heads(x, "wq", "q2"), *cross, None, "cross")], "x2")
    node("MatMul", [x, "head"], "logits")
    graph = helper.make_graph(
        nodes, "decoder",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in {**floats, **ints}.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def encoder() -> onnx.ModelProto:
    """Tokens to encoder_hidden_states."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", ID], ["x"]),
         helper.make_node("MatMul", ["x", "w"], ["last_hidden_state"])],
        "encoder",
        [helper.make_tensor_value_info(ID, INT, ["batch", "tokens"])],
        [helper.make_tensor_value_info("last_hidden_state", FLOAT, ["batch", "tokens", WIDTH])],
        [numpy_helper.from_array(random(WORDS, WIDTH, seed=3), "table"),
         numpy_helper.from_array(random(WIDTH, WIDTH, seed=4), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_text(folder: Path, tokens: int = 400, words: int = WORDS) -> tuple[Path, str]:
    """A text of so many tokens, and a tokenizer of so many words for it."""
    drawn = np.random.default_rng(0).integers(0, words, tokens)
    drawn[0] = words - 1
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(f"w{i}" for i in line) for line in np.array_split(drawn, 10)))
    made = Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    path = folder / "tokenizer.json"
    made.save(str(path))
    assert json.loads(path.read_text())["model"]["vocab"]
    return text, str(path)
