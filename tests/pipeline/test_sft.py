import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from build_model import random_model
from egt_pipeline.adapters import trained_model
from egt_pipeline.context import Context
from egt_pipeline.contract.errors import StoppedError, TaskError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.task import Progress
from egt_pipeline.contract.training import LoRA
from egt_pipeline.preferences import Images, read_preferences, write_images, write_preferences
from egt_pipeline.prompts import messages
from egt_pipeline.reward_model import load_model, load_processor
from egt_pipeline.sft_batches import Order, Shares
from egt_pipeline.stages import sft
from egt_pipeline.store_file import FileWork
from event_files import scalars

_ROWS = 10
_SPEECH = "The picture shows four. The first says four, right. The second says seven, wrong."
_WORDS = _SPEECH.split()
_RECIPE = SFTRecipe(
    max_steps=5,  # of 4 samples out of 10: two epochs, the third batch reaches over the end of the first
    batch_size=4,
    micro_batch_size=4,
    learning_rate=1e-2,
    precision="float32",
    zero_stage=0,
    freeze_vision=False,
    prompt="plain-v1",
)


def _response(number: int) -> str:
    """Responses of different lengths, so that a mean over processes is not a mean over tokens."""
    return f"<think>{' '.join(_WORDS[: 1 + number])}</think>\n<answer> {1 + number % 2} </answer>"


