"""Budgets of measured latency: tables of layer times, and the search on them."""
