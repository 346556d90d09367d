"""What may import what, beyond what import-linter sees."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "boto3", "pyarrow", "numpy", "ray", "vllm", "sklearn"}:
            raise ImportError(f"{name} is blocked in this test")
sys.meta_path.insert(0, Blocker())
import egt_operator.cli, egt_operator.local, egt_operator.plan, egt_operator.api, egt_operator.schema
print("ok")
"""


def test_the_command_line_and_the_planner_start_without_torch_and_without_s3() -> None:
    done = subprocess.run([sys.executable, "-c", _BLOCKED], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr


def test_no_package_shadows_the_standard_librarys_operator_module() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_file_is_longer_than_a_reader_s_breath() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    sizes = {name: len((ROOT / name).read_text().splitlines()) for name in tracked.stdout.split()}
    assert {name: size for name, size in sizes.items() if size > 300} == {}
