"""What one rank cannot do, no rank does: engine/agree.py."""

from __future__ import annotations

import pytest

from configs.errors import InputError
from engine.agree import on_every_rank, on_first_rank
from engine.launch import start_world
from tests.ranks import run_ranks

pytestmark = pytest.mark.engine
CASES = [(InputError, InputError), (OSError, OSError), (ZeroDivisionError, RuntimeError)]


def endings() -> list[tuple[str, str]]:
    """How acts end that fail with each kind of error: on rank 0 alone, and on the last rank of all."""
    world, ends = start_world("agree", 60, 1), []

    def fail(error: type[Exception], rank: int) -> None:
        if world.rank == rank:
            raise error("as it must")

    for error, _ in CASES:
        for together, rank in ((on_first_rank, 0), (on_every_rank, world.ranks - 1)):
            try:
                together(lambda error=error, rank=rank: fail(error, rank))  # type: ignore[misc]
            except Exception as raised:
                ends.append((type(raised).__name__, str(raised)))
    return ends


def test_all_ranks_fail_together() -> None:
    """Breaks if one rank's failure leaves the others waiting, or a bug or a full disk is called the user's mistake."""
    one, other = run_ranks(2, endings, timeout_s=60)
    assert one == other
    assert [kind for kind, _ in one] == [expected.__name__ for _, expected in CASES for _ in range(2)]
    assert all("as it must" in text for _, text in one)
    assert one[1][1].startswith("rank 1: ")
