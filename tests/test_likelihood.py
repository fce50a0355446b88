"""Log-likelihoods and greedy continuations of given tokens, beside those written out one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.gpt import GPT
from tests.test_llama import gpt
from weights.likelihood import Likelihoods

EOT = 7
DRAW = torch.Generator().manual_seed(5)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    """Each test draws the same tokens, whichever ran before it."""
    DRAW.manual_seed(5)


def tokens(count: int) -> list[int]:
    """None of them ends a text."""
    return (torch.randint(8, 100, (count,), generator=DRAW)).tolist()


def log_p(network: GPT, sequence: list[int]) -> Tensor:
    """(T − 1, V): of what follows each token but the last."""
    with torch.no_grad():
        return network.logits(torch.tensor([sequence[:-1]]))[0].double().log_softmax(-1)


def by_hand(network: GPT, context: list[int], targets: list[int]) -> tuple[float, bool]:
    each = log_p(network, context + targets)[-len(targets) :]
    sum_ = sum(each[i, token].item() for i, token in enumerate(targets))
    return sum_, each.argmax(-1).tolist() == targets


PAIRS = [(tokens(a), tokens(b)) for a, b in ((3, 1), (0, 4), (9, 2), (1, 6), (20, 5), (5, 5), (12, 1))]


@pytest.mark.parametrize("separate_at", [None, EOT])
def test_equals_the_logits_in_any_batch(separate_at: int | None) -> None:
    """Breaks if a context leaks into the sum, rows are mixed up, what fills a row is seen, or the empty context is another."""
    network = gpt().eval()
    network.separate_at = separate_at
    # one whose targets are the likeliest: a flag that is never true proves nothing
    first = tokens(4)
    best = int(log_p(network, [*first, 0])[-1].argmax())
    pairs = [*PAIRS, (first, [best, (best + 1) % 90 + 8]), (first, [best])]
    expected = [by_hand(network, context or [EOT], targets) for context, targets in pairs]
    assert [is_best for _, is_best in expected] == [False] * 8 + [True]
    for batch in (1, 4):
        scored = Likelihoods(network, EOT, batch, CPU).score(pairs)
        assert [is_best for _, is_best in scored] == [is_best for _, is_best in expected]
        assert [value for value, _ in scored] == pytest.approx([value for value, _ in expected], abs=1e-5)


def test_a_document_does_not_see_the_one_before() -> None:
    """Breaks if the end-of-text token before an empty context is seen by the text, in a run whose attention stays in a document."""
    network, targets = gpt(position="rotary").eval(), tokens(6)  # of rotary positions only distances count
    alone = by_hand(network, targets[:1], targets[1:])[0] + by_hand(network, [EOT], targets[:1])[0]
    (seen, _), *_ = Likelihoods(network, EOT, 1, CPU).score([([], targets)])
    network.separate_at = EOT
    (apart, _), *_ = Likelihoods(network, EOT, 1, CPU).score([([], targets)])
    assert apart == pytest.approx(alone, abs=1e-5)
    assert abs(seen - alone) > 1e-2


def test_what_is_too_long_loses_its_left() -> None:
    """Breaks if what is cut is the end, is not counted, or a target longer than the context loses tokens or counts some twice."""
    network = gpt().eval()  # a context of 24
    context, targets, many = tokens(40), tokens(5), tokens(30)
    likelihoods = Likelihoods(network, EOT, 2, CPU)
    (value, _), (_, _), (long, _) = likelihoods.score(
        [(context, targets), (context[:20], targets), (context[:3], many)]
    )
    assert value == pytest.approx(by_hand(network, context[-20:], targets)[0], abs=1e-5)
    parts = (
        by_hand(network, context[2:3], many[:24])[0] + by_hand(network, (context[:3] + many[:24])[-19:], many[24:])[0]
    )
    assert long == pytest.approx(parts, abs=1e-5)
    assert (likelihoods.cut, likelihoods.lost) == (2, 20 + 2)


def test_greedy_continuation() -> None:
    """Breaks if a batch, a context that is full, or an end that one row reaches, changes what another row says."""
    network = gpt().eval()
    prompts, most = [tokens(n) for n in (5, 22, 1, 30)] + [[]], [8, 8, 3, 4, 5]

    def plain(prompt: list[int], count: int) -> list[int]:
        made: list[int] = []
        while len(made) < count:
            token = int(log_p(network, [*((prompt or [EOT]) + made)[-24:], 0])[-1].argmax())
            if token == EOT:
                break
            made.append(token)
        return made

    expected = [plain(prompt, count) for prompt, count in zip(prompts, most, strict=True)]
    for batch in (1, 3):
        likelihoods = Likelihoods(network, EOT, batch, CPU)
        assert likelihoods.continued(prompts, most, 100, lambda i, ids: False) == expected
        assert (likelihoods.cut, likelihoods.lost) == (2, 5 + 9)
        short = likelihoods.continued(prompts, most, 100, lambda i, ids: i == 0 and len(ids) == 2)
        assert short == [expected[0][:2], *expected[1:]]
    # the second token of the first row, as if it ended a text
    ended = Likelihoods(network, expected[0][1], 3, CPU).continued(prompts[:1], [8], 100, lambda i, ids: False)
    assert ended == [expected[0][: expected[0].index(expected[0][1])]]
    # the largest id of them and those behind it have no text: the likeliest of the others is taken, with kept keys and without
    bound = max(expected[0][:4] + expected[1][:4])
    small = Likelihoods(network, EOT, 3, CPU).continued(prompts[:2], [4, 4], bound, lambda i, ids: False)
    assert small != [tokens[:4] for tokens in expected[:2]]
    assert max(map(max, small)) < bound
