"""The vLLM engine against the transformers engine: the same requests, the same answers, the same figures."""

import dataclasses
import functools
import json
import math
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from build_model import copy_of, judge_model, random_model
from build_pictures import png
from build_probe import context, model_artifact, row, write_prepared
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.engines import open_engine, vllm_engine, vllm_environment
from egt_pipeline.engines.interface import Batch, Refused, Request
from egt_pipeline.stages import probe

REQUESTS = (
    Request("Which digit is this?", "four", "7", (png(1),)),
    Request("Which of the two pictures is the larger number, and why is that so?", "the first", "2", (png(2), png(3))),
    Request("Short?", "yes", "no", (png(4, (56, 28)),)),
    Request("No picture at all?", "yes", "no", ()),
)
BATCHES = (Batch(REQUESTS, 1), Batch(REQUESTS[:2], 2), Batch((), 3), Batch(REQUESTS[1:], 4))


def opened(kind, model, *, batch_size=3, precision="float32"):
    recipe = ProbeRecipe(engine=kind, precision=precision, prompt="plain-v1", batch_size=batch_size)
    return open_engine(recipe, model, max_images=2)


def answers(engine, batches=BATCHES, *, tokens=12, temperature=0.0):
    return list(engine.generate(iter(batches), max_new_tokens=tokens, temperature=temperature))


_open = {}


def engine(model, **options):
    """The engine of ``model``. The last one is kept, as it takes seconds to start; two do not fit into a process."""
    asked = (model, *options.items())
    if asked not in _open:
        closed()
        _open[asked] = opened("vllm", model, **options)
    return _open[asked]


def closed():
    while _open:
        _open.popitem()[1].close()


@functools.cache
def of_judge():
    """What the judge answers by transformers."""
    return answers(opened("transformers", judge_model()))


def assert_alike(found, expected, atol=1e-5):
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert (one.text, one.truncated, one.token_ids_T.tolist()) == (
            other.text,
            other.truncated,
            other.token_ids_T.tolist(),
        )
        np.testing.assert_allclose(one.entropies_nats_T, other.entropies_nats_T, atol=atol)
        np.testing.assert_allclose(one.p_digits_T2, other.p_digits_T2, atol=atol)
        assert one.offsets_T.tolist() == other.offsets_T.tolist()


def flat(batches):
    return [answer for batch in batches for answer in batch]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model", [random_model, judge_model])
def test_answers_tokens_and_figures_equal_those_of_transformers(model, temperature):
    found = answers(engine(model()), temperature=temperature)
    assert [len(batch) for batch in found] == [len(batch.requests) for batch in BATCHES]
    assert_alike(found, answers(opened("transformers", model()), temperature=temperature))


def test_the_next_batches_are_read_before_the_first_is_answered():
    read = []
    batches = (read.append(number) or batch for number, batch in enumerate(BATCHES * 3))
    found = engine(judge_model()).generate(batches, max_new_tokens=6, temperature=0.0)
    next(found)
    ahead = len(read)
    found.close()
    assert 1 < ahead < 12  # as far as there is room, and no further


def test_an_engine_goes_on_after_its_answers_were_no_longer_wanted():
    found = engine(judge_model()).generate(iter(BATCHES), max_new_tokens=6, temperature=0.0)
    next(found)
    found.close()
    assert_alike(answers(engine(judge_model()), tokens=6), answers(opened("transformers", judge_model()), tokens=6))


def test_bad_pictures_and_prompts_that_are_too_long_are_refused_and_the_others_answered():
    bad = {
        "cannot identify": Request("Which?", "1", "2", (png(2), b"no picture")),
        "aspect ratio": Request("Which?", "1", "2", (png(1, (4000, 4)),)),
        "length": Request("Which? " * 5000, "1", "2", ()),
    }
    batch = Batch((REQUESTS[0], *bad.values(), *REQUESTS[1:]))
    (found,) = answers(engine(random_model()), [batch])
    for reason, refused in zip(bad, found[1:4], strict=True):
        assert isinstance(refused, Refused)
        assert reason in refused.reason
    assert_alike([[found[0], *found[4:]]], answers(opened("transformers", random_model()), [Batch(REQUESTS)]))


def test_prompts_in_parts_and_requests_put_off_change_nothing(monkeypatch):
    import vllm.engine.arg_utils as there

    # Six blocks of 32 tokens (the seventh is vLLM's own) and 32 tokens a step: requests are stopped and begun again.
    scarce = functools.partial(there.EngineArgs, num_gpu_blocks_override=7, block_size=32)
    monkeypatch.setattr(there, "EngineArgs", scarce)
    monkeypatch.setattr(vllm_engine, "PREFILL_TOKENS", 32)
    closed()
    strained = opened("vllm", random_model())
    preempted = []
    scheduler = strained._engine.engine_core.engine_core.scheduler
    monkeypatch.setattr(
        scheduler,
        "_preempt_request",
        lambda *rest, before=scheduler._preempt_request, **named: (preempted.append(1), before(*rest, **named))[1],
    )
    batches = [Batch([dataclasses.replace(request, images=()) for request in REQUESTS] * 3)]
    found = answers(strained, batches, tokens=48)
    strained.close()
    assert preempted
    assert_alike(found, answers(opened("transformers", random_model()), batches, tokens=48))


