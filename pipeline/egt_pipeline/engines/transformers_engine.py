"""The transformers engine: batched generation with a key-value cache and exact entropies, on whatever device there is.

The loop is our own because ``generate`` keeps the logits of every step or none, applies the model's generation_config
(Qwen2.5 ships a repetition penalty), and draws all samples of a batch from one random stream.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from egt_pipeline.contract.base import PromptId
from egt_pipeline.engines.encoding import encode
from egt_pipeline.engines.interface import Batch, Generation, Refused, Request
from egt_pipeline.engines.sampling import choose, draws
from egt_pipeline.engines.vocabulary import Vocabulary
from egt_pipeline.entropy import measure
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
        self._vocabulary = Vocabulary(self._processor, self._model.config)
        self._prompt, self._batch_size, self._precision = prompt, batch_size, precision
        # The head in float32 whatever the model runs in: bfloat16 logits have steps of 0.1, which makes entropies tie.
        self._head_VD = self._model.get_output_embeddings().weight.detach().float()

    @property
    def forbidden(self) -> Sequence[int]:
        """Tokens that no response to be replayed may hold: a picture is expected for each of them that stands for one.

        No sample has them; a greedy response may, as it is what the model says.
        """
        return self._vocabulary.forbidden

    @property
    def facts(self) -> Mapping[str, str]:
        """See ``Engine``."""
        return {
            "engine": f"transformers {transformers.__version__}",
            "precision": self._precision,
            "head": "float32",
            "attention": str(self._model.config._attn_implementation),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }

    def generate(
        self, batches: Iterable[Batch], *, max_new_tokens: int, temperature: float
    ) -> Iterator[list[Generation | Refused]]:
        """See ``Engine``. What runs together is cut from each batch in its order, so equal calls give equal bits."""
        for batch in batches:
            results: list[Generation | Refused] = []
            for start in range(0, len(batch.requests), self._batch_size):
                encoded = encode(self._processor, self._prompt, batch.requests[start : start + self._batch_size])
                found: dict[int, Generation | Refused] = dict(encoded.refused)
                if encoded.inputs is not None:
                    draws_BT = [draws(batch.seed, start + place, max_new_tokens) for place in encoded.places]
                    steps = self._generate(encoded.inputs, max_new_tokens, temperature, np.stack(draws_BT))
                    found |= {place: self._generation(steps, row) for row, place in enumerate(encoded.places)}
                results += [found[place] for place in sorted(found)]
            yield results

    @torch.inference_mode()
    def replay(self, request: Request, token_ids_T: Sequence[int]) -> Generation:
        """The figures of a response that is given, in one pass without cache, batch or padding.

        Raises ValueError for a request that cannot be put before the model.
        """
        encoded = encode(self._processor, self._prompt, [request])
        if encoded.inputs is None:
            raise ValueError(encoded.refused[0].reason)
        inputs = encoded.inputs.to(self._model.device)
        ids_1L, types_1L = inputs["input_ids"], inputs["mm_token_type_ids"]
        prompt, response_1T = ids_1L.shape[1], torch.tensor([list(token_ids_T)], device=ids_1L.device)
        inputs["input_ids"] = torch.cat([ids_1L, response_1T], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = functional.pad(types_1L, (0, len(token_ids_T)))
        hidden_TD = self._model.model(**inputs, use_cache=False).last_hidden_state[0, prompt - 1 :]
        logits_TV = functional.linear(hidden_TD.float(), self._head_VD)
        entropies_T, p_digits_T2 = measure(logits_TV, self._vocabulary.digits)
        tokens = [*token_ids_T, self._vocabulary.pad]  # what ends it
        return self._vocabulary.generation(tokens, entropies_T.cpu().numpy(), p_digits_T2.cpu().numpy())

    def close(self) -> None:
        """See ``Engine``."""
        del self._model, self._head_VD
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _generate(self, inputs: Any, max_new_tokens: int, temperature: float, draws_BT: NDArray[np.float64]) -> _Steps:
        inputs = inputs.to(self._model.device)
        vocabulary = self._vocabulary
        ends = torch.tensor(sorted(vocabulary.ends), device=self._model.device)
        drawn_BT = torch.from_numpy(draws_BT).to(self._model.device)
        mask_BL = inputs["attention_mask"]
        positions_3BL = self._positions(inputs)
        # After a picture the three axes go on together, one beyond the largest of them.
        next_3B1 = (positions_3BL.amax((0, 2)) + 1)[None, :, None].expand(3, -1, 1)
        output = self._model.model(**inputs, position_ids=positions_3BL, use_cache=True)
        done_B = torch.zeros(len(mask_BL), dtype=torch.bool, device=mask_BL.device)
        tokens, entropies, p_digits = [], [], []
        for step in range(max_new_tokens):
            logits_BV = functional.linear(output.last_hidden_state[:, -1].float(), self._head_VD)
            entropies_B, p_digits_B2 = measure(logits_BV, vocabulary.digits)
            entropies.append(entropies_B)
            p_digits.append(p_digits_B2)
            if temperature == 0:
                chosen_B = logits_BV.argmax(-1)
            else:
                chosen_B = choose(logits_BV, temperature, drawn_BT[:, step], vocabulary.forbidden)
            # A row without a distribution ends here: its padding is dropped from the text.
            chosen_B = chosen_B.masked_fill(done_B | entropies[-1].isnan(), vocabulary.pad)
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

    def _generation(self, steps: _Steps, row: int) -> Generation:
        tokens_T = steps.tokens_BT[row].tolist()
        return self._vocabulary.generation(tokens_T, steps.entropies_BT[row], steps.p_digits_BT2[row])
