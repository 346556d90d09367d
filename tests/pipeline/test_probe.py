import json
import math
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from build_model import random_model
from build_pictures import png
from build_probe import context, image_id, model_artifact, row, write_prepared
from egt_pipeline.context import Context
from egt_pipeline.contract.errors import ArtifactError, StoppedError
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.engines.facts import ENGINE_KEY
from egt_pipeline.engines.interface import Generation
from egt_pipeline.judgements import judge
from egt_pipeline.stages import probe

RECIPE = ProbeRecipe(prompt="plain-v1", precision="float32", max_new_tokens=8, batch_size=4, chunk_rows=4)
BAD = {"status": "missing_image", "reason": "pictures/7.png: is not there", "images": []}
ROWS = [row(number, **(BAD if number == 7 else {})) for number in range(14)]


@pytest.fixture
def inputs(tmp_path):
    data = write_prepared(tmp_path / "prepare" / "rl", ROWS).parent
    return {"data": data, "model": model_artifact(tmp_path / "sft")}


def run(inputs, base, recipe=RECIPE, **where):
    out = base / f"out-{where.get('worker', 0)}"
    out.mkdir(parents=True)
    return out / probe.ENTROPIES_FILE, probe.run(recipe, inputs, out, context(base, **where))


def table(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture
def whole(inputs, tmp_path):
    return run(inputs, tmp_path / "whole")[0]


def test_every_row_that_came_in_comes_out_in_its_order(whole):
    rows = table(whole)
    assert [found["row"] for found in rows] == list(range(14))
    assert pq.read_schema(whole) == probe.ENTROPIES
    assert Counter(found["status"] for found in rows) == {"ok": 13, "input_error": 1}
    assert (rows[7]["sample_id"], rows[7]["reason"]) == ("s-0007", "pictures/7.png: is not there")
    assert rows[7]["answer_entropy_nats"] is None
    assert rows[3]["answer_order"] == "21"


def test_entropies_are_those_of_the_answer_token_and_of_the_whole_response(whole):
    for found in (found for found in table(whole) if found["status"] == "ok"):
        p = np.array([found["p_answer_1"], found["p_answer_2"]])
        # The judge gives the two digits all but 1e-3 of the probability at the answer, and all elsewhere to the tags.
        assert found["answer_entropy_nats"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-2)
        assert found["predicted"] == 1 + p.argmax()
        assert found["response"] == f"<think></think><answer>{found['predicted']}</answer>"
        assert found["response_tokens"] == 5
        assert found["sentence_entropy_nats"] == pytest.approx(found["answer_entropy_nats"] / 5, abs=1e-2)
    assert {found["predicted"] for found in table(whole)} == {1, 2, None}


def test_metrics_count_rows_tokens_and_one_sided_answers(inputs, tmp_path):
    path, result = run(inputs, tmp_path / "whole")
    rows = [found for found in table(path) if found["status"] == "ok"]
    metrics = result.metrics
    assert (metrics["rows"], metrics["ok"], metrics["status.input_error"], metrics["tokens"]) == (14, 13, 1, 65)
    assert metrics["predicted_1_share"] == np.mean([found["predicted"] == 1 for found in rows])
    assert metrics["answer_entropy_nats.mean"] == pytest.approx(
        np.mean([found["answer_entropy_nats"] for found in rows])
    )
    assert (metrics["zero_entropy_share"], metrics["tied_entropy_share"]) == (0, 0)
    assert metrics["tokens_per_second"] > 0


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_workers_in_any_order_gives_the_same_bytes(inputs, whole, tmp_path, workers):
    base = tmp_path / "sharded"
    results = [run(inputs, base, worker=worker, workers=workers) for worker in reversed(range(workers))]
    assert not results[-1][1].published_elsewhere
    assert all(path.read_bytes() == whole.read_bytes() for path, result in results if not result.published_elsewhere)


def test_a_worker_whose_peers_are_lost_does_their_share_as_well(inputs, whole, tmp_path):
    path, result = run(inputs, tmp_path / "alone", worker=0, workers=3)
    assert path.read_bytes() == whole.read_bytes()
    assert result.metrics["tokens"] == 65


def test_a_lost_worker_redoes_only_its_open_chunk(inputs, whole, tmp_path):
    base = tmp_path / "lost"
    with pytest.raises(StoppedError):  # after the first of four chunks
        probe.run(RECIPE, inputs, base, context(base, stopping=lambda: True))
    committed = {path: path.stat().st_mtime_ns for path in (base / "work" / "chunks").iterdir()}
    assert [path.name for path in committed] == ["part-000000.parquet"]
    path, result = run(inputs, base)
    assert path.read_bytes() == whole.read_bytes()
    assert {path: path.stat().st_mtime_ns for path in committed} == committed
    # 13 usable rows, 4 of them committed before: the second attempt generated the others.
    assert result.metrics["tokens"] == 65


def test_a_worker_with_nothing_left_to_do_loads_no_model(inputs, whole, tmp_path):
    # ``whole`` left its chunks in its work; with the model gone only they can give the table again.
    (inputs["model"] / "model").unlink()
    out = tmp_path / "whole" / "again"
    out.mkdir()
    probe.run(RECIPE, inputs, out, context(tmp_path / "whole"))
    assert (out / probe.ENTROPIES_FILE).read_bytes() == whole.read_bytes()


def test_labels_strengths_and_responses_do_not_enter(inputs, whole, tmp_path):
    changed = [one | {"label": 3 - one["label"], "strength": 9.0, "response": "other"} for one in ROWS]
    data = write_prepared(tmp_path / "permuted" / "rl", changed).parent
    path, _ = run(inputs | {"data": data}, tmp_path / "permuted")
    assert path.read_bytes() == whole.read_bytes()


def test_a_picture_the_processor_refuses_is_an_input_error_of_its_row_alone(inputs, whole, tmp_path):
    stripe = png(1, (4000, 4))
    rows = [one | {"images": [image_id(stripe)]} if one["row"] == 2 else one for one in ROWS]
    images = {image_id(image): image for image in (*(png(number) for number in range(14)), stripe)}
    data = write_prepared(tmp_path / "poison" / "rl", rows, images).parent
    poisoned, clean = table(run(inputs | {"data": data}, tmp_path / "poison")[0]), table(whole)
    assert poisoned[2]["status"] == "input_error"
    assert "aspect ratio" in poisoned[2]["reason"]
    for found, expected in zip(poisoned, clean, strict=True):
        if found["row"] != 2:
            assert (found["predicted"], found["status"]) == (expected["predicted"], expected["status"])


def test_a_picture_that_prepare_did_not_store_is_named(inputs, tmp_path):
    data = write_prepared(tmp_path / "hole" / "rl", ROWS, {image_id(png(0)): png(0)}).parent
    with pytest.raises(ArtifactError, match="row 1 has picture"):
        run(inputs | {"data": data}, tmp_path / "hole")


def test_several_generations_are_seeded_samples_one_row_each(inputs, tmp_path):
    recipe = RECIPE.model_copy(update={"generations": 8})
    first, _ = run(inputs, tmp_path / "first", recipe)
    again, _ = run(inputs, tmp_path / "again", recipe, worker=0, workers=1)
    assert first.read_bytes() == again.read_bytes()
    rows = table(first)
    assert [(found["row"], found["generation"]) for found in rows[:9]] == [*((0, g) for g in range(8)), (1, 0)]
    assert len(rows) == 13 * 8 + 1
    of_one_sample = [found for found in rows if found["row"] == 0]
    assert len({found["predicted"] for found in of_one_sample}) == 2
    other, _ = run(inputs, tmp_path / "other", recipe.model_copy(update={"seed": 1}))
    assert [found["predicted"] for found in table(other)] != [found["predicted"] for found in rows]


def test_a_model_that_does_not_answer_leaves_no_entropies(inputs, tmp_path):
    model = model_artifact(tmp_path / "random", random_model())
    path, result = run(inputs | {"model": model}, tmp_path / "random")
    assert {found["status"] for found in table(path)} <= {"truncated", "no_answer", "input_error"}
    assert all(found["answer_entropy_nats"] is None for found in table(path))
    assert all(found["predicted"] is None for found in table(path))
    assert result.metrics["ok"] == 0


def test_no_usable_rows_give_a_table_of_what_is_wrong_with_each(inputs, tmp_path):
    data = write_prepared(tmp_path / "bad" / "rl", [row(number, **BAD) for number in range(3)]).parent
    path, _ = run(inputs | {"data": data}, tmp_path / "bad")
    assert [found["status"] for found in table(path)] == ["input_error"] * 3


def test_what_computed_the_numbers_is_in_the_table_and_in_the_manifest(whole, inputs, tmp_path):
    (facts,) = json.loads(pq.read_schema(whole).metadata[ENGINE_KEY])
    assert facts["engine"].startswith("transformers 5")
    assert (facts["precision"], facts["head"]) == ("float32", "float32")
    assert run(inputs, tmp_path / "again")[1].metrics["engine"] == facts["engine"]


def test_the_tokens_of_a_response_are_kept_without_its_end(whole):
    assert {len(found["token_ids"]) for found in table(whole) if found["status"] == "ok"} == {5}
    assert table(whole)[7]["token_ids"] is None


def test_progress_counts_the_rows_of_this_worker(inputs, tmp_path):
    seen = []
    here = context(tmp_path / "progress", worker=1, workers=2)
    probe.run(RECIPE, inputs, tmp_path, Context(here.scratch, here.work, {}, worker=1, workers=2, progress=seen.append))
    assert [(one.done, one.total) for one in seen[:2]] == [(4, 5), (5, 5)]
    assert {(one.done, one.total) for one in seen[2:]} == {(5, 5)}  # while it makes those of worker 0
    assert all(one.metric_value > 0 for one in seen)


def generation(text, offsets, *, truncated=False, entropies=None):
    count = len(offsets)
    return Generation(
        text,
        truncated,
        np.zeros(count, np.int32),
        np.array(entropies or [0.1] * count),
        np.tile([0.7, 0.2], (count, 1)),
        np.array(offsets, np.int64),
    )


def test_the_answer_token_is_found_by_its_place_in_the_text():
    # "<", "answer", ">", "1", "", "</", "answer>": tags split as Qwen splits them, and a special token without text.
    found = judge(generation("<answer>1</answer>", [0, 1, 7, 8, 9, 9, 11], entropies=[0, 0, 0, 0.5, 0, 0, 0.2]))
    assert (found.status, found.predicted, found.answer_entropy_nats) == ("ok", 1, 0.5)
    assert found.sentence_entropy_nats == pytest.approx(0.1)
    assert (found.p_answer_1, found.p_answer_2) == (0.7, 0.2)


def test_an_empty_token_before_the_digit_is_not_taken_for_it():
    found = judge(generation("<answer>1</answer>", [0, 8, 8, 9], entropies=[0, 9, 0.5, 0]))
    assert found.answer_entropy_nats == 0.5


@pytest.mark.parametrize("offsets", [[0, 8, 10], [0, 7, 9], [0]])
def test_an_answer_that_shares_its_token_with_other_text_is_merged(offsets):
    found = judge(generation("<answer>1</answer>", offsets))
    assert (found.status, found.answer_entropy_nats, found.predicted) == ("merged_token", None, None)


@pytest.mark.parametrize(
    ("text", "truncated", "status"),
    [
        ("", False, "no_answer"),
        ("The first is better: 1", False, "no_answer"),
        ("<answer>1</answer>", True, "truncated"),
        ("<answer>1</answer><answer>2</answer>", False, "many_answers"),
        ("<answer>12</answer>", False, "bad_answer"),
    ],
)
def test_anything_but_one_answer_has_a_status_with_its_reason_and_no_entropy(text, truncated, status):
    found = judge(generation(text, list(range(len(text))), truncated=truncated))
    assert found.status == status
    assert found.reason
    assert (found.answer_entropy_nats, found.sentence_entropy_nats, found.predicted) == (None, None, None)
    assert found.response == text


def test_nan_logits_have_a_status_of_their_own():
    found = judge(generation("<answer>1</answer>", [0, 8, 9], entropies=[0.1, 0.2, math.nan]))
    assert (found.status, found.answer_entropy_nats) == ("nan_logits", None)
