"""A Qwen2.5-VL of 0.7 million weights, with tokenizer, chat template and image processor; nothing is downloaded.

It is small enough to be trained from scratch on two cores and has every part of the large one: vision tower with
windowed attention, three-axis rotary positions, byte-level BPE with digits isolated.
"""

from pathlib import Path
from typing import Any

_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # the special tokens of Qwen2.5-VL, in its order  # fmt: skip
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, kept when special tokens are left out
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_CORPUS = [
    "system user assistant Which digit is this? Response : The picture shows first second says right wrong , .",
    *(f" {word}. {word} {word}," for word in _WORDS),
]
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEAD_SIZE = 32  # the smallest that vLLM's CPU attention takes
_PATCH = 14  # of Qwen2.5-VL; with merge size 2 a picture of 28 x 28 is one token
_LONGEST = 2048


def build_tiny_model(out: Path, *, hidden: int = 128, vision_hidden: int = 64, layers: int = 2, seed: int = 0) -> int:
    """Write model and processor to ``out``; the number of weights. Equal arguments give equal bytes."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()  # there is one shard
    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer, hidden, vision_hidden, layers))
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = ends[1]
    model.save_pretrained(out, safe_serialization=True)
    _processor(tokenizer).save_pretrained(out)
    return sum(weight.numel() for weight in model.parameters())


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    # Every digit is a token of its own, as Qwen's pre-tokenizer has it: the answer is always one token.
    isolate_digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([isolate_digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,  # 256 bytes, the special tokens, and the words of the demo
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS * 50, trainer)
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in _SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=_LONGEST,
        padding_side="left",
    )


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    images = Qwen2VLImageProcessor(
        patch_size=_PATCH,
        merge_size=2,
        temporal_patch_size=2,
        # The default of Qwen enlarges every picture to at least 56 x 56.
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16},
    )
    return Qwen2_5_VLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=_CHAT_TEMPLATE,
    )


def _config(tokenizer: Any, hidden: int, vision_hidden: int, layers: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    heads = hidden // _HEAD_SIZE
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": _LONGEST,
        "tie_word_embeddings": False,
        # 16 rotary pairs of a head of 32, shared among time, height and width as in the large model.
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=_vision(hidden, vision_hidden),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        tie_word_embeddings=False,
    )


def _vision(hidden: int, vision_hidden: int) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": vision_hidden,
        "intermediate_size": 2 * vision_hidden,
        "num_heads": vision_hidden // _HEAD_SIZE,
        "out_hidden_size": hidden,
        "patch_size": _PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "in_channels": 3,
    }
