"""The draw of a next token: the support and the odds of temperature, top-k and top-p, and draws that follow them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from weights.next_token import pick, probabilities
from weights.sample import Sampling

BY_HAND = torch.tensor([0.05, 0.4, 0.05, 0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.05, 0.4, 0.05, 0.3, 0.2]),
        ({"temperature": 0.5}, [0.0025, 0.16, 0.0025, 0.09, 0.04]),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1e-307}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 2}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1.0, "top_k": 4}, [0.05, 0.4, 0, 0.3, 0.2]),  # of two equal ones the first
        ({"temperature": 1.0, "top_p": 0.65}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 1.0, "top_p": 0.75}, [0, 0.4, 0, 0.3, 0.2]),
        ({"temperature": 1.0, "top_p": 1e-9}, [0, 1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 1.0}, [0.05, 0.4, 0.05, 0.3, 0.2]),
        # 0.75 is reached by 0.4 + 0.3 of the three likeliest, 7/9, and not of all
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.75}, [0, 0.4, 0, 0.3, 0]),
        # at temperature 1/2 the likeliest have more: 0.16 + 0.09 of 0.295
        ({"temperature": 0.5, "top_p": 0.75}, [0, 0.16, 0, 0.09, 0]),
    ],
)
def test_support_and_probabilities(options: dict[str, Any], expected: list[float]) -> None:
    """Breaks if temperature, top-k or top-p leaves another support or other odds, or is taken in another order."""
    logits = torch.stack((BY_HAND.log() + 700, BY_HAND.log().roll(2)))
    odds = torch.tensor(expected, dtype=torch.float64) / sum(expected)
    found = probabilities(logits, **options)
    torch.testing.assert_close(found[0], odds, rtol=1e-9, atol=0)
    if options.get("top_k") != 4:  # rolled, another of the equal ones is the first
        torch.testing.assert_close(found[1], odds.roll(2), rtol=1e-9, atol=0)
    assert probabilities(torch.zeros(1, 5000), 1.0, top_k=3)[0].nonzero().flatten().tolist() == [0, 1, 2]


def test_draws_follow_the_distribution() -> None:
    """Breaks if draws are not of the probabilities, by a chi-square test within a text and over the first draws of many seeds, or a
    token of chance 0 comes, at the edges of [0, 1) too."""
    chances = torch.tensor([0.0, 0.4, 0.05, 0.0, 0.35, 0.2, 0.0], dtype=torch.float64)
    logits = chances.log()
    one = Sampling().drawing(3)
    for drawn in (
        [one(logits[None])[0] for _ in range(4000)],
        [Sampling().drawing(seed)(logits[None])[0] for seed in range(4000)],
    ):
        counts = torch.bincount(torch.tensor(drawn), minlength=7)
        expected = 4000 * chances
        assert not counts[chances == 0].any()
        likely = chances > 0
        chi2 = ((counts[likely] - expected[likely]).square() / expected[likely]).sum().item()
        assert chi2 < 16.3, chi2  # 3 degrees of freedom: one in a thousand is above
    edges = torch.tensor([0.0, 1 - 2**-53, 0.4, 0.4 - 2**-53], dtype=torch.float64)
    assert pick(chances.expand(4, -1), edges).tolist() == [1, 5, 2, 1]
    assert pick(0.1 * chances.expand(4, -1), edges).tolist()[:2] == [1, 5]
