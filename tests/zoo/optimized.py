"""Networks of the zoo as onnxruntime's transformer optimizer, and its optimization ahead of time, leave them."""

from __future__ import annotations

from pathlib import Path

from . import networks
from .case import Case

MODEL_TYPES = {
    "bert": "bert",
    "gpt2-past": "gpt2",
    "llama": "gpt2",
    "t5-encoder": "bert",
    "t5-decoder": "bert",
    "whisper-decoder": "bart",
    "vit": "vit",
}


def by_optimizer(case: Case) -> Case:
    """What `onnxruntime.transformers.optimizer` makes of it."""

    def build(path: Path) -> None:
        from onnxruntime.transformers import optimizer

        case.build(path)
        kind = MODEL_TYPES[case.name]
        fused = optimizer.optimize_model(
            str(path), model_type=kind, num_heads=2, hidden_size=networks.WIDTH, opt_level=0
        )
        fused.save_model_to_file(str(path))

    return Case(f"{case.name}-optimizer", build, case.feeds)


def ahead_of_time(case: Case, level: str) -> Case:
    """What onnxruntime saves of it, optimized at a level."""

    def build(path: Path) -> None:
        import onnxruntime

        plain = path.with_name("plain.onnx")
        case.build(plain)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])

    return Case(f"{case.name}-{level.lower()}", build, case.feeds)


_CHOSEN = [case for case in networks.CASES if case.name in MODEL_TYPES]
CASES: list[Case] = [
    *(by_optimizer(case) for case in _CHOSEN),
    *(ahead_of_time(case, "EXTENDED") for case in _CHOSEN if case.name == "whisper-decoder"),
]
