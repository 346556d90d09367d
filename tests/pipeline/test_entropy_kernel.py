"""The GPU kernel by Triton's interpreter, against the closed form in float64. Its speed needs a GPU."""

import math

import pytest
import torch

from interpreted_kernel import interpreted

V = 152_064  # of Qwen2.5-VL


@pytest.fixture(scope="module")
def sums():
    with interpreted() as found:
        yield found


@pytest.fixture(scope="module")
def kernel(sums):
    """Entropies by the kernel."""
    return lambda logits_NV: sums(logits_NV)[0]


def exact(logits_NV):
    log_p = logits_NV.double().log_softmax(-1)
    return -(log_p.exp() * log_p.clamp_min(-1e300)).nansum(-1)


def drawn(rows, size, spread, dtype=torch.float32):
    return (torch.randn(rows, size, generator=torch.Generator().manual_seed(0)) * spread).to(dtype)


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])
def test_it_is_exact_at_a_large_vocabulary(kernel, spread):
    logits = drawn(3, V, spread)
    assert (kernel(logits) - exact(logits)).abs().max() < 2e-6


@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_exact_whatever_the_size_and_the_type_of_the_logits(kernel, size, dtype):
    logits = drawn(4, size, 3.0, dtype)
    assert (kernel(logits) - exact(logits)).abs().max() < 2e-6


def test_a_rising_maximum_moves_what_was_summed_before(kernel):
    logits = torch.linspace(0, 200, 3 * 4096)[None]
    assert (kernel(logits) - exact(logits)).abs().max() < 2e-6


def test_equal_logits_give_the_logarithm_of_their_number_whatever_their_height(kernel):
    for height in (-1e4, 0.0, 1e4):
        assert kernel(torch.full((1, 5000), height))[0] == pytest.approx(math.log(5000), abs=1e-6)


def test_ruled_out_tokens_count_nothing_and_one_left_is_certain(kernel):
    some = drawn(1, 9000, 2.0)
    some[:, ::3] = -math.inf
    some[:, :4096] = -math.inf
    assert (kernel(some) - exact(some[:, some[0] > -math.inf])).abs().max() < 2e-6
    one = torch.full((1, 9000), -math.inf)
    one[0, 7000] = 3.0
    assert kernel(one)[0] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_distribution_has_no_entropy(kernel, value):
    logits = drawn(2, 9000, 1.0)
    logits[1, 5000] = value
    found = kernel(logits)
    assert found.isnan().tolist() == [False, True]
    assert kernel(torch.full((1, 9000), -math.inf)).isnan().all()


def test_rows_of_a_larger_matrix_and_no_rows_are_taken_as_they_lie(kernel):
    logits = drawn(6, 5000, 2.0)
    assert torch.equal(kernel(logits[::2]), kernel(logits[::2].clone()))
    assert torch.equal(kernel(logits.T.contiguous().T), kernel(logits))
    assert kernel(logits[:0]).shape == (0,)


def test_the_logarithm_of_the_sum_comes_with_it(sums):
    logits = drawn(3, 9000, 4.0) + 50
    torch.testing.assert_close(sums(logits)[1], logits.double().logsumexp(-1), atol=1e-5, rtol=0)
