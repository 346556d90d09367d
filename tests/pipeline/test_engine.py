import functools
import json
import math
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from build_model import copy_of, judge_model, random_model
from build_pictures import png
from egt_pipeline import prompts
from egt_pipeline.contract.errors import ArtifactError, TaskError
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.engines import open_engine
from egt_pipeline.engines.interface import Batch, Refused, Request

REQUESTS = (
    Request("Which digit is this?", "four", "7", (png(1),)),
    Request("Which of the two pictures is the larger number, and why is that so?", "the first", "2", (png(2), png(3))),
    Request("Short?", "yes", "no", (png(4, (56, 28)),)),
    Request("No picture at all?", "yes", "no", ()),
)


def opened(model, *, kind="transformers", batch_size=8, precision="float32"):
    recipe = ProbeRecipe(engine=kind, precision=precision, prompt="plain-v1", batch_size=batch_size)
    return open_engine(recipe, model, max_images=2)


def generate(model, requests=REQUESTS, *, batch_size=8, precision="float32", tokens=12, temperature=0.0, seed=0):
    engine = opened(model, batch_size=batch_size, precision=precision)
    batches = [Batch(requests, seed)]
    return next(engine.generate(batches, max_new_tokens=tokens, temperature=temperature))


@functools.cache
def greedy():
    return generate(random_model())


def loaded(model, **options):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(model, **options).eval(), AutoProcessor.from_pretrained(model)


def inputs_of(processor, request):
    """One prompt without padding, made by transformers' own one-call form."""
    turns = prompts.messages("plain-v1", request.question, request.answer_1, request.answer_2, len(request.images))
    pictures = [{"type": "image", "image": Image.open(BytesIO(image)).convert("RGB")} for image in request.images]
    turns[0]["content"] = pictures + turns[0]["content"][len(pictures) :]
    return processor.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def changed(model, target, change):
    copy = copy_of(model, target)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def entropies_of(logits):
    x = logits.double()
    return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1).numpy()


@pytest.mark.parametrize("which", [random_model, judge_model])
@torch.no_grad()
def test_text_and_entropies_equal_those_of_transformers_without_batch_padding_or_cache(which):
    model, processor = loaded(which())
    one, two = processor.tokenizer.convert_tokens_to_ids(["1", "2"])
    for request, found in zip(REQUESTS, generate(which()), strict=True):
        inputs = inputs_of(processor, request)
        prompt = inputs["input_ids"].shape[1]
        for _ in range(len(found.entropies_nats_T)):
            logits = model(**inputs).logits
            token = logits[:, -1:].argmax(-1)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
        steps = logits[0, prompt - 1 :]
        assert found.text == processor.decode(inputs["input_ids"][0, prompt:], skip_special_tokens=True)
        np.testing.assert_allclose(found.entropies_nats_T, entropies_of(steps), atol=1e-5)
        np.testing.assert_allclose(found.p_digits_T2, steps.softmax(-1)[:, [one, two]], atol=3e-6)


def test_batches_change_nothing_and_keep_the_order():
    for together, alone in zip(greedy(), generate(random_model(), batch_size=1), strict=True):
        assert together.text == alone.text
        np.testing.assert_allclose(together.entropies_nats_T, alone.entropies_nats_T, atol=1e-5)


def test_the_same_call_gives_the_same_bits():
    for first, second in zip(greedy(), generate(random_model()), strict=True):
        assert np.array_equal(first.entropies_nats_T, second.entropies_nats_T)


