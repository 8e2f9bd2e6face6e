"""The words that all share. Imports nothing of ours."""
