"""OpenVINO on a CPU."""

from ..engine import Engine
from ..onnxruntime.biases import fit_to_biases
from ..target import Target
from . import engine, rules

TARGET = Target(
    name="openvino",
    title="OpenVINO",
    engine=Engine(engine.version, engine.load),
    unsupported=rules.unsupported,
    activation_bits=rules.activation_bits,
    dynamic=True,
    not_dynamic=rules.not_dynamic,
    prepare=rules.prepare,
    place_qdq=rules.place_qdq,
    fit_to_biases=fit_to_biases,  # of a Q/DQ file, which onnxruntime can read too
    check=rules.check,
    zero_points=lambda activation_bits: activation_bits is None,  # its integer kernels have none
)
