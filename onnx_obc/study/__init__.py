"""Pruning against quantization: which of the two loses less at equal size, in theory and on the layers of a model."""
