import math

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from egt_pipeline.entropy import entropy_nats, measure, sentence_entropy_nats

QWEN_VOCABULARY = 152_064


def in_full_precision(logits_NV):
    """-sum p ln p straight from its definition, in float64."""
    x = np.asarray(logits_NV, np.float64)
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(-1)


@pytest.mark.parametrize("size", [2, 382, QWEN_VOCABULARY])
def test_equal_logits_have_the_entropy_ln_v(size):
    assert entropy_nats(torch.full((1, size), 3.0)).item() == pytest.approx(math.log(size), abs=1e-6)


def test_a_certain_token_has_entropy_zero_and_never_less():
    certain = torch.full((1, 1000), -200.0)
    certain[0, 7] = 200.0
    assert entropy_nats(certain).item() == 0.0


def test_a_coin_among_impossible_tokens_has_the_entropy_ln_2():
    coin = torch.full((1, 1000), -torch.inf)
    coin[0, [3, 900]] = 5.0
    assert entropy_nats(coin).item() == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0, 12.0])
def test_float32_logits_are_exact_to_a_millionth_over_the_vocabulary_of_qwen(spread):
    logits = spread * torch.randn(40, QWEN_VOCABULARY, generator=torch.Generator().manual_seed(0)) + 30
    error = np.abs(entropy_nats(logits).numpy() - in_full_precision(logits))
    assert error.max() <= 1e-6


def test_bfloat16_logits_are_computed_in_float32():
    logits = (4 * torch.randn(5, 5000, generator=torch.Generator().manual_seed(0))).bfloat16()
    np.testing.assert_allclose(entropy_nats(logits).numpy(), in_full_precision(logits.float()), atol=1e-6)


def test_a_row_with_nan_or_plus_infinity_or_nothing_possible_gives_nan_and_leaves_the_others_alone():
    logits = torch.zeros(4, 8)
    logits[0, 3], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    entropies = entropy_nats(logits)
    assert entropies[:3].isnan().all()
    assert entropies[3].item() == pytest.approx(math.log(8))


def test_no_rows_give_no_entropies():
    assert entropy_nats(torch.zeros(0, 8)).shape == (0,)


def test_input_is_left_as_it_is():
    logits = torch.randn(3, 10)
    before = logits.clone()
    entropy_nats(logits)
    assert torch.equal(logits, before)


logits_tables = hypothesis.extra.numpy.arrays(
    np.float64,
    st.tuples(st.integers(1, 40), st.integers(2, 30)),
    elements=st.one_of(st.floats(-50, 50), st.just(-np.inf)),
).filter(lambda table: np.isfinite(table).any(axis=1).all())


@hypothesis.given(logits_tables)
def test_any_table_agrees_with_the_definition(table):
    entropies = entropy_nats(torch.from_numpy(table)).numpy()
    np.testing.assert_allclose(entropies, in_full_precision(table), atol=1e-12)
    assert (entropies >= 0).all()


@hypothesis.given(logits_tables, st.floats(-1e3, 1e3))
def test_adding_a_constant_or_permuting_the_vocabulary_changes_nothing(table, shift):
    entropies = entropy_nats(torch.from_numpy(table)).numpy()
    moved = entropy_nats(torch.from_numpy(table[:, ::-1] + shift)).numpy()
    np.testing.assert_allclose(moved, entropies, atol=1e-9)


@hypothesis.given(logits_tables)
def test_probabilities_of_tokens_are_those_of_the_whole_distribution(table):
    logits = torch.from_numpy(table)
    found = measure(logits, [1, 0])[1]
    np.testing.assert_allclose(found, logits.softmax(-1)[:, [1, 0]], atol=1e-12)


def test_sentence_entropy_is_the_mean_over_tokens():
    assert sentence_entropy_nats(np.array([0.5, 1.0, 0.0])) == 0.5
    assert math.isnan(sentence_entropy_nats(np.array([0.5, np.nan])))
    assert math.isnan(sentence_entropy_nats(np.array([])))
