"""The formulas of memory.py and generation_memory.py as people read them: ``egt plan`` prints them. Pure.

Text that computes: with the values of its symbols, each gives the bytes that those functions do, and
tests/operator/test_formulas.py evaluates them to see that. A formula names others that stand before it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from egt_operator.generation_memory import Prompts
from egt_operator.geometry import Geometry
from egt_operator.memory import OVERHEAD, Training

# Of the model, then of what is done with it.
SHAPE: Mapping[str, str] = {
    "P": "all weights",
    "n": "layers",
    "H": "hidden size",
    "I": "intermediate size",
    "V": "vocabulary",
    "kv": "width of keys",
    "d": "head size",
    "heads": "heads",
    "x": "values of a patch",
    "h": "hidden size of the vision tower",
    "i": "its intermediate size",
    "g": "its heads",
    "D": "its blocks",
}
WORK: Mapping[str, str] = {
    "T": "weights that train",
    "N": "ranks",
    "w": "bytes a weight is kept in",
    "b": "bytes a number",
    "e": "bytes a weight of adapters",
    "r": "elements of reduce buckets",
    "t": "tokens of a micro-batch",
    "L": "tokens with logits",
    "c": "bytes a logit",
    "a": "bytes of adapters a token and layer",
    "p": "patches",
    "s": "samples at once",
    "q": "tokens of a prompt",
    "o": "tokens of a response",
    "m": "tokens of a sample",
    "f": "tokens of one step",
    "v": "tokens of its pictures",
    "u": "share of the GPU",
    "G": "bytes of the GPU",
}
_LAYER = "((8 + 4*b)*H + 2*b*(H + kv + d) + 4*heads + 4*b*I{})*t"
_BLOCK = "(28 + 8*b)*h + 4*b*i"
_FROZEN = "(4 + b)*x + 24*h/g + max(32*h, 8*h + 3*b*i)"
_OF_A_TOKEN = "2*n*kv*b"  # keys and values of all layers


@dataclass(frozen=True)
class Terms:
    """Formulas by name, kinds of memory and parts of them, and the values of the symbols that they name."""

    formulas: Mapping[str, str]
    symbols: Mapping[str, float]


def _terms(formulas: Mapping[str, str], geometry: Geometry, work: Mapping[str, float]) -> Terms:
    tower = geometry.vision
    language = (geometry.layers, geometry.hidden, geometry.intermediate, geometry.vocabulary)
    attention = (geometry.kv_width, geometry.head_size, geometry.heads)
    vision = (tower.patch_values, tower.hidden, tower.intermediate, tower.heads, tower.depth)
    shape = (geometry.parameters, *language, *attention, *vision)
    values = {**dict(zip(SHAPE, shape, strict=True)), **work}
    used = set(re.findall(r"[A-Za-z]\w*", " ".join(formulas.values())))
    return Terms(formulas, {name: value for name, value in values.items() if name in used})


def copies(count: int, *, sharded: bool) -> str:
    """The weights of ``count`` more models in bfloat16."""
    return f" + {2 * count}*P{'/N' if sharded else ''}" if count else ""


def training(made: Training, beside: str, *, on_gpu: bool) -> Terms:
    """Of ``memory.training``; weights that lie ``beside`` are added."""
    sharding, batch = made.sharding, made.batch
    formulas = _states(made, beside) | _moments(made)
    work = {
        "T": made.trainable,
        "N": sharding.ranks,
        "w": made.held,
        "b": made.b,
        "e": made.adapter_bytes,
        "r": sharding.bucket * sharding.buckets,
        "t": batch.tokens,
        "L": batch.samples * batch.logits,
        "c": batch.logit_bytes,
        "a": batch.adapters,
        "p": batch.patches,
    }
    return _terms(formulas | _overhead(on_gpu=on_gpu), made.geometry, work)


def _overhead(*, on_gpu: bool) -> dict[str, str]:
    return {"overhead": f"{OVERHEAD // 2**30}*2**30"} if on_gpu else {}


def _states(made: Training, beside: str) -> dict[str, str]:
    if made.adapter_bytes:
        beside = f" + e*T{'/N' if made.sharding.stage == 3 else ''}{beside}"
    if made.sharding.stage == 0:
        several = made.sharding.ranks > 1
        return {"weights": f"w*P{beside}", "gradients": "8*T" if several else "4*T", "optimiser": "8*T"}
    whole = "w*P" if made.sharding.stage == 2 else "w*P/N + w*(min(P, 1e9) + min(P, max(V*H, 5e7)))"
    return {"weights": whole + beside, "gradients": "w*T/N + w*r", "optimiser": "12*T/N"}


def _moments(made: Training) -> dict[str, str]:
    """Activations are the most of several moments, each a formula of its own."""
    checkpointing, reduced = made.checkpointing, made.reduced
    step = {0: "", 2: "(4 + b)*T/N", 3: "4*min(T/N, 1e9)"}[made.sharding.stage]
    found = {
        "layer": _LAYER.format(" + a" if made.batch.adapters else ""),
        "kept": "n*b*H*t" if checkpointing else "n*layer",
        "loss": f"kept + (4 + 2*b)*H*t + {'max(c*L*V, b*L*V + b*V*H)' if reduced else 'c*L*V'}",
        "backward": "kept + " + ("layer + " if checkpointing else "") + "b*(H + 2*I + 6*d)*t",
        "tower": _tower(trains=made.vision_trains, checkpointing=checkpointing),
        "pictures": "tower*p",
    }
    found["backward"] += " + b*H*I" if reduced else ""
    found |= {"step": step} if step else {}
    moments = ["loss", "backward", *(["3*b*V*H"] if reduced and made.geometry.tied else [])]
    more = (" + pictures" if made.vision_trains else "") + (" + b*P" if made.held > made.b else "")
    moments += [] if made.vision_trains else ["pictures"]
    moments = [f"max({', '.join(moments)}){more}"] if more else moments
    moments += ["step"] if step else []
    return found | {"activations": f"max({', '.join(moments)})" if len(moments) > 1 else moments[0]}


def _tower(*, trains: bool, checkpointing: bool) -> str:
    if not trains:
        return _FROZEN
    kept = f"D*b*h + {_BLOCK}" if checkpointing else f"D*({_BLOCK})"
    return f"(4 + b)*x + {kept} + b*(h + 2*i)"


@dataclass(frozen=True)
class VllmParts:
    """What differs between vLLM's uses: its logits and its cache; weights and overhead of others that share the GPU."""

    logits: str
    pool: str
    beside: str = ""
    shares: bool = False


