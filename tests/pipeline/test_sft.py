import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from build_model import random_model
from build_sft import RECIPE, ROWS, WORDS, inputs_of, losses, response, train, zero
from egt_pipeline.contract.errors import StoppedError, TaskError
from egt_pipeline.preferences import Images, read_preferences
from egt_pipeline.prompts import messages
from egt_pipeline.reward_model import load_model, load_processor
from egt_pipeline.sft_batches import Order, Shares
from event_files import scalars


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process without DeepSpeed, never interrupted."""
    return train(tmp_path_factory.mktemp("unbroken"))[0]


def test_each_epoch_trains_on_every_sample_once_and_the_last_batch_may_be_smaller() -> None:
    order = Order(samples=10, batch_size=4, draws=30, seed=3)
    batches = [order.batch(step) for step in range(order.steps)]
    drawn = [number for batch in batches for number in batch]
    assert [len(batch) for batch in batches] == [4] * 7 + [2]
    assert all(sorted(drawn[start : start + 10]) == list(range(10)) for start in (0, 10, 20))
    assert drawn[:10] != drawn[10:20]


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 4), (2, 2), (3, 1), (4, 3)])
def test_processes_share_a_batch_completely_and_take_equal_numbers_of_turns(processes: int, micro_batch: int) -> None:
    order = Order(samples=10, batch_size=7, draws=30, seed=3)
    shares = Shares(order, processes, micro_batch, range(10))
    for step in range(order.steps):
        turns = [shares.micro_batches(step, rank) for rank in range(processes)]
        assert {len(turn) for turn in turns} == {shares.accumulation}
        numbers = [number for turn in turns for part in turn for number in part if number >= 0]
        assert sorted(numbers) == sorted(order.batch(step))


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_samples_of_similar_length_are_padded_together(processes: int) -> None:
    lengths = np.random.default_rng(0).lognormal(6, 0.6, 1000).astype(int).tolist()
    order = Order(samples=1000, batch_size=256, draws=1024, seed=3)

    def padded(shares: Shares) -> int:
        """Tokens that are computed in step 0: of all micro-batches, rows times the longest."""
        turns = [turn for rank in range(processes) for turn in shares.micro_batches(0, rank)]
        return sum(len(turn) * max(lengths[max(number, ~number)] for number in turn) for turn in turns)

    used = sum(lengths[number] for number in order.batch(0))
    grouped, as_drawn = (padded(Shares(order, processes, 8, by)) for by in (lengths, [0] * 1000))
    assert as_drawn > 1.8 * used
    assert grouped < 1.15 * used


def test_the_first_loss_is_the_mean_over_the_response_tokens_of_the_batch(unbroken: Path, tmp_path: Path) -> None:
    import torch

    model, processor = load_model(random_model(), "float32"), load_processor(random_model())
    folder = inputs_of(tmp_path / "inputs")["data"] / "sft"
    rows, images = read_preferences(folder, labelled=True), Images(folder)
    total, count = 0.0, 0
    for number in Order(ROWS, 4, 20, seed=0).batch(0):
        row = rows[number]
        turns = messages("plain-v1", row.question, row.answer_1, row.answer_2, 1)
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        picture = Image.open(io.BytesIO(images[row.images[0]])).convert("RGB")
        said = f"<think>{' '.join(WORDS[: 1 + number])}</think><answer>{1 + number % 2}</answer><|im_end|>"
        prompt = processor(text=[text], images=[picture], return_tensors="pt")["input_ids"].shape[1]
        inputs = processor(text=[text + said], images=[picture], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, prompt - 1 : -1]
        total -= float(logits.log_softmax(-1).gather(1, inputs["input_ids"][0, prompt:, None]).sum())
        count += len(logits)
    first = pq.read_table(unbroken / "losses.parquet").to_pylist()[0]
    assert (first["response_tokens"], first["samples"]) == (count, 4)
    assert first["loss"] == pytest.approx(total / count, abs=1e-5)


def test_training_learns_and_the_model_loads_with_its_processor(unbroken: Path) -> None:
    told = losses(unbroken)
    assert told[-1] < told[0] - 0.5
    load_processor(unbroken / "model")
    trained, before = load_model(unbroken / "model", "float32"), load_model(random_model(), "float32")
    changed = [name for name, weight in before.named_parameters() if not weight.equal(trained.get_parameter(name))]
    assert any("visual" in name for name in changed)
    assert any("lm_head" in name for name in changed)
    assert not [path for path in unbroken.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    config = json.loads((unbroken / "model" / "config.json").read_text())
    assert "use_cache" not in config  # the Trainer sets it, and a server would generate without a cache


def test_losses_do_not_depend_on_the_micro_batch(unbroken: Path, tmp_path: Path) -> None:
    out, _ = train(tmp_path, RECIPE.model_copy(update={"micro_batch_size": 2}))
    assert losses(out) == pytest.approx(losses(unbroken), abs=1e-5)


def test_a_frozen_vision_tower_stays_as_it_is(tmp_path: Path) -> None:
    out, _ = train(tmp_path, RECIPE.model_copy(update={"freeze_vision": True, "max_steps": 1}))
    trained, before = load_model(out / "model", "float32"), load_model(random_model(), "float32")
    for name, weight in before.model.visual.named_parameters():
        assert weight.equal(trained.model.visual.get_parameter(name)), name
    assert not before.lm_head.weight.equal(trained.lm_head.weight)


def test_a_stopped_training_goes_on_with_the_losses_of_the_unbroken_one(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop_after=2)  # asked to while step 3 is under way
    out, steps = train(tmp_path)
    assert steps == [4, 5]
    assert losses(out) == losses(unbroken)
    curve = scalars(out / "tracking", "loss")
    assert (list(curve), list(curve.values())) == ([1, 2, 3, 4, 5], pytest.approx(losses(unbroken), rel=1e-6))
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_checkpoint_with_one_flipped_bit_is_left_out_and_said(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop_after=2)  # asked to while step 3 is under way
    (optimizer,) = tmp_path.glob("work/checkpoints/*/pod-0/*/step-000003/optimizer.pt")
    data = bytearray(optimizer.read_bytes())
    data[len(data) // 2] ^= 1
    optimizer.write_bytes(data)
    out, steps = train(tmp_path)
    assert "step-000003 is damaged and left out" in capsys.readouterr().out
    assert steps == [1, 2, 3, 4, 5]
    assert losses(out) == losses(unbroken)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    train(tmp_path, RECIPE.model_copy(update={"checkpoint_steps": 2}))
    assert [path.name for path in tmp_path.glob("work/checkpoints/*/pod-0/*/*")] == ["step-000004"]


def test_rows_that_cannot_be_trained_on_are_left_out_with_a_reason(tmp_path: Path) -> None:
    long = f"<think>{'0' * 200}</think><answer>1</answer>"
    wrong = "<think>so</think><answer>2</answer>"
    inputs = inputs_of(
        tmp_path / "inputs", response={1: None, 3: "<think><|image_pad|></think>", 5: long, 7: "answer 2", 8: wrong}
    )
    out, _ = train(tmp_path, RECIPE.model_copy(update={"max_length": 150, "max_steps": 1}), inputs=inputs)
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    reasons = {row["row"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert reasons[1] == "no response"
    assert reasons[3] == "the response holds the special token <|image_pad|>"
    assert reasons[5].endswith("tokens, more than maxLength 150")
    assert reasons[7] == "the response cannot be read: no <answer>...</answer>"
    assert reasons[8] == "the response prefers answer 2, the label is 1"
    assert len(rows) == ROWS
    assert len(reasons) == 5


def test_with_trajectories_only_kept_ones_are_trained_on(tmp_path: Path) -> None:
    table = {
        "row": [0, 1, 2],
        "response": [response(row) for row in range(3)],
        "status": ["kept", "exhausted", "kept"],
    }
    (tmp_path / "distill").mkdir()
    pq.write_table(pa.table(table), tmp_path / "distill" / "trajectories.parquet")
    inputs = {**inputs_of(tmp_path / "inputs"), "trajectories": tmp_path / "distill"}
    out, _ = train(tmp_path, RECIPE.model_copy(update={"max_steps": 1}), inputs=inputs)
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    assert [row["row"] for row in rows if row["status"] == "used"] == [0, 2]


def test_nothing_left_to_train_on_is_an_error_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none of 10 rows can be trained on: .* more than maxLength 16"):
        train(tmp_path, RECIPE.model_copy(update={"max_length": 16}))


def test_a_loss_that_is_no_number_is_an_error_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"the loss of step \d is nan; lower sft.learningRate"):
        train(tmp_path, RECIPE.model_copy(update={"learning_rate": 1e38}))


def test_two_processes_under_zero_2_have_the_losses_of_one_without_deepspeed(unbroken: Path, tmp_path: Path) -> None:
    out, _ = train(tmp_path, zero(2), processes=2)
    assert losses(out) == pytest.approx(losses(unbroken), abs=1e-4)
    load_model(out / "model", "float32")


@pytest.mark.slow
def test_two_processes_under_zero_3_have_the_losses_of_one_without_deepspeed(unbroken: Path, tmp_path: Path) -> None:
    out, _ = train(tmp_path, zero(3), processes=2)
    assert losses(out) == pytest.approx(losses(unbroken), abs=1e-4)
    assert load_model(out / "model", "float32").lm_head.weight.numel() > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_goes_on_from_its_checkpoint_with_the_same_losses(stage: int, unbroken: Path, tmp_path: Path) -> None:
    recipe = zero(stage).model_copy(update={"max_steps": 40})
    whole, _ = train(tmp_path / "whole", recipe, processes=2)
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", recipe, processes=2, stop_after=3)
    out, steps = train(tmp_path / "stopped", recipe, processes=2)
    assert steps[0] > 3
    assert losses(out) == losses(whole)


def test_losses_do_not_depend_on_what_is_kept_for_the_backward_pass(unbroken: Path, tmp_path: Path) -> None:
    out, _ = train(tmp_path, RECIPE.model_copy(update={"gradient_checkpointing": False}))
    assert losses(out) == pytest.approx(losses(unbroken), abs=1e-6)


def test_in_bfloat16_losses_are_those_of_float32_to_two_digits(unbroken: Path, tmp_path: Path) -> None:
    out, _ = train(tmp_path, RECIPE.model_copy(update={"precision": "bfloat16"}))
    assert losses(out) == pytest.approx(losses(unbroken), rel=0.02)
