"""Transforms that keep what a model computes, and change how well it can be quantized."""
