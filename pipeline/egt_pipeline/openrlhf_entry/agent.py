"""One rollout, as OpenRLHF's ``--train.agent_func_path`` wants it: sample a response, give it its reward.

The label of a prompt is JSON and travels with the sample to the optimiser step; what the rollout finds out about the
response is added to it.
"""

import json
from copy import deepcopy
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.task import content_digest
from egt_pipeline.judge import Judgement, judge_for
from egt_pipeline.openrlhf_entry.machine import has_cuda
from egt_pipeline.prompts import FORBIDDEN_TOKENS
from egt_pipeline.rewards import Grade, grade, reward
from egt_pipeline.rl_run import current_run, rollout_engines

_NEVER = -100.0  # the lowest bias vLLM takes: e^-100 of the probability


class AgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
    """OpenRLHF loads the class of this name."""

    def __init__(self) -> None:
        super().__init__()
        self._biases: dict[int, float] | None = None  # of forbidden tokens, by the tokenizer that the first call brings
        run = current_run()
        self._recipe = run.recipe
        # Each engine makes an executor of its own.
        self._judge = judge_for(self._recipe.judge, askers=rollout_engines(run, cuda=has_cuda()))

    async def execute(  # noqa: PLR0917  # OpenRLHF's signature
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """The response of one prompt with its reward, as the experience maker reads it.

        Raises TaskError naming the sample when its prompt leaves no room for a response.
        """
        sample = json.loads(label)
        tokenizer = getattr(hf_tokenizer, "tokenizer", hf_tokenizer)
        parameters = self._parameters(sampling_params, sample, tokenizer)
        try:
            found: dict[str, Any] = await super().execute(
                prompt, label, parameters, max_length, hf_tokenizer, llm_engine, images=images
            )
        except ValueError as error:
            raise TaskError(f"rl: sample_id {sample['sample_id']!r}: {error}") from error
        start, end = found["action_ranges"][0]
        tokens = [token for token in found["observation_tokens"][start:end] if token != tokenizer.eos_token_id]
        response = tokenizer.decode(tokens, skip_special_tokens=False)
        graded = grade(response, sample["label"], truncated=found["truncated"])
        found["label"] = json.dumps({**sample, "response": response, "status": graded.status})
        return {**found, **self._rewarded(graded, await self._judged(graded))}

    def _parameters(self, given: Any, sample: dict[str, Any], tokenizer: Any) -> Any:
        """OpenRLHF's sampling parameters; a seed of its own makes a response independent of what runs beside it."""
        parameters = deepcopy(given)
        if self._biases is None:
            known = tokenizer.get_vocab()  # a new table of 150,000 entries at each call
            self._biases = {known[token]: _NEVER for token in FORBIDDEN_TOKENS if token in known}
        parameters.logit_bias = self._biases
        digest = content_digest([self._recipe.seed, sample["epoch"], sample["sample_id"]])
        parameters.seed = int(digest, 16) >> 1  # 63 bits
        parameters.logprobs = 0  # of the sampled token alone: what the rollout itself thought of it
        return parameters

    async def _judged(self, graded: Grade) -> Judgement:
        """R_logic; nobody is asked where it cannot change the reward."""
        if graded.accuracy == 0 or graded.answer is None or self._recipe.logic_weight == 0:
            return Judgement(0)
        return await self._judge(graded.reasoning, graded.answer)

    def _rewarded(self, graded: Grade, judged: Judgement) -> dict[str, Any]:
        weights = {"logic_weight": self._recipe.logic_weight, "format_weight": self._recipe.format_weight}
        return {
            "reward": reward(graded.accuracy, judged.logic, graded.format, **weights),
            "scores": graded.accuracy,
            "extra_logs": {
                "accuracy": graded.accuracy,
                "logic": float(judged.logic),
                "format": graded.format,
                "judge_failed": float(judged.failed),
            },
        }
