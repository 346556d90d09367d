"""The bills of materials name what the locks pin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from image_build import ROOT
from locked import REQUIREMENTS, locked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sbom")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([str(ROOT / "images" / "sbom.sh"), str(made)], check=True, env=os.environ | {"PATH": path})
    return made


@pytest.mark.parametrize(("image", "lock"), [("operator", "operator"), ("pipeline", "gpu")])
def test_it_names_every_package_of_the_lock_with_its_hashes_and_no_other(folder: Path, image: str, lock: str) -> None:
    bill = json.loads((folder / f"{image}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "egt"
    assert {canonicalize_name(one["name"]): one["version"] for one in bill["components"]} == locked(lock)
    hashes = {
        one["content"] for part in bill["components"] for place in part["externalReferences"] for one in place["hashes"]
    }
    pinned = (REQUIREMENTS / f"{lock}.txt").read_text()
    assert len(hashes) == pinned.count("--hash=sha256:")
    assert all(f"--hash=sha256:{one}" in pinned for one in hashes)
