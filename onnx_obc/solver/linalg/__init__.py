"""Linear algebra under the solver: compiled BLAS calls, inverses, losses, threads."""
