"""StableReinforce's formulas on numbers worked out by hand or in float64, and against OpenRLHF's own shapes."""

import math

import numpy as np
import pytest
import torch

from egt_pipeline.losses import is_pre_clipped, policy_loss, pre_clip, sigma_filter, whiten, within_sigma


def test_the_log_ratio_is_clamped_before_exp_and_has_no_gradient_where_it_is() -> None:
    log_ratio = torch.tensor([-20.0, -6.0, 0.0, 6.0, 200.0], requires_grad=True)
    ratio = pre_clip(log_ratio, 1e3).exp()
    ratio.sum().backward()
    assert ratio.tolist() == pytest.approx([1e-3, math.exp(-6), 1.0, math.exp(6), 1e3], rel=1e-5)
    assert log_ratio.grad is not None
    assert log_ratio.grad[[0, 4]].tolist() == [0.0, 0.0]
    assert log_ratio.grad[2].item() == 1.0


def test_what_is_counted_as_pre_clipped_is_what_the_clamp_changes() -> None:
    log_ratio = torch.tensor([-7.0, -6.9, 0.0, 6.9, 7.0])
    changed = pre_clip(log_ratio, 1e3) != log_ratio
    assert is_pre_clipped(log_ratio, 1e3).tolist() == changed.tolist() == [True, False, False, False, True]


def test_one_wrong_answer_among_256_is_an_outlier_as_in_the_paper() -> None:
    rewards_BT = torch.ones(256, 1)
    rewards_BT[7] = 0.0
    whitened = whiten(rewards_BT, torch.ones(256, 1))
    assert whitened[7].item() == pytest.approx(-15.97, abs=0.01)
    filtered = sigma_filter(whitened, 3.0)
    assert filtered[7].item() == 0.0
    assert (filtered != 0).sum().item() == 255
    assert within_sigma(whitened, 3.0).sum().item() == 255


def test_the_filter_takes_bounds_around_zero_and_not_around_the_raw_mean() -> None:
    """The released code of R1-Reward zeroes every wrong answer of such a batch; the paper's rule keeps them."""
    rewards_BT = torch.tensor([[2.0]] * 70 + [[1.0]] * 5 + [[0.5]] * 25)
    whitened = whiten(rewards_BT, torch.ones_like(rewards_BT))
    assert whitened[-1].item() == pytest.approx(-1.636, abs=0.001)
    assert torch.equal(sigma_filter(whitened, 3.0), whitened)


def test_whitening_counts_tokens_and_ignores_padding() -> None:
    advantages_BT = torch.tensor([[2.0, 2.0, 2.0], [0.0, 99.0, 99.0]])
    mask_BT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    whitened = whiten(advantages_BT, mask_BT)
    tokens = np.array([2.0, 2.0, 2.0, 0.0])
    expected = (tokens - tokens.mean()) / tokens.std()
    assert whitened[mask_BT.bool()].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_equal_rewards_give_no_advantage() -> None:
    whitened = whiten(torch.full((4, 3), 1.5), torch.ones(4, 3))
    assert whitened.abs().max().item() == 0.0


def test_the_objective_equals_a_computation_in_float64_written_as_loops() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.normal(-1.0, 0.4, (3, 5)), rng.normal(-1.0, 0.4, (3, 5))
    new[0, 0] = old[0, 0] + 9.0
    advantages = rng.normal(0.0, 1.0, (3, 5))
    lengths = (5, 2, 4)
    total = 0.0
    for row, length in enumerate(lengths):
        tokens = []
        for place in range(length):
            ratio = math.exp(min(max(new[row, place] - old[row, place], math.log(1e-3)), math.log(1e3)))
            advantage = advantages[row, place]
            tokens.append(-min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
        total += sum(tokens) / length
    mask = torch.tensor([[float(place < length) for place in range(5)] for length in lengths])
    loss = policy_loss(
        *(torch.tensor(values) for values in (new, old, advantages)), mask, pre_clip_bound=1e3, clip_epsilon=0.2
    )
    assert loss.item() == pytest.approx(total / 3, rel=1e-12)


def test_an_exploding_ratio_gives_a_finite_loss_and_no_gradient() -> None:
    new = torch.tensor([[200.0]], requires_grad=True)
    loss = policy_loss(
        new, torch.zeros(1, 1), torch.tensor([[-1.0]]), torch.ones(1, 1), pre_clip_bound=1e3, clip_epsilon=0.2
    )
    loss.backward()
    assert loss.item() == pytest.approx(1e3, rel=1e-5)
    assert new.grad is not None
    assert new.grad.item() == 0.0
