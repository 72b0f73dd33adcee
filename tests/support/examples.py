"""How many examples a property test draws."""

import os

from hypothesis import settings


def examples(number: int) -> settings:
    """`number` where CURRICULA_THOROUGH is set, as `make test-all` does, and a quarter of it otherwise."""
    return settings(max_examples=number if os.environ.get("CURRICULA_THOROUGH") else number // 4)
