"""What allocates, and how much: small Qwen2.5-VL models of any shape, and the bytes their tensors take at the peak."""

import json
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TEXT = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
)  # fmt: skip
_VISION = ("depth", "hidden_size", "intermediate_size", "num_heads")


class Peak(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation makes, for as long as it lives."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, tuple[Any, int]] = {}
        self._keep = [tensor.untyped_storage() for tensor in known]
        self._known = {id(storage) for storage in self._keep}

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key = id(storage)
        if key not in self._seen and key not in self._known:
            self._seen[key] = (weakref.ref(storage, lambda _: self._drop(key)), storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._seen.pop(key)[1]


def config_of(shape: dict[str, Any], depth: int = 2, vision: int = 64, vision_intermediate: int = 64) -> Any:
    from transformers import Qwen2_5_VLConfig

    pairs = shape["hidden"] // shape["heads"] // 16
    text = {
        "vocab_size": shape["vocabulary"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2 * pairs, 3 * pairs, 3 * pairs],
            "rope_theta": 1e6,
        },
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    }
    tower = {
        "depth": depth,
        "hidden_size": vision,
        "intermediate_size": vision_intermediate,
        "num_heads": 4,
        "out_hidden_size": shape["hidden"],
    }
    ids = {f"{name}_token_id": 1 for name in ("image", "video", "vision_start", "vision_end")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=shape["tied"], **ids)
    config._attn_implementation = "sdpa"
    return config


def model_of(config: Any, dtype: torch.dtype) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_default_dtype(dtype)
    model = Qwen2_5_VLForConditionalGeneration(config).train()
    torch.set_default_dtype(torch.float32)
    return model


def tell(config: dict[str, Any], kind: str, **found: Any) -> None:
    """One line of output; of the config, what a geometry is made of."""
    tower = config["vision_config"]
    text = {name: config["text_config"][name] for name in _TEXT}
    vision = {name: tower[name] for name in _VISION}
    told = {"text_config": text, "vision_config": vision, "tie_word_embeddings": config["tie_word_embeddings"]}
    print(json.dumps({"kind": kind, **found, "config": told}), flush=True)
