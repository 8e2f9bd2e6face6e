from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened() as found:
        yield found
