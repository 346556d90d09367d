"""What vLLM is sent of a model with adapters. In a process of its own, as loading the entry changes torch.cuda."""

import json
import subprocess
import sys
from pathlib import Path

from build_model import random_model

_SYNC = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import egt_pipeline.openrlhf_entry
import deepspeed, torch
from egt_pipeline.adapters import adapted, merge
from egt_pipeline.contract.training import LoRA
from egt_pipeline.openrlhf_entry.lora import whole_weights
from egt_pipeline.reward_model import load_model, load_processor

start, folder = map(Path, sys.argv[1:])
base = folder / "base"
load_model(start, "bfloat16").save_pretrained(base)
load_processor(start).save_pretrained(base)
model = adapted(load_model(base, "bfloat16"), LoRA(rank=4, targets=("q_proj", "up_proj")), None).bfloat16()
for name, weight in model.named_parameters():
    if "lora_" in name:
        weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
model.save_pretrained(folder / "adapter")
merge(base, folder / "adapter", folder / "merged")
expected = load_model(folder / "merged", "bfloat16")
before = {name: weight.clone() for name, weight in model.named_parameters()}
gathering, sent, largest = deepspeed.zero.GatheredParameters, [], 0.0
with whole_weights(SimpleNamespace(model=SimpleNamespace(module=model))) as plain:
    for name, weight in plain.model.module.named_parameters():
        with deepspeed.zero.GatheredParameters([weight], enabled=False):
            sent.append(name)
            largest = max(largest, float((weight.data - expected.get_parameter(name)).abs().max()))
print(json.dumps({
    "sent": sorted(sent),
    "wanted": sorted(name for name, _ in expected.named_parameters() if "visual" not in name),
    "largest": largest,
    "moved": max(float((w - load_model(base, "bfloat16").get_parameter(n)).abs().max())
                 for n, w in expected.named_parameters()),
    "same_after": all(weight.equal(before[name]) for name, weight in model.named_parameters()),
    "put_back": deepspeed.zero.GatheredParameters is gathering,
}))
"""


def test_vllm_is_sent_the_merged_weights_under_the_names_of_the_model_and_the_actor_keeps_its_own(
    tmp_path: Path,
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", _SYNC, str(random_model()), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    seen = json.loads(found.stdout.splitlines()[-1])
    assert seen["sent"] == seen["wanted"]
    assert seen["moved"] > 0.01
    assert seen["largest"] == 0, "rounded as the weights of the artifact are"
    assert seen["same_after"]
    assert seen["put_back"]
