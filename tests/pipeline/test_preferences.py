"""Preferences as prepare writes them and later stages read them."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from egt_pipeline.preferences import PREFERENCES_FILE, Images, read_preferences, write_images, write_preferences


def _row(number: int, **changes: Any) -> dict[str, object]:
    found = {
        "row": number,
        "sample_id": f"s-{number}",
        "images": ["a", "b"],
        "question": "Which?",
        "answer_1": "four",
        "answer_2": "7",
        "label": 1,
        "source": "default",
        "answer_order": "12",
        "status": "ok",
        "reason": "",
    }
    return found | changes


@pytest.mark.parametrize(("file_bytes", "files"), [(1, 5), (20, 3), (1000, 1)])
def test_pictures_come_back_whole_from_however_many_files(tmp_path: Path, file_bytes: int, files: int) -> None:
    pictures = {f"image-{number}": bytes([number]) * 10 for number in range(5)}
    write_images(tmp_path, iter(pictures.items()), file_bytes=file_bytes)
    images = Images(tmp_path)
    assert len(list(tmp_path.glob("images-*.parquet"))) == files
    assert {name: images[name] for name in pictures} == pictures
    assert "image-5" not in images


def test_a_folder_without_pictures_still_has_a_table_of_them(tmp_path: Path) -> None:
    write_images(tmp_path, iter([]), file_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["images-00000.parquet"]
    assert "any" not in Images(tmp_path)


def test_rows_are_read_in_their_order_and_bad_ones_are_left_out(tmp_path: Path) -> None:
    write_preferences(tmp_path, [_row(2, label=2), _row(0, status="bad_label", label=None), _row(1)])
    found = read_preferences(tmp_path, labelled=True)
    assert [(one.row, one.label, one.images) for one in found] == [(2, 2, ("a", "b")), (1, 1, ("a", "b"))]


def test_reading_without_labels_works_where_there_is_no_column_of_labels(tmp_path: Path) -> None:
    write_preferences(tmp_path, [_row(0), _row(1, label=2)])
    path = tmp_path / PREFERENCES_FILE
    pq.write_table(pq.read_table(path).drop_columns(["label", "strength", "response"]), path)
    assert [(one.row, one.label) for one in read_preferences(tmp_path, labelled=False)] == [(0, None), (1, None)]
