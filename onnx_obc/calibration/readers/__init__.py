"""Readers of calibration data: one file for each kind."""
