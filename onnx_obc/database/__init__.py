"""Every layer at every level, on disk."""
