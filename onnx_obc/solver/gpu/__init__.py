"""The exact greedy in torch, in lockstep over rows."""
