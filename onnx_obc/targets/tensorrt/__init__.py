"""TensorRT."""

from ..engine import Engine
from ..onnxruntime.biases import fit_to_biases
from ..target import Target
from . import check, engine, rules
from .weights import quantize_in_graph

TARGET = Target(
    name="tensorrt",
    title="TensorRT",
    engine=Engine(engine.version, engine.load),
    unsupported=rules.unsupported,
    activation_bits=rules.activation_bits,
    unprofitable=rules.unprofitable,
    prepare=rules.prepare,
    place_qdq=rules.place_qdq,
    fit_to_biases=fit_to_biases,  # of a Q/DQ file, which onnxruntime can read too
    check=check.check,
    weight_forms={"dq": None, "qdq": quantize_in_graph},
    signed_activations=True,
    embeddings=False,
    zeros="2:4 has kernels, other zeros make nothing faster",
    latency_levels="gpu",
    build_elsewhere=engine.build_elsewhere,
)
