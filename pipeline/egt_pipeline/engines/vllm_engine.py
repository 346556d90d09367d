"""The vLLM engine: continuous batching, exact full-vocabulary entropies computed inside of it (see vllm_probe).

Each option that could move a number is told, checked in the running worker and recorded (``vllm_settings``); but for
the implementation of attention, which depends on the device and is recorded. Penalties and masks are never asked for.
The version is pinned, because the inside of vLLM moves; and each start compares what is measured with vLLM's own
log-probabilities and ends on a difference.
"""

import gc
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from egt_pipeline.contract.base import PromptId
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.engines.encoding import BAD_IMAGE, decode_image, prompt_text
from egt_pipeline.engines.interface import Batch, Generation, Refused, Request
from egt_pipeline.engines.vllm_environment import ASK, PREFILL_TOKENS, pinned_version, prepare_environment
from egt_pipeline.engines.vllm_settings import Setting, check, settings
from egt_pipeline.engines.vocabulary import Vocabulary
from egt_pipeline.reward_model import load_processor

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

_INSIDE = "egt_pipeline.engines.vllm_probe"
# vLLM's float32 log_softmax over 152,064 tokens errs by 8e-5 nats; what this is to find errs by far more.
_TOLERANCE_NATS = 1e-3
_CHECKED_TOKENS = 2
_FACTS = ("dtype", "hf_overrides")  # settings whose facts have the names that they have by transformers


@dataclass
class _Open:
    """A batch whose responses are not all in."""

    batch: Batch
    results: dict[int, Generation | Refused] = field(default_factory=dict)
    sent: int = 0

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.batch.requests)


