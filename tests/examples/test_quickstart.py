"""The quickstart on several numbers of ranks; tests/docs/test_readme.py runs it alone and under torchrun."""

from __future__ import annotations

import pytest
from examples_on_ranks import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("on", [1, 2, 3, 4])
def test_quickstart_is_right_on_every_number_of_ranks(on: int) -> None:
    run("quickstart.py", on=on)
