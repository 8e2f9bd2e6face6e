"""Local search after the greedy: codes, scales and masks."""
