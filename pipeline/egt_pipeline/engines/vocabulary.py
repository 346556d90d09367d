"""What a model's tokens mean to us: which end a response, which are the two answers, which are never sampled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.engines.interface import Generation
from egt_pipeline.engines.token_text import TokenText
from egt_pipeline.prompts import FORBIDDEN_TOKENS


class Vocabulary:
    """The tokens of one model, from its processor and the end that its configuration names."""

    def __init__(self, processor: Any, config: Any) -> None:
        """Raises TaskError if "1" or "2" is no single token: the answer is read from these two."""
        tokenizer = processor.tokenizer
        self._text = TokenText(tokenizer)
        self.pad: int = tokenizer.pad_token_id
        ends = (tokenizer.eos_token_id, self.pad, config.get_text_config().eos_token_id)
        self.ends = {end for found in ends for end in (found if isinstance(found, list) else [found])} - {None}
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("1", "2", *FORBIDDEN_TOKENS)}
        known = {token: id_ for token, id_ in ids.items() if id_ is not None and id_ != tokenizer.unk_token_id}
        if missing := {"1", "2"} - set(known):
            raise TaskError(f"model: its tokenizer has no token for {sorted(missing)}, which the answer is read from")
        self.digits = [known["1"], known["2"]]
        self.forbidden = [known[token] for token in FORBIDDEN_TOKENS if token in known]

    def generation(
        self, token_ids_T: Sequence[int], entropies_T: NDArray[np.float64], p_digits_T2: NDArray[np.float64]
    ) -> Generation:
        """The response that these steps are; it ends before the first end token, or where there is no distribution."""
        broken = np.isnan(entropies_T)
        ended = (place for place, token in enumerate(token_ids_T) if token in self.ends or broken[place])
        end = next(ended, None)
        length = len(token_ids_T) if end is None else end
        text, offsets_T = self._text.decode(token_ids_T[:length])
        measured = length
        if end is not None and broken[end]:
            measured, offsets_T = end + 1, np.append(offsets_T, len(text))
        return Generation(
            text=text,
            truncated=end is None,
            token_ids_T=np.array(token_ids_T[:length], np.int32),
            entropies_nats_T=entropies_T[:measured],
            p_digits_T2=p_digits_T2[:measured],
            offsets_T=offsets_T,
        )
