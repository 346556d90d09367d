"""The transformers engine: batched generation with a key-value cache and exact entropies, on whatever device there is.

The loop is our own because ``generate`` keeps the logits of every step or none, applies the model's generation_config
(Qwen2.5 ships a repetition penalty), and draws all samples of a batch from one random stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from egt_pipeline.contract.base import PromptId
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.engines.encoding import encode
from egt_pipeline.engines.interface import Generation, Refused, Request
from egt_pipeline.engines.token_text import TokenText
from egt_pipeline.entropy import entropy_nats, token_probabilities
from egt_pipeline.prompts import FORBIDDEN_TOKENS
from egt_pipeline.reward_model import load_model, load_processor


@dataclass(frozen=True)
class _Steps:
    """What B sequences generated in T steps. A sequence's steps after its end mean nothing."""

    tokens_BT: NDArray[np.int64]
    entropies_BT: NDArray[np.float64]
    p_digits_BT2: NDArray[np.float64]


class TransformersEngine:
    """A vision-language model with three-axis rotary positions (Qwen2.5-VL) behind the Engine interface."""

    def __init__(self, model_dir: Path, *, precision: str, prompt: PromptId, batch_size: int) -> None:
        self._model = load_model(model_dir, precision).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._processor = load_processor(model_dir)
        self._prompt, self._batch_size = prompt, batch_size
        # The head in float32 whatever the model runs in: bfloat16 logits have steps of 0.1, which makes entropies tie.
        self._head_VD = self._model.get_output_embeddings().weight.detach().float()
        tokenizer = self._processor.tokenizer
        self._text = TokenText(tokenizer)
        self._pad = tokenizer.pad_token_id
        ends = (tokenizer.eos_token_id, self._pad, self._model.config.get_text_config().eos_token_id)
        self._ends = {end for found in ends for end in (found if isinstance(found, list) else [found])}
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("1", "2", *FORBIDDEN_TOKENS)}
        known = {token: id_ for token, id_ in ids.items() if id_ is not None and id_ != tokenizer.unk_token_id}
        if missing := {"1", "2"} - set(known):
            raise TaskError(f"model: its tokenizer has no token for {sorted(missing)}, which the answer is read from")
        self._digits = [known["1"], known["2"]]
        self._forbidden = [known[token] for token in FORBIDDEN_TOKENS if token in known]

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Generation | Refused]:
        """See ``Engine``. Batches are cut from ``requests`` in their order, so equal calls give equal numbers."""
        results: list[Generation | Refused] = []
        for start in range(0, len(requests), self._batch_size):
            encoded = encode(self._processor, self._prompt, requests[start : start + self._batch_size])
            batch: dict[int, Generation | Refused] = dict(encoded.refused)
            if encoded.inputs is not None:
                draws_BT = _draws(seed, [start + place for place in encoded.places], max_new_tokens)
                steps = self._generate(encoded.inputs, max_new_tokens, temperature, draws_BT)
                batch |= {place: self._generation(steps, row) for row, place in enumerate(encoded.places)}
            results += [batch[place] for place in sorted(batch)]
        return results

    @torch.inference_mode()
    def _generate(self, inputs: Any, max_new_tokens: int, temperature: float, draws_BT: NDArray[np.float64]) -> _Steps:
        inputs = inputs.to(self._model.device)
        ends = torch.tensor(sorted(self._ends), device=self._model.device)
        draws = torch.from_numpy(draws_BT).to(self._model.device)
        mask_BL = inputs["attention_mask"]
        positions_3BL = self._positions(inputs)
        # After a picture the three axes go on together, one beyond the largest of them.
        next_3B1 = (positions_3BL.amax((0, 2)) + 1)[None, :, None].expand(3, -1, 1)
        output = self._model.model(**inputs, position_ids=positions_3BL, use_cache=True)
        done_B = torch.zeros(len(mask_BL), dtype=torch.bool, device=mask_BL.device)
        tokens, entropies, p_digits = [], [], []
        for step in range(max_new_tokens):
            logits_BV = functional.linear(output.last_hidden_state[:, -1].float(), self._head_VD)
            entropies.append(entropy_nats(logits_BV))
            p_digits.append(token_probabilities(logits_BV, self._digits).double())
            chosen_B = self._choose(logits_BV, temperature, draws[:, step])
            # A row without a distribution ends here: its padding is dropped from the text.
            chosen_B = chosen_B.masked_fill(done_B | entropies[-1].isnan(), self._pad)
            tokens.append(chosen_B)
            done_B = done_B | torch.isin(chosen_B, ends)
            if step + 1 == max_new_tokens or bool(done_B.all()):
                break
            mask_BL = functional.pad(mask_BL, (0, 1), value=1)
            output = self._model.model(
                input_ids=chosen_B[:, None],
                attention_mask=mask_BL,
                position_ids=next_3B1 + step,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        return _Steps(*(torch.stack(found, 1).cpu().numpy() for found in (tokens, entropies, p_digits)))

    def _positions(self, inputs: Any) -> Tensor:
        """positions_3BL of the prompts along time, height and width; 0 on padding."""
        positions_3BL: Tensor = self._model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=inputs["attention_mask"],
        )[0]
        return positions_3BL

    def _choose(self, logits_BV: Tensor, temperature: float, draws_B: Tensor) -> Tensor:
        """The most likely token at temperature 0, else the one whose share of the cumulated distribution is drawn."""
        if temperature == 0:
            return logits_BV.argmax(-1)
        allowed = logits_BV.double().index_fill(-1, torch.tensor(self._forbidden, device=logits_BV.device), -torch.inf)
        cumulated_BV = (allowed / temperature).softmax(-1).cumsum(-1)
        # Below the last value, so that rounding cannot lead beyond the last token that has a probability.
        drawn_B1 = (draws_B[:, None] * cumulated_BV[:, -1:]).contiguous()
        return torch.searchsorted(cumulated_BV, drawn_B1, right=True)[:, 0].clamp_max(logits_BV.shape[-1] - 1)

    def _generation(self, steps: _Steps, row: int) -> Generation:
        tokens_T = steps.tokens_BT[row].tolist()
        entropies_T = steps.entropies_BT[row]
        end = next((place for place, token in enumerate(tokens_T) if token in self._ends), None)
        length = len(tokens_T) if end is None else end
        text, offsets_T = self._text.decode(tokens_T[:length])
        if end is not None and np.isnan(entropies_T[end]):
            length, offsets_T = end + 1, np.append(offsets_T, len(text))
        return Generation(
            text=text,
            truncated=end is None,
            entropies_nats_T=entropies_T[:length],
            p_digits_T2=steps.p_digits_BT2[row, :length],
            offsets_T=offsets_T,
        )


def _draws(seed: int, places: Sequence[int], steps: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one stream a request, so that a sample does not depend on its neighbours."""
    return np.stack([np.random.default_rng([seed, place]).random(steps) for place in places])
