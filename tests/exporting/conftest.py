"""What the tests of exports share."""

from __future__ import annotations

from contextlib import suppress

import pytest


@pytest.fixture(scope="session", autouse=True)
def datasets_without_bars() -> None:
    """``datasets`` reads when it is imported whether to draw progress bars; other tests here look for them."""
    with pytest.MonkeyPatch.context() as patch, suppress(ImportError):
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        import datasets  # noqa: F401
