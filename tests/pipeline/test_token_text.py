"""Where the text of each token begins."""

import numpy as np

from build_model import random_model
from egt_pipeline.engines.token_text import TokenText
from egt_pipeline.reward_model import load_processor


def test_offsets_of_characters_spread_over_tokens_are_where_the_character_starts():
    tokenizer = load_processor(random_model()).tokenizer
    tokens = tokenizer.encode("a 四<answer>1</answer>é", add_special_tokens=False)
    text, offsets = TokenText(tokenizer).decode(tokens)
    assert text == "a 四<answer>1</answer>é"
    assert len(offsets) == len(tokens)
    starts = {int(at): text[at] for at in offsets}
    assert starts[text.index("四")] == "四"
    assert (offsets == text.index("四")).sum() == 3  # three bytes, none of them merged
    assert offsets[tokens.index(tokenizer.convert_tokens_to_ids("1"))] == text.index("1")


def test_offsets_never_leave_a_text_with_broken_characters():
    tokenizer = load_processor(random_model()).tokenizer
    tokens = tokenizer.encode("四四ab", add_special_tokens=False)
    for broken in (tokens[1:], tokens[:-3], tokens[:2] + tokens[4:], tokens[:1] * 9 + tokens[-1:]):
        text, offsets = TokenText(tokenizer).decode(broken)
        assert len(offsets) == len(broken)
        assert (np.diff(offsets) >= 0).all()
        assert offsets[0] == 0
        assert offsets[-1] <= len(text)
