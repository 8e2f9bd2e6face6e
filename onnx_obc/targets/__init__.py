"""The runtimes: one folder and one record each."""