def test_the_generation_config_of_the_model_changes_nothing(tmp_path):
    model = copy_of(judge_model(), tmp_path / "model")
    config = {"repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "do_sample": True, "eos_token_id": [2]}
    (model / "generation_config.json").write_text(json.dumps(config))
    assert_alike(answers(engine(model)), of_judge())


def test_nan_logits_end_the_response_with_a_nan_entropy(tmp_path):
    model = copy_of(judge_model(), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][40] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    closed()
    with pytest.raises(TaskError, match=r"^model: it gives no distribution; its logits .* are NaN or infinite"):
        opened("vllm", model)


def test_a_measurement_that_is_not_the_model_s_own_stops_the_engine(monkeypatch):
    import egt_pipeline.engines.vllm_probe as inside

    wrong = lambda logits_NV, ids: (logits_NV.double().mean(-1), logits_NV[:, ids].double())  # noqa: E731
    monkeypatch.setattr(inside, "measure", wrong)
    closed()
    with pytest.raises(TaskError, match="its own log-probabilities say"):
        opened("vllm", judge_model())


def test_another_version_of_vllm_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(vllm_environment, "PINNED", "0.28.0")
    with pytest.raises(TaskError, match=r"vllm 0\.29\.0\S* is installed; its inside is known for 0\.28\.0 only"):
        opened("vllm", judge_model())


def test_another_version_of_vllm_is_refused_before_its_inside_is_imported(monkeypatch):
    monkeypatch.setattr(vllm_environment, "PINNED", "0.28.0")
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.llm_engine", None)
    with pytest.raises(TaskError, match="its inside is known for"):
        opened("vllm", judge_model())


def test_what_computed_the_numbers_is_named():
    facts = engine(judge_model()).facts
    assert facts["engine"].startswith("vllm 0.29.0")
    assert (facts["precision"], facts["head"], facts["kv_cache"]) == ("float32", "float32", "float32")
    assert facts["attention"]


def test_the_options_that_could_move_a_number_are_recorded_as_the_worker_has_them():
    facts = engine(judge_model()).facts
    assert facts["vllm.max_num_batched_tokens"] == str(vllm_engine.PREFILL_TOKENS) == "8192"
    assert (facts["vllm.quantization"], facts["vllm.speculative_config"]) == ("None", "None")
    assert (facts["vllm.enable_prefix_caching"], facts["vllm.enable_chunked_prefill"]) == ("True", "True")
    assert (facts["vllm.kv_cache_dtype"], facts["vllm.tensor_parallel_size"]) == ("auto", "1")


def test_a_worker_that_does_not_follow_an_option_is_refused_with_its_name(monkeypatch):
    import vllm.engine.arg_utils as there

    arguments = there.EngineArgs
    monkeypatch.setattr(there, "EngineArgs", lambda **told: arguments(**told | {"enable_prefix_caching": False}))
    closed()
    with pytest.raises(TaskError, match=r"runs with enable_prefix_caching False \(told True\);"):
        opened("vllm", judge_model())


def test_head_and_softmax_are_float32_under_bfloat16():
    rounded = engine(judge_model(), precision="bfloat16")
    assert (rounded.facts["precision"], rounded.facts["head"]) == ("bfloat16", "float32")
    for one, exact in zip(flat(answers(rounded)), flat(of_judge()), strict=True):
        np.testing.assert_allclose(one.entropies_nats_T, exact.entropies_nats_T, atol=0.2)


def test_the_probe_by_vllm_has_the_rows_of_the_probe_by_transformers_and_an_audit(tmp_path):
    rows = [row(number) for number in range(14)]
    data = write_prepared(tmp_path / "prepare" / "rl", rows).parent
    inputs = {"data": data, "model": model_artifact(tmp_path / "sft")}
    closed()
    tables = {}
    for kind in ("vllm", "transformers"):
        recipe = ProbeRecipe(
            engine=kind, prompt="plain-v1", precision="float32", max_new_tokens=8, batch_size=4, chunk_rows=4
        )
        out = tmp_path / kind
        out.mkdir()
        metrics = probe.run(recipe, inputs, out, context(out)).metrics
        tables[kind] = pq.read_table(out / probe.ENTROPIES_FILE)
        if kind == "vllm":
            assert metrics["engine"].startswith("vllm 0.29.0")
            assert metrics["audit.rows"] == 14
            assert metrics["audit.answer_entropy_nats.max_difference"] < 1e-4
    figures = [name for name in tables["vllm"].column_names if "entropy" in name or name.startswith("p_answer")]
    for name in figures:
        found, expected = (tables[kind][name].to_numpy() for kind in tables)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert tables["vllm"].drop_columns(figures).equals(tables["transformers"].drop_columns(figures))
