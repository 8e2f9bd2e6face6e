"""Chooses a level for every layer: what is stored, what it costs, what it hurts, and what fits a budget."""
