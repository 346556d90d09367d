"""The shape of a Qwen2.5-VL: what its config.json says, and how many weights follow from it. Pure but ``geometry_of``.

A config.json at hand wins: of a local model, or of the hub's cache on this machine. The published shapes of
Qwen2.5-VL-Instruct stand in for hub models that are not there yet.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egt_pipeline.contract.data import MODEL_TYPE, ModelSource


@dataclass(frozen=True)
class Vision:
    """The vision tower: blocks of full width, then a merger that makes one token of ``merge`` x ``merge`` patches."""

    depth: int
    hidden: int
    intermediate: int
    heads: int
    merge: int
    patch_values: int  # numbers in one patch: channels x frames x pixels

    def parameters(self, out: int) -> int:
        """Its weights, with a merger that leads to width ``out``."""
        h, i, merged = self.hidden, self.intermediate, self.merge**2 * self.hidden
        block = 4 * h * h + 4 * h + 3 * h * i + 2 * i + h + 2 * h  # attention, its biases, MLP, its biases, two norms
        merger = h + merged * merged + merged + merged * out + out
        return self.patch_values * h + self.depth * block + merger


@dataclass(frozen=True)
class Geometry:
    """The shape of a model, under the names of its config.json."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool  # the head is the embedding, transposed
    vision: Vision

    @property
    def head_size(self) -> int:
        """Numbers in one attention head."""
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """Numbers in the keys of one token in one layer; its values have as many."""
        return self.kv_heads * self.head_size

    @property
    def layer_parameters(self) -> int:
        """Weights of one decoder layer: q and o, k and v, three biases, the gated MLP, two norms."""
        h, kv = self.hidden, self.kv_width
        return 2 * h * h + 2 * h * kv + h + 2 * kv + 3 * h * self.intermediate + 2 * h

    def adapter_parameters(self, rank: int, targets: Collection[str]) -> int:
        """Weights of low-rank adapters on these linear layers of all blocks: rank x (inputs + outputs) each."""
        h, i, kv = self.hidden, self.intermediate, self.kv_width
        sizes = {"q_proj": 2 * h, "k_proj": h + kv, "v_proj": h + kv, "o_proj": 2 * h}
        sizes |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), h + i)
        return self.layers * rank * sum(sizes[target] for target in targets)

    @property
    def head_parameters(self) -> int:
        """Weights of the head, or of the embedding: one row a word."""
        return self.vocabulary * self.hidden

    @property
    def vision_parameters(self) -> int:
        """Weights of the vision tower with its merger."""
        return self.vision.parameters(self.hidden)

    @property
    def parameters(self) -> int:
        """All weights; a tied head counts once."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden + self.vision_parameters

    @property
    def language_parameters(self) -> int:
        """What trains when the vision tower is frozen."""
        return self.parameters - self.vision_parameters


def read_config(config: Mapping[str, Any]) -> Geometry:
    """The geometry that a config.json of Qwen2.5-VL says; those of the hub keep the text's fields at the top.

    Raises KeyError at a missing field, ValueError at another model_type or at what is no number: then it is the config
    of something else.
    """
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise ValueError(f"model_type: {config['model_type']!r}")
    text, vision = config.get("text_config") or config, config["vision_config"]
    channels = _number(vision, "in_channels", "in_chans", default=3)
    frames, patch = _number(vision, "temporal_patch_size", default=2), _number(vision, "patch_size", default=14)
    return Geometry(
        layers=_number(text, "num_hidden_layers"),
        hidden=_number(text, "hidden_size"),
        intermediate=_number(text, "intermediate_size"),
        heads=_number(text, "num_attention_heads"),
        kv_heads=_number(text, "num_key_value_heads", "num_attention_heads"),
        vocabulary=_number(text, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        vision=Vision(
            # The hub's 3B and 7B leave depth to transformers' default of 32.
            depth=_number(vision, "depth", default=32),
            hidden=_number(vision, "hidden_size"),
            intermediate=_number(vision, "intermediate_size"),
            heads=_number(vision, "num_heads", default=16),
            merge=_number(vision, "spatial_merge_size", default=2),
            patch_values=channels * frames * patch * patch,
        ),
    )


def _number(block: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of the fields that the block has. Raises KeyError if it has none, ValueError if that is no number."""
    name = next((name for name in names if block.get(name) is not None), names[0])
    value = block.get(name, default)
    if value is None:
        raise KeyError(name)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: {value!r} is no whole number of at least 1")
    return value


# The tower of 3B and 7B, and the wider one of 32B and 72B.
_TOWER, _WIDE_TOWER = (
    Vision(depth=32, hidden=1280, intermediate=i, heads=16, merge=2, patch_values=1176) for i in (3420, 3456)
)
# The config.json of each on the hub (Qwen2.5-VL technical report, arXiv 2502.13923, table 1). Their weights, counted:
# 3,754,622,976 · 8,292,166,656 · 33,452,718,336 · 73,410,777,344.
PUBLISHED: Mapping[str, Geometry] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Geometry(36, 2048, 11008, 16, 2, 151936, tied=True, vision=_TOWER),
    "Qwen/Qwen2.5-VL-7B-Instruct": Geometry(28, 3584, 18944, 28, 4, 152064, tied=False, vision=_TOWER),
    "Qwen/Qwen2.5-VL-32B-Instruct": Geometry(64, 5120, 27648, 40, 8, 152064, tied=False, vision=_WIDE_TOWER),
    "Qwen/Qwen2.5-VL-72B-Instruct": Geometry(80, 8192, 29568, 64, 8, 152064, tied=False, vision=_WIDE_TOWER),
}


@dataclass(frozen=True)
class Known:
    """A geometry, and where it is known from; None with the reason why it is not."""

    geometry: Geometry | None
    origin: str


def geometry_of(model: ModelSource) -> Known:
    """What is known here of a model's shape, without a network."""
    name = model.source.removeprefix("hf://")
    if model.source.startswith("hf://"):
        path = _hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots" / str(model.revision) / "config.json"
        if path.is_file():
            return _read(path)
        if name in PUBLISHED:
            return Known(PUBLISHED[name], f"published shape of {name}")
        return Known(None, f"unknown: {name} is not in the hub's cache of this machine")
    if "://" in model.source and not model.source.startswith("file://"):
        return Known(None, f"unknown: config.json lies in {model.source}, and this looks at this machine only")
    return _read(Path(model.source.removeprefix("file://")) / "config.json")


def _read(path: Path) -> Known:
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise TypeError("it holds no JSON object")
        return Known(read_config(config), str(path))
    except OSError as error:
        return Known(None, f"unknown: {path}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Known(None, f"unknown: {path} is no config of a Qwen2.5-VL ({error})")


def _hub_cache() -> Path:
    """Where huggingface_hub keeps models; its own rule, so that nothing has to be imported for it."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
