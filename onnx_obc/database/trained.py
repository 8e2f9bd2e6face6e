"""Parts of a model that were trained, kept in a database, so that training that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.arrays import Array
from ..core.errors import DatabaseError
from .files import content_key, read_arrays, write_arrays


@dataclass(frozen=True)
class TrainedParts:
    """A folder with a file for each part. model, samples: the keys of what parts are trained on."""

    folder: Path
    model: str
    samples: str

    def key(self, *parts: object) -> str:
        """See `PartStore`."""
        return content_key(self.model, self.samples, *parts)

    def recall(self, key: str) -> Mapping[str, Array] | None:
        """See `PartStore`; a file that is damaged counts as missing."""
        try:
            return read_arrays(self._file(key), key)[0]
        except DatabaseError:
            return None

    def keep(self, key: str, arrays: Mapping[str, Array]) -> None:
        """See `PartStore`. Raises OutputError."""
        write_arrays(self._file(key), arrays, key, {})

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
