"""Says what was done, in numbers: as JSON, and as a table in the terminal."""

from .report import LayerReport, Report, SCHEMA, write_json

__all__ = ["SCHEMA", "LayerReport", "Report", "write_json"]
