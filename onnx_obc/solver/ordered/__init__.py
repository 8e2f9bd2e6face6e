"""The ordered solver, for layers too large for the exact greedy."""