def test_the_generation_config_of_the_model_changes_nothing(tmp_path):
    model = copy_of(random_model(), tmp_path / "model")
    config = {"repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "do_sample": True, "eos_token_id": [2]}
    (model / "generation_config.json").write_text(json.dumps(config))
    for plain, configured in zip(greedy(), generate(model), strict=True):
        assert plain.text == configured.text
        assert np.array_equal(plain.entropies_nats_T, configured.entropies_nats_T)


@torch.no_grad()
def test_head_and_softmax_are_float32_under_bfloat16(tmp_path):
    def spread(weights):
        weights["lm_head.weight"] *= 20  # logits as far apart as those of a trained model

    path = changed(random_model(), tmp_path / "model", spread)
    model, processor = loaded(path, dtype=torch.bfloat16)
    found = generate(path, REQUESTS[:1], precision="bfloat16", tokens=1)[0]
    hidden = model.model(**inputs_of(processor, REQUESTS[0])).last_hidden_state[:, -1]
    assert hidden.dtype == torch.bfloat16
    exact = hidden.float() @ model.lm_head.weight.float().T
    assert found.entropies_nats_T[0] == pytest.approx(entropies_of(exact)[0], abs=1e-5)
    in_bfloat16 = entropies_of(model.lm_head(hidden))[0]
    assert found.entropies_nats_T[0] != pytest.approx(in_bfloat16, abs=1e-4)


def test_a_response_ends_at_its_end_token_which_has_no_entropy():
    for found in generate(judge_model(), tokens=6):
        assert not found.truncated
        assert found.text in ("<think></think><answer>1</answer>", "<think></think><answer>2</answer>")
        assert found.entropies_nats_T.shape == found.offsets_T.shape == (5,)
        assert found.offsets_T.tolist() == [0, 7, 15, 23, 24]


def test_a_response_cut_at_the_longest_length_is_truncated():
    for found in generate(judge_model(), tokens=5):
        assert found.truncated
        assert len(found.entropies_nats_T) == 5


def test_vision_tokens_are_never_sampled_while_entropies_stay_those_of_all_tokens(tmp_path):
    def prefer_vision(weights):
        weights["lm_head.weight"][[9, 10, 11, 12, 13]] *= 20  # <|vision_start|> .. <|video_pad|>

    model = changed(random_model(), tmp_path / "model", prefer_vision)
    request = REQUESTS[:1] * 30
    likely = generate(model, request[:1], tokens=1)[0]
    sampled = generate(model, request, tokens=1, temperature=1.0)
    assert likely.text == ""  # the most likely token is a special one, left out of the text
    # Of the 30 most tokens would be vision tokens; each one shown here is another.
    assert sum(found.text != "" or not found.truncated for found in sampled) > 25
    for found in sampled:
        np.testing.assert_allclose(found.entropies_nats_T, likely.entropies_nats_T[: len(found.entropies_nats_T)])


def test_samples_follow_their_seed_and_place_and_not_their_neighbours():
    texts = [found.text for found in generate(random_model(), temperature=1.0, seed=1)]
    assert texts == [found.text for found in generate(random_model(), temperature=1.0, seed=1, batch_size=1)]
    assert texts != [found.text for found in generate(random_model(), temperature=1.0, seed=2)]
    same = generate(random_model(), REQUESTS[:1] * 3, temperature=1.0)
    assert len({found.text for found in same}) == 3


def test_samples_are_distributed_as_the_model_says():
    count = 400
    found = generate(judge_model(), REQUESTS[:1] * count, batch_size=100, tokens=6, temperature=1.0)
    p_1 = found[0].p_digits_T2[3, 0]
    share = np.mean(["<answer>1" in one.text for one in found])
    assert abs(share - p_1) < 4 * math.sqrt(p_1 * (1 - p_1) / count)


def test_nan_logits_end_the_response_with_a_nan_entropy(tmp_path):
    def break_head(weights):
        weights["lm_head.weight"][40] = torch.nan

    model = changed(judge_model(), tmp_path / "model", break_head)
    for temperature in (0.0, 1.0):
        for found in generate(model, temperature=temperature):
            assert (found.text, found.truncated) == ("", False)
            assert np.isnan(found.entropies_nats_T).tolist() == [True]


@pytest.mark.parametrize(
    ("poison", "reason"),
    [(b"no picture", "cannot identify"), (png(1)[:-30], "truncated"), (png(1, (4000, 4)), "aspect ratio")],
)
def test_a_bad_picture_is_refused_and_the_other_requests_are_not_touched(poison, reason):
    bad = Request("Which?", "1", "2", (png(2), poison))
    found = generate(random_model(), (REQUESTS[0], bad, *REQUESTS[1:]))
    assert isinstance(found[1], Refused)
    assert reason in found[1].reason
    assert [one.text for one in found[:1] + found[2:]] == [one.text for one in greedy()]
    assert isinstance(generate(random_model(), [bad])[0], Refused)


def test_no_requests_give_no_responses():
    assert generate(random_model(), ()) == []


def test_batches_are_read_as_they_are_answered():
    read = []
    answers = opened(random_model()).generate(
        (read.append(number) or Batch(REQUESTS[:1], number) for number in range(3)), max_new_tokens=4, temperature=1.0
    )
    assert [len(read) for _ in answers] == [1, 2, 3]


def test_an_engine_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(TaskError, match="engine: 'vllm' is not installed here"):
        opened(random_model(), kind="vllm")


def test_a_replayed_response_has_the_figures_it_was_generated_with():
    engine = opened(judge_model())
    for request, found in zip(REQUESTS, generate(judge_model()), strict=True):
        again = engine.replay(request, found.token_ids_T)
        assert again.text == found.text
        np.testing.assert_allclose(again.entropies_nats_T, found.entropies_nats_T, atol=1e-5)
        np.testing.assert_allclose(again.p_digits_T2, found.p_digits_T2, atol=1e-5)


def test_weights_in_another_format_than_safetensors_are_not_read(tmp_path):
    model = copy_of(random_model(), tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="safetensors"):
        opened(model)
