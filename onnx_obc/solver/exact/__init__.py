"""The exact greedy of Optimal Brain Surgeon and Quantizer, compiled."""
