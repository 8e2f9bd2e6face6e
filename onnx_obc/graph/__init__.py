"""Knows ONNX; knows nothing of solving."""