def _inputs(folder: Path, **changes: dict[int, Any]) -> dict[str, Path]:
    """A prepare artifact with rows of one picture each, of two sizes; ``changes`` maps columns to values by row."""
    (folder / "sft").mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"source": str(random_model()), "revision": None, "files": []}))
    generator = np.random.default_rng(0)
    pictures, rows = {}, []
    for number in range(_ROWS):
        data = io.BytesIO()
        pixels = generator.integers(0, 256, (28, 28 + 28 * (number % 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data, "PNG")
        pictures[f"picture-{number}"] = data.getvalue()
        row = {"row": number, "sample_id": f"s-{number}", "images": [f"picture-{number}"], "question": "Which digit?"}
        row |= {
            "answer_1": "four",
            "answer_2": "7",
            "label": 1 + number % 2,
            "answer_order": "12",
            "status": "ok",
            "reason": "",
        }
        row |= {"response": _response(number)} | {name: by[number] for name, by in changes.items() if number in by}
        rows.append(row)
    write_preferences(folder / "sft", rows)
    write_images(folder / "sft", iter(pictures.items()), file_bytes=2**20)
    return {"model": folder, "data": folder}


def _train(
    folder: Path,
    recipe: SFTRecipe = _RECIPE,
    *,
    inputs: dict[str, Path] | None = None,
    processes: int = 1,
    stop_after: int | None = None,
) -> tuple[Path, list[int]]:
    """Run one attempt of the stage; its output, and the steps it told of. Attempts in one folder share their work."""
    steps: list[int] = []

    def progress(told: Progress) -> None:
        steps.append(int(told.done))

    attempt = len(list(folder.glob("out-*")))
    out, scratch = folder / f"out-{attempt}", folder / f"scratch-{attempt}"
    out.mkdir(parents=True)
    scratch.mkdir()
    context = Context(
        scratch=scratch,
        work=FileWork(folder / "work"),
        refs={},
        processes=processes,
        progress=progress,
        stopping=lambda: stop_after is not None and bool(steps) and steps[-1] >= stop_after,
    )
    sft.run(recipe, inputs or _inputs(folder / f"inputs-{attempt}"), out, context)
    return out, steps


def _losses(out: Path) -> list[float]:
    losses: list[float] = pq.read_table(out / "losses.parquet")["loss"].to_pylist()
    return losses


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process without DeepSpeed, never interrupted."""
    return _train(tmp_path_factory.mktemp("unbroken"))[0]


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
    folder = _inputs(tmp_path / "inputs")["data"] / "sft"
    rows, images = read_preferences(folder, labelled=True), Images(folder)
    total, count = 0.0, 0
    for number in Order(_ROWS, 4, 20, seed=0).batch(0):
        row = rows[number]
        turns = messages("plain-v1", row.question, row.answer_1, row.answer_2, 1)
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        picture = Image.open(io.BytesIO(images[row.images[0]])).convert("RGB")
        said = f"<think>{' '.join(_WORDS[: 1 + number])}</think><answer>{1 + number % 2}</answer><|im_end|>"
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
    losses = _losses(unbroken)
    assert losses[-1] < losses[0] - 0.5
    load_processor(unbroken / "model")
    trained, before = load_model(unbroken / "model", "float32"), load_model(random_model(), "float32")
    changed = [name for name, weight in before.named_parameters() if not weight.equal(trained.get_parameter(name))]
    assert any("visual" in name for name in changed)
    assert any("lm_head" in name for name in changed)
    assert not [path for path in unbroken.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    config = json.loads((unbroken / "model" / "config.json").read_text())
    assert "use_cache" not in config  # the Trainer sets it, and a server would generate without a cache


def test_losses_do_not_depend_on_the_micro_batch(unbroken: Path, tmp_path: Path) -> None:
    out, _ = _train(tmp_path, _RECIPE.model_copy(update={"micro_batch_size": 2}))
    assert _losses(out) == pytest.approx(_losses(unbroken), abs=1e-5)


def test_a_frozen_vision_tower_stays_as_it_is(tmp_path: Path) -> None:
    out, _ = _train(tmp_path, _RECIPE.model_copy(update={"freeze_vision": True, "max_steps": 1}))
    trained, before = load_model(out / "model", "float32"), load_model(random_model(), "float32")
    for name, weight in before.model.visual.named_parameters():
        assert weight.equal(trained.model.visual.get_parameter(name)), name
    assert not before.lm_head.weight.equal(trained.lm_head.weight)


def test_a_stopped_training_goes_on_with_the_losses_of_the_unbroken_one(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        _train(tmp_path, stop_after=2)  # asked to while step 3 is under way
    out, steps = _train(tmp_path)
    assert steps == [4, 5]
    assert _losses(out) == _losses(unbroken)
    curve = scalars(out / "tracking", "loss")
    assert (list(curve), list(curve.values())) == ([1, 2, 3, 4, 5], pytest.approx(_losses(unbroken), rel=1e-6))
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_checkpoint_with_one_flipped_bit_is_left_out_and_said(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoppedError):
        _train(tmp_path, stop_after=2)  # asked to while step 3 is under way
    (optimizer,) = tmp_path.glob("work/checkpoints/*/step-000003/optimizer.pt")
    data = bytearray(optimizer.read_bytes())
    data[len(data) // 2] ^= 1
    optimizer.write_bytes(data)
    out, steps = _train(tmp_path)
    assert "step-000003 is damaged and left out" in capsys.readouterr().out
    assert steps == [1, 2, 3, 4, 5]
    assert _losses(out) == _losses(unbroken)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    _train(tmp_path, _RECIPE.model_copy(update={"checkpoint_steps": 2}))
    assert [path.name for path in tmp_path.glob("work/checkpoints/*/*")] == ["step-000004"]


def test_rows_that_cannot_be_trained_on_are_left_out_with_a_reason(tmp_path: Path) -> None:
    long = f"<think>{'0' * 200}</think><answer>1</answer>"
    wrong = "<think>so</think><answer>2</answer>"
    inputs = _inputs(
        tmp_path / "inputs", response={1: None, 3: "<think><|image_pad|></think>", 5: long, 7: "answer 2", 8: wrong}
    )
    out, _ = _train(tmp_path, _RECIPE.model_copy(update={"max_length": 150, "max_steps": 1}), inputs=inputs)
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    reasons = {row["row"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert reasons[1] == "no response"
    assert reasons[3] == "the response holds the special token <|image_pad|>"
    assert reasons[5].endswith("tokens, more than maxLength 150")
    assert reasons[7] == "the response cannot be read: no <answer>...</answer>"
    assert reasons[8] == "the response prefers answer 2, the label is 1"
    assert len(rows) == _ROWS
    assert len(reasons) == 5


def test_with_trajectories_only_kept_ones_are_trained_on(tmp_path: Path) -> None:
    table = {
        "row": [0, 1, 2],
        "response": [_response(row) for row in range(3)],
        "status": ["kept", "exhausted", "kept"],
    }
    (tmp_path / "distill").mkdir()
    pq.write_table(pa.table(table), tmp_path / "distill" / "trajectories.parquet")
    inputs = {**_inputs(tmp_path / "inputs"), "trajectories": tmp_path / "distill"}
    out, _ = _train(tmp_path, _RECIPE.model_copy(update={"max_steps": 1}), inputs=inputs)
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    assert [row["row"] for row in rows if row["status"] == "used"] == [0, 2]


def test_nothing_left_to_train_on_is_an_error_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none of 10 rows can be trained on: .* more than maxLength 16"):
        _train(tmp_path, _RECIPE.model_copy(update={"max_length": 16}))


def test_a_loss_that_is_no_number_is_an_error_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"the loss of step \d is nan; lower sft.learningRate"):
        _train(tmp_path, _RECIPE.model_copy(update={"learning_rate": 1e38}))


def _zero(stage: int, recipe: SFTRecipe = _RECIPE) -> SFTRecipe:
    return SFTRecipe.model_validate({**recipe.model_dump(), "zero_stage": stage, "micro_batch_size": 2})


def test_two_processes_under_zero_2_have_the_losses_of_one_without_deepspeed(unbroken: Path, tmp_path: Path) -> None:
    out, _ = _train(tmp_path, _zero(2), processes=2)
    assert _losses(out) == pytest.approx(_losses(unbroken), abs=1e-4)
    load_model(out / "model", "float32")


@pytest.mark.slow
def test_two_processes_under_zero_3_have_the_losses_of_one_without_deepspeed(unbroken: Path, tmp_path: Path) -> None:
    out, _ = _train(tmp_path, _zero(3), processes=2)
    assert _losses(out) == pytest.approx(_losses(unbroken), abs=1e-4)
    assert load_model(out / "model", "float32").lm_head.weight.numel() > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_goes_on_from_its_checkpoint_with_the_same_losses(stage: int, unbroken: Path, tmp_path: Path) -> None:
    recipe = _zero(stage).model_copy(update={"max_steps": 40})
    whole, _ = _train(tmp_path / "whole", recipe, processes=2)
    with pytest.raises(StoppedError):
        _train(tmp_path / "stopped", recipe, processes=2, stop_after=3)
    out, steps = _train(tmp_path / "stopped", recipe, processes=2)
    assert steps[0] > 3
    assert _losses(out) == _losses(whole)


_ADAPTED = SFTRecipe.model_validate({**_RECIPE.model_dump(), "freeze_vision": True, "lora": {"rank": 4, "alpha": 8}})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process that trained adapters and merged them."""
    return _train(tmp_path_factory.mktemp("adapted"), _ADAPTED)[0]


def test_merged_adapters_move_the_layers_that_have_one_and_nothing_else(adapted: Path) -> None:
    losses = _losses(adapted)
    assert losses[-1] < losses[0] - 0.2
    trained, before = load_model(adapted / "model", "float32"), load_model(random_model(), "float32")
    changed = {name for name, weight in before.named_parameters() if not weight.equal(trained.get_parameter(name))}
    layers = [name for name, _ in before.named_parameters() if re.search(r"language_model.layers.*_proj.weight", name)]
    assert changed == set(layers)
    assert not (adapted / "adapter").exists()


def test_a_stopped_training_of_adapters_goes_on_with_the_losses_of_the_unbroken_one(
    adapted: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        _train(tmp_path, _ADAPTED, stop_after=2)  # asked to while step 3 is under way
    assert not list(tmp_path.glob("work/checkpoints/*/step-000003/model.safetensors")), "what is frozen is not saved"
    out, steps = _train(tmp_path, _ADAPTED)
    assert steps == [4, 5]
    assert _losses(out) == _losses(adapted)
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (adapted / name).read_bytes()


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_adapters_under_zero_have_the_losses_of_one_process_and_are_kept_alone(
    stage: int, adapted: Path, tmp_path: Path
) -> None:
    kept = _ADAPTED.model_copy(update={"lora": LoRA(rank=4, alpha=8, merge=False)})
    out, _ = _train(tmp_path, _zero(stage, kept), processes=2)
    assert _losses(out) == pytest.approx(_losses(adapted), abs=1e-4)
    assert {path.name for path in (out / "adapter").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert not (out / "model").exists()
    whole, base = trained_model(out, random_model(), tmp_path), load_model(random_model(), "float32")
    expected = load_model(adapted / "model", "float32")
    for name, weight in load_model(whole, "float32").named_parameters():
        assert weight.allclose(expected.get_parameter(name), atol=1e-4), name
    assert not base.model.language_model.layers[0].mlp.up_proj.weight.allclose(
        expected.model.language_model.layers[0].mlp.up_proj.weight, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_under_zero_go_on_from_their_checkpoint_with_the_same_losses(stage: int, tmp_path: Path) -> None:
    recipe = _zero(stage, _ADAPTED).model_copy(update={"max_steps": 40})
    whole, _ = _train(tmp_path / "whole", recipe, processes=2)
    with pytest.raises(StoppedError):
        _train(tmp_path / "stopped", recipe, processes=2, stop_after=3)
    out, steps = _train(tmp_path / "stopped", recipe, processes=2)
    assert steps[0] > 3
    assert _losses(out) == _losses(whole)


def test_losses_do_not_depend_on_what_is_kept_for_the_backward_pass(unbroken: Path, tmp_path: Path) -> None:
    out, _ = _train(tmp_path, _RECIPE.model_copy(update={"gradient_checkpointing": False}))
    assert _losses(out) == pytest.approx(_losses(unbroken), abs=1e-6)


def test_in_bfloat16_losses_are_those_of_float32_to_two_digits(unbroken: Path, adapted: Path, tmp_path: Path) -> None:
    out, _ = _train(tmp_path / "all", _RECIPE.model_copy(update={"precision": "bfloat16"}))
    assert _losses(out) == pytest.approx(_losses(unbroken), rel=0.02)
    out, _ = _train(tmp_path / "adapters", _ADAPTED.model_copy(update={"precision": "bfloat16"}))
    assert _losses(out) == pytest.approx(_losses(adapted), rel=0.02)
    stored = {str(weight.dtype) for weight in load_model(out / "model", "auto").parameters()}
    assert stored == {"torch.float32"}, "of the model that the adapters were merged into"
