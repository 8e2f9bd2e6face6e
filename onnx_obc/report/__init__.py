"""Says what was done, in numbers: as JSON, and as tables in the terminal."""