def vllm(geometry: Geometry, parts: VllmParts, work: Mapping[str, float]) -> Terms:
    """Of ``generation_memory.vllm_activations``, and what vLLM holds besides."""
    formulas = {
        "tower": "max(12*x, b*x + b*max(11*h, 4*h + 4*i))",
        "pictures": "tower*4*v",
        "prefill": "b*(5*H + 4*I)*f",
        "logits": parts.logits,
        "weights": f"b*P{parts.beside}",
        "activations": "max(pictures, b*H*v + max(prefill, logits + b*H*f))",
        "kv_cache": parts.pool,
    }
    return _terms(formulas | _overhead(on_gpu=parts.shares), geometry, work)


ROLLOUT_LOGITS = "(b + 16)*s*V"


def probe_logits(*, sampled: bool, casts_head: bool) -> str:
    """Of ``generation_memory.probe_logits``."""
    chosen = "V*(8*s + 24*min(s, 32))" if sampled else "8*s*V"
    return f"max({chosen}, 4*V*(s + H))" if casts_head else chosen


def vllm_pool(*, on_gpu: bool, known: bool) -> str:
    """The cache of vLLM: what is left of its share of a GPU whose bytes are known, one sample's at the least."""
    if not on_gpu:
        return "2**30"
    one = f"{_OF_A_TOKEN}*m"
    return f"max({one}, u*G - b*P - activations)" if known else one


def generation(geometry: Geometry, prompts: Prompts, b: int, *, on_gpu: bool) -> Terms:
    """Of ``generation_memory.generation``."""
    repeated = ", 2*b*H*s*(q + o)" if geometry.kv_heads < geometry.heads else ""
    formulas = {
        "tower": _FROZEN,
        "pictures": "tower*p",
        "prefill": "s*q*(b*(5*H + 3*I) + q)",
        "weights": "b*P + 4*V*H",
        "kv_cache": f"{_OF_A_TOKEN}*s*(q + o)",
        "activations": f"max(max(prefill, pictures) - {_OF_A_TOKEN}*s*o, kv_cache/(2*n){repeated})",
    }
    work = {"b": b, "s": prompts.count, "q": prompts.prompt, "o": prompts.new, "p": prompts.patches}
    return _terms(formulas | _overhead(on_gpu=on_gpu), geometry, work)
