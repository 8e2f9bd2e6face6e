"""Reads calibration data, runs the model on it, and keeps what the solver needs."""
