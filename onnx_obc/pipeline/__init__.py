"""One model to one file: read, find, capture, solve, write, correct, verify, report."""
