"""Runs inside of vLLM: measures each distribution on the device, and takes the choice of the token over.

vLLM has no channel for what a logits processor finds out, so it is kept on the device, a row of a buffer for each
request under way, until a method of the worker fetches it. A step is written to its own column: one that is computed
again after a preemption, or for the part of a prompt, overwrites what was there.

vLLM itself is always asked for the most likely token. Where a sample is wanted the token is chosen here, and all others
are ruled out: vLLM's random numbers would depend on the batch and on preemptions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from egt_pipeline.engines.sampling import choose, draws
from egt_pipeline.engines.vllm_environment import ASK
from egt_pipeline.engines.vllm_settings import said
from egt_pipeline.entropy import measure

_FIGURES = 3  # entropy, p("1"), p("2")


@dataclass(frozen=True)
class Plan:
    """What is asked of all requests. ``rows`` are under way at once, each of at most ``steps`` tokens."""

    rows: int
    steps: int
    digits: tuple[int, int]
    forbidden: tuple[int, ...]
    temperature: float


@dataclass(frozen=True)
class Ask:
    """What is asked of one request: its row of the buffer, and what its sample depends on."""

    row: int
    seed: int = 0
    place: int = 0


@dataclass
class _Asked:
    row: int
    tokens: Sequence[int]  # vLLM's own list of what was generated so far
    draws_T: NDArray[np.float64] | None


class EntropyProcessor(LogitsProcessor):  # type: ignore[misc]
    """Sees raw logits of every step, as no option that changes them is used before it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self._device = device
        self._asked: dict[int, _Asked] = {}

    def is_argmax_invariant(self) -> bool:
        """False, or a greedy batch would never come by here."""
        return False

    def prepare(self, plan: Plan) -> None:
        """Make room; what was measured before is gone."""
        self._plan = plan
        # A column more: vLLM may run a step beyond the last.
        shape = (plan.rows, plan.steps + 1, _FIGURES)
        self._figures_RTF = torch.full(shape, torch.nan, dtype=torch.float64, device=self._device)

    def fetch(self, row: int, steps: int) -> list[list[float]]:
        """Entropy, p("1") and p("2") of each of the first ``steps`` tokens of the request in ``row``."""
        found: list[list[float]] = self._figures_RTF[row, :steps].tolist()
        return found

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as vLLM adds, moves and removes them."""
        process_dict_updates(self._asked, batch_update, self._read)

    def _read(self, parameters: Any, _prompt: Any, tokens: list[int]) -> _Asked | None:
        given = (parameters.extra_args or {}).get(ASK)
        if given is None:
            return None
        ask = Ask(**given)
        return _Asked(ask.row, tokens, draws(ask.seed, ask.place, self._plan.steps) if self._plan.temperature else None)

    def apply(self, logits_BV: Tensor) -> Tensor:
        """Measure every asked row; where samples are wanted, rule out all tokens but the chosen ones."""
        if not self._asked:
            return logits_BV
        places, asked = list(self._asked), list(self._asked.values())
        all_rows = places == list(range(len(logits_BV)))
        steps = [min(len(one.tokens), self._plan.steps) for one in asked]
        # Without a name, so that a copy is gone before tokens are chosen.
        entropies_N, p_digits_N2 = measure(
            logits_BV if all_rows else logits_BV[self._tensor(places)], self._plan.digits
        )
        rows = self._tensor([one.row for one in asked])
        self._figures_RTF[rows, self._tensor(steps)] = torch.cat([entropies_N[:, None], p_digits_N2], 1)
        sampled = [one for one in zip(places, asked, steps, strict=True) if one[1].draws_T is not None]
        if sampled:
            self._choose(logits_BV, sampled)
        return logits_BV

    def _choose(self, logits_BV: Tensor, sampled: list[tuple[int, _Asked, int]]) -> None:
        places = self._tensor([place for place, _, _ in sampled])
        # The step beyond the last is never used, whatever is drawn.
        drawn = [one.draws_T[step % self._plan.steps] for _, one, step in sampled if one.draws_T is not None]
        drawn_N = torch.tensor(drawn, dtype=torch.float64, device=self._device)
        chosen_N = choose(logits_BV[places], self._plan.temperature, drawn_N, self._plan.forbidden)
        logits_BV[places] = -torch.inf
        logits_BV[places, chosen_N] = 0.0

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


class WorkerExtension:
    """Methods of vLLM's worker that ``collective_rpc`` calls by name."""

    def egt_prepare(self, plan: dict[str, Any]) -> None:
        """See ``EntropyProcessor.prepare``."""
        self._egt_processor().prepare(Plan(**plan))

    def egt_fetch(self, wanted: list[tuple[int, int]]) -> list[list[list[float]]]:
        """What was measured of each (row, steps)."""
        processor = self._egt_processor()
        return [processor.fetch(row, steps) for row, steps in wanted]

    def egt_attention(self) -> dict[str, str]:
        """Which implementation of attention runs, and the type that keys and values are kept in."""
        group = self.model_runner.attn_groups[0][0]  # type: ignore[attr-defined]
        return {"attention": group.backend.get_name(), "kv_cache": said(group.kv_cache_spec.dtype)}

    def egt_settings(self, paths: dict[str, str]) -> dict[str, str]:
        """What this worker has at each path of its configuration."""
        return {name: said(attrgetter(path)(self.vllm_config)) for name, path in paths.items()}  # type: ignore[attr-defined]

    def _egt_processor(self) -> EntropyProcessor:
        processors = self.model_runner.input_batch.logitsprocs.non_argmax_invariant  # type: ignore[attr-defined]
        found: EntropyProcessor = next(one for one in processors if isinstance(one, EntropyProcessor))
        return found