class VllmEngine:
    """One vLLM engine on one device behind the Engine interface; at most one ``generate`` is under way."""

    def __init__(self, model_dir: Path, *, precision: str, prompt: PromptId, batch_size: int, max_images: int) -> None:
        """Load the model. Raises TaskError for another version of vLLM, other settings, and inexact measurements."""
        self._version = pinned_version()
        prepare_environment()
        self._processor = load_processor(model_dir)
        self._prompt = prompt
        # Waiting inside of vLLM, so that it never has to wait for us.
        self._rows = batch_size + max(2, batch_size // 4)
        cuda = torch.cuda.is_available()
        wanted = settings(precision=precision, eager=not cuda, prefill_tokens=PREFILL_TOKENS)
        self._engine = _start(model_dir, wanted, batch_size, max_images)
        self._settings = self._call("egt_settings", {name: one.path for name, one in wanted.items()})
        check(wanted, self._settings)
        self._vocabulary = Vocabulary(self._processor, self._engine.vllm_config.model_config.hf_config)
        self._check()

    @property
    def facts(self) -> Mapping[str, str]:
        """See ``Engine``."""
        return {
            **{f"vllm.{name}": value for name, value in self._settings.items() if name not in _FACTS},
            "engine": f"vllm {self._version}",
            "precision": self._settings["dtype"],
            "head": self._settings["hf_overrides"],
            **self._call("egt_attention"),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }

    def generate(
        self, batches: Iterable[Batch], *, max_new_tokens: int, temperature: float
    ) -> Iterator[list[Generation | Refused]]:
        """See ``Engine``. A request is handed to vLLM as soon as another one is done, whatever batch it belongs to."""
        self._prepare(max_new_tokens, temperature)
        source, free = iter(batches), list(range(self._rows))
        opened: deque[_Open] = deque()
        flying: dict[str, tuple[_Open, int, int]] = {}
        try:
            while True:
                while free and (found := _next_request(source, opened)):
                    one, place = found
                    name = f"{id(one)}.{place}"
                    refused = self._send(name, one.batch, place, free[-1], max_new_tokens)
                    if refused:
                        one.results[place] = refused
                    else:
                        flying[name] = (one, place, free.pop())
                while opened and opened[0].complete:
                    done = opened.popleft()
                    yield [done.results[place] for place in range(len(done.batch.requests))]
                if not opened and not flying:
                    return
                free += self._step(flying)
        finally:
            self._engine.abort_request(list(flying))

    def close(self) -> None:
        """See ``Engine``."""
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()
        torch.cuda.empty_cache()

    def _step(self, flying: dict[str, tuple[_Open, int, int]]) -> list[int]:
        """One step of vLLM; what is done by it goes to its batch. The rows that are free again."""
        finished = [output for output in self._engine.step() if output.finished]
        tokens = [list(output.outputs[0].token_ids) for output in finished]
        landed = [flying.pop(output.request_id) for output in finished]
        rows = [row for _, _, row in landed]
        figures = self._fetch([(row, len(tokens_T)) for row, tokens_T in zip(rows, tokens, strict=True)])
        for (one, place, _), tokens_T, figures_TF in zip(landed, tokens, figures, strict=True):
            one.results[place] = self._vocabulary.generation(tokens_T, figures_TF[:, 0], figures_TF[:, 1:])
        return rows

    def _fetch(self, wanted: list[tuple[int, int]]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
        """What was measured of the first tokens, so many, of each row."""
        return [np.array(found, np.float64) for found in self._call("egt_fetch", wanted)] if wanted else []

    def _send(self, name: str, batch: Batch, place: int, row: int, max_new_tokens: int) -> Refused | None:
        from vllm.exceptions import VLLMValidationError

        request = batch.requests[place]
        try:
            images = [decode_image(image) for image in request.images]
        except BAD_IMAGE as error:
            return Refused(f"image: {error}")
        try:
            ask = {"row": row, "seed": batch.seed, "place": place}
            self._engine.add_request(name, self._input(request, images), self._parameters(max_new_tokens, ask))
        except (ValueError, VLLMValidationError) as error:
            # A prompt that is too long, or pictures that the model's processor refuses.
            return Refused(f"processor: {_first(error)}")
        return None

    def _input(self, request: Request, images: list[Any]) -> dict[str, Any]:
        text = prompt_text(self._processor, self._prompt, request)
        return {"prompt": text, "multi_modal_data": {"image": images}} if images else {"prompt": text}

    def _parameters(self, max_new_tokens: int, ask: Mapping[str, int], **named: Any) -> Any:
        """Greedy for vLLM, whatever the temperature; every other setting at the value that changes nothing."""
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=sorted(self._vocabulary.ends),
            detokenize=False,
            extra_args={ASK: dict(ask)},
            **named,
        )

    def _check(self) -> None:
        """Compare what is measured with vLLM's own log-probabilities of all tokens."""
        self._prepare(_CHECKED_TOKENS, 0.0)
        parameters = self._parameters(_CHECKED_TOKENS, {"row": 0}, logprobs=-1, ignore_eos=True)
        self._engine.add_request("check", {"prompt": "1 or 2?"}, parameters)
        while not (finished := [output for output in self._engine.step() if output.finished]):
            pass
        steps = finished[0].outputs[0].logprobs
        measured_TF = self._fetch([(0, len(steps))])[0]
        for (entropy, *p_digits), step in zip(measured_TF, steps, strict=True):
            log_p_V = np.array([one.logprob for one in step.values()], np.float64)
            log_p_V = log_p_V[np.isfinite(log_p_V)]
            expected = [-(np.exp(log_p_V) * log_p_V).sum()]
            expected += [math.exp(step[digit].logprob) for digit in self._vocabulary.digits]
            if math.isnan(entropy) and not len(log_p_V):
                raise TaskError(
                    "model: it gives no distribution; its logits after a short prompt are NaN or infinite. Its weights "
                    "are damaged, or they overflow in this precision"
                )
            difference = np.abs(np.array([entropy, *p_digits]) - expected).max()
            if not difference < _TOLERANCE_NATS or not 0 <= entropy <= math.log(len(step)) + _TOLERANCE_NATS:
                raise TaskError(
                    f"engine: vllm measures an entropy of {entropy:.6f} nats where its own log-probabilities say "
                    f"{expected[0]:.6f}; nothing measured by it is kept. Use engine: transformers"
                )

    def _prepare(self, max_new_tokens: int, temperature: float) -> None:
        plan = {
            "rows": self._rows,
            "steps": max_new_tokens,
            "digits": self._vocabulary.digits,
            "forbidden": self._vocabulary.forbidden,
            "temperature": temperature,
        }
        self._call("egt_prepare", plan)

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._engine.collective_rpc(method, args=arguments)[0]


def _first(error: BaseException) -> BaseException:
    """What was raised first, before vLLM wrapped it in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _next_request(source: Iterator[Batch], opened: deque[_Open]) -> tuple[_Open, int] | None:
    """The next request of the newest batch, or of the next one; None when there is none any more."""
    while not opened or opened[-1].sent == len(opened[-1].batch.requests):
        batch = next(source, None)
        if batch is None:
            return None
        opened.append(_Open(batch))
    opened[-1].sent += 1
    return opened[-1], opened[-1].sent - 1


def _start(model_dir: Path, wanted: Mapping[str, Setting], batch_size: int, max_images: int) -> "LLMEngine":
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(
        model=str(model_dir),
        trust_remote_code=False,
        max_model_len=-1,  # as long as the model and the memory allow
        max_num_seqs=batch_size,
        limit_mm_per_prompt={"image": max_images, "video": 0},
        logits_processors=[f"{_INSIDE}:EntropyProcessor"],
        worker_extension_cls=f"{_INSIDE}.WorkerExtension",
        max_logprobs=-1,  # for the check at the start
        disable_log_stats=True,
        skip_mm_profiling=not torch.cuda.is_available(),
        **{name: one.value for name, one in wanted.items()},
    )
    return LLMEngine.from_engine_args(arguments)
