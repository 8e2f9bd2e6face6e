"""Architectures of the `transformers` library, made tiny, with random weights. Imported only when one is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .case import Case, Input, torch_case

VOCABULARY, WIDTH, TOKENS = 99, 32, ("batch", "tokens")
TEXT = {"input_ids": Input(TOKENS, VOCABULARY, 3), "attention_mask": Input(TOKENS, 2, 1)}


def image(size: int = 32, batch: int | str = "batch") -> dict[str, Input]:
    return {"pixel_values": Input((batch, 3, size, size))}


def network(model: str, config: str, **options: Any) -> nn.Module:
    """`transformers.<model>` with random weights, of the configuration `transformers.<config>(**options)`."""
    import transformers

    transformers.logging.set_verbosity_error()
    if "vocab_size" in options:
        options |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings = getattr(transformers, config)(attn_implementation="eager", **options)
    return getattr(transformers, model)(settings)


def encoder(model: str, config: str, **options: Any) -> nn.Module:
    """A text model of two small layers in BERT's words."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return network(model, config, **sizes | options)


def hidden(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def logits_of_text(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask).logits


def logits_uncached(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def logits(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    return model(*inputs).logits


def depth(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    return model(*inputs).predicted_depth


def first(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    return model(*inputs)[0]


def with_past(model: nn.Module, ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One decoding step: keys and values of two layers go in, the longer ones come out."""
    from transformers import DynamicCache

    cache = DynamicCache([(past[0], past[1]), (past[2], past[3])])
    out = model(input_ids=ids, past_key_values=cache, use_cache=True)
    return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))


def bert() -> nn.Module:
    return encoder("BertForSequenceClassification", "BertConfig", num_labels=5)


def distilbert() -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    return network("DistilBertModel", "DistilBertConfig", max_position_embeddings=64, **sizes)


def roberta() -> nn.Module:
    return encoder("RobertaForMaskedLM", "RobertaConfig")


def albert() -> nn.Module:  # two layers share every weight
    return encoder("AlbertModel", "AlbertConfig", embedding_size=16)


def squeezebert() -> nn.Module:  # grouped 1-D convolutions instead of matrix products
    return encoder("SqueezeBertModel", "SqueezeBertConfig", embedding_size=WIDTH)


def gpt2() -> nn.Module:
    sizes = {"n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    return network("GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, **sizes)


def opt() -> nn.Module:
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 16}
    return encoder("OPTForCausalLM", "OPTConfig", **sizes)


def llama() -> nn.Module:
    return encoder("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=1)


def t5() -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    return network("T5Model", "T5Config", feed_forward_proj="gated-gelu", **sizes)


def whisper() -> nn.Module:
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder")
             for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))}  # fmt: skip
    lengths = {"max_source_positions": 20, "max_target_positions": 64, "num_mel_bins": 16}
    return network("WhisperModel", "WhisperConfig", vocab_size=VOCABULARY, d_model=WIDTH,
                   decoder_start_token_id=1, **lengths, **sizes)  # fmt: skip


def wav2vec2() -> nn.Module:
    sizes = {"conv_dim": (16, 32), "conv_kernel": (10, 3), "conv_stride": (5, 2),
             "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}  # fmt: skip
    return encoder("Wav2Vec2ForCTC", "Wav2Vec2Config", **sizes)


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    layers = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = layers | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": 98}
    vision = layers | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, attn_implementation="eager")
    return CLIPModel(config)


def vit() -> nn.Module:
    return encoder("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8)


def deit() -> nn.Module:
    return encoder("DeiTForImageClassificationWithTeacher", "DeiTConfig", image_size=32, patch_size=8)


def swin() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    return network("SwinForImageClassification", "SwinConfig", window_size=4, **sizes)


def convnext() -> nn.Module:
    sizes = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}
    return network("ConvNextForImageClassification", "ConvNextConfig", **sizes)


def mobilenet_v2() -> nn.Module:
    sizes = {"image_size": 32, "depth_multiplier": 0.25, "finegrained_output": False}
    return network("MobileNetV2ForImageClassification", "MobileNetV2Config", **sizes)


def mobilevit() -> nn.Module:
    sizes = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}
    return network("MobileViTForImageClassification", "MobileViTConfig", image_size=64,
                   num_attention_heads=2, **sizes)  # fmt: skip


def resnet() -> nn.Module:
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2], "layer_type": "bottleneck"}
    return network("ResNetForImageClassification", "ResNetConfig", **sizes)


def regnet() -> nn.Module:  # grouped convolutions and squeeze-and-excitation
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 48], "depths": [1, 1, 2, 1]}
    return network("RegNetForImageClassification", "RegNetConfig", groups_width=8, layer_type="y", **sizes)


def efficientnet() -> nn.Module:
    sizes = {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}
    return network("EfficientNetForImageClassification", "EfficientNetConfig", **sizes)


def segformer() -> nn.Module:
    sizes = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "sr_ratios": [2, 1]}
    kernels = {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    return network("SegformerForSemanticSegmentation", "SegformerConfig", decoder_hidden_size=32,
                   num_labels=5, **sizes, **kernels)  # fmt: skip


def dpt() -> nn.Module:  # a depth network: vision transformer, reassembled by transposed convolutions
    sizes = {"image_size": 32, "patch_size": 8, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False}
    necks = {"neck_hidden_sizes": [8, 16, 16, 32], "fusion_hidden_size": 16, "num_hidden_layers": 4}
    return encoder("DPTForDepthEstimation", "DPTConfig", **sizes | necks)


def whisper_encoder() -> nn.Module:
    return whisper().encoder


def whisper_decoder() -> nn.Module:
    return whisper().decoder


def t5_encoder() -> nn.Module:
    return t5().encoder


def t5_decoder() -> nn.Module:
    return t5().decoder


def decode(model: nn.Module, ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state


def text_features(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model.text_projection(model.text_model(input_ids=ids, attention_mask=mask).pooler_output)


def image_features(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(model.vision_model(pixels).pooler_output)


IDS = {"input_ids": TEXT["input_ids"]}
STEPS = IDS | {"encoder_states": Input(("batch", 6, WIDTH))}
PAST = {f"past_{i}_{part}": Input(("batch", 2, "past", WIDTH // 2)) for i in (0, 1) for part in ("key", "value")}
PRESENT = [name.replace("past", "present") for name in PAST]
MEL = {"input_features": Input(("batch", 16, 40))}
SOUND = {"input_values": Input(("batch", 400))}

CASES: list[Case] = [
    torch_case("bert", bert, TEXT, call=logits_of_text, opset=17),
    torch_case("distilbert", distilbert, TEXT, call=hidden, opset=14),
    torch_case("roberta", roberta, TEXT, call=logits_of_text, opset=18, dynamo=True),
    torch_case("albert", albert, TEXT, call=hidden, opset=15),
    torch_case("squeezebert", squeezebert, TEXT, call=hidden, opset=16),
    torch_case("gpt2-past", gpt2, IDS | PAST, ["logits", *PRESENT], call=with_past, opset=17),
    torch_case("opt", opt, TEXT, call=logits_uncached, opset=17),
    torch_case("llama", llama, TEXT, call=logits_uncached, opset=21, dynamo=True),
    torch_case("t5-encoder", t5_encoder, TEXT, call=hidden, opset=17),
    torch_case("t5-decoder", t5_decoder, STEPS, call=decode, opset=18, dynamo=True),
    torch_case("whisper-encoder", whisper_encoder, MEL, call=first, opset=17),
    torch_case("whisper-decoder", whisper_decoder, STEPS, call=decode, opset=20, dynamo=True),
    torch_case("wav2vec2", wav2vec2, SOUND, call=logits, opset=17),
    torch_case("clip-text", clip, TEXT, call=text_features, opset=17),
    torch_case("clip-vision", clip, image(), call=image_features, opset=19, dynamo=True),
    torch_case("vit", vit, image(), call=logits, opset=17),
    torch_case("deit", deit, image(), call=logits, opset=20, dynamo=True),
    torch_case("swin", swin, image(), call=logits, opset=17),
    torch_case("convnext", convnext, image(), call=logits, opset=16),
    torch_case("mobilenet-v2", mobilenet_v2, image(), call=logits, opset=18),
    torch_case("mobilevit", mobilevit, image(64), call=logits, opset=17),
    torch_case("resnet", resnet, image(), call=logits, opset=11, fold_batchnorm=False),
    torch_case("regnet", regnet, image(), call=logits, opset=13),
    torch_case("efficientnet", efficientnet, image(batch=4), call=logits, opset=22, dynamo=True),
    torch_case("segformer", segformer, image(), call=logits, opset=17),
    torch_case("dpt", dpt, image(batch=2), call=depth, opset=17),
]
