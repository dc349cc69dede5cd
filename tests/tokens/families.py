"""Chat templates that behave as those of the model families do, each written for these tests, and their tokenizers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from small_tokenizers import byte_level

_FOLDER = Path(__file__).parent / "templates"

# The EOS of each family, and the special tokens that its template writes beside those of the small tokenizers.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ChatML": ("<|im_end|>", ()),
    "Llama 3": ("<|eot_id|>", ()),
    "Mistral": ("</s>", ()),
    "Gemma 2": ("<eos>", ()),
    "Gemma 3": ("<eos>", ()),
    "Qwen 3": ("<|im_end|>", ()),
    "Qwen 3.5": ("<|im_end|>", ()),
    "DeepSeek V3": ("<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>")),
    "DeepSeek R1": ("<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>")),
    "GLM 4": ("<|endoftext|>", ("<|user|>", "<|assistant|>", "<|observation|>", "<|system|>")),
    "gpt-oss": ("<|return|>", ("<|start|>", "<|channel|>", "<|message|>", "<|call|>")),
    "Phi 3": ("<|endoftext|>", ("<|user|>", "<|assistant|>")),
    "Phi 4": ("<|im_end|>", ("<|im_sep|>",)),
    "Command R": ("<|END_OF_TURN_TOKEN|>", ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")),
    "Nemotron": ("<SPECIAL_12>", ("<SPECIAL_10>", "<SPECIAL_11>")),
    "Granite": ("<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")),
}


def template_of(family: str) -> str:
    name = family.lower().replace(" ", "_").replace(".", "_").replace("-", "_")
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8").strip("\n")


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    eos, special = FAMILIES[family]
    tokenizer = byte_level(chat_template=template_of(family), eos=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer
