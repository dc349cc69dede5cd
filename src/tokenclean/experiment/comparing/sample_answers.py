"""What the models of a comparison answer to held-out prompts, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.store import array_hash, write_json

ANSWERS = "answers.json"


@dataclass(frozen=True)
class Prompt:
    """``ids``: tokens up to the first response token; ``text``: the same; ``reference``: the row's own response."""

    row: str
    ids: tuple[int, ...]
    text: str
    reference: str


def heldout_prompts(opened: OpenRun) -> list[Prompt]:
    """Of the first ``evaluation.samples`` held-out rows with a prompt."""
    tokens, found = opened.context.heldout, []
    decode: Any = opened.context.data.tokenizer.decode
    for row, ids, is_response in zip(tokens.ids, tokens.input_ids, tokens.is_response, strict=True):
        targets = np.flatnonzero(is_response)
        if len(found) < opened.context.recipe.evaluation.samples and len(targets) and targets[0]:
            before, answer = ids[: targets[0]], ids[targets]
            response = decode(answer, skip_special_tokens=True)
            found.append(Prompt(row, tuple(map(int, before)), decode(before), response))
    return found


def answers(opened: OpenRun, model: Model, prompts: Sequence[Prompt]) -> list[str]:
    """Greedy answers of at most ``evaluation.sample_tokens`` tokens, found or made."""
    most = opened.context.recipe.evaluation.sample_tokens
    flat = np.concatenate([np.asarray(prompt.ids) for prompt in prompts]) if prompts else np.zeros(0, dtype=np.int64)
    inputs = {
        "model": model.identity,
        "prompts": array_hash(flat, np.array([len(prompt.ids) for prompt in prompts])),
        "tokens": most,
        "device": opened.device.partition(":")[0],
    }

    def make(folder: Path) -> dict[str, Any]:
        import torch
        from transformers import GenerationConfig

        tokenizer, texts = opened.context.data.tokenizer, []
        end = tokenizer.eos_token_id
        greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=end, pad_token_id=end)
        with opened.models.using(model.weights_source) as module, torch.no_grad():
            generate: Any = module.generate
            for prompt in prompts:
                ids = torch.tensor([prompt.ids], device=opened.device)
                made = generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
                texts.append(tokenizer.decode(made[0, len(prompt.ids) :], skip_special_tokens=True))
        write_json(folder / ANSWERS, texts)
        return {"what": f"answers of {model.name}"}

    stage = opened.stages.stage("samples", inputs, make)
    return json.loads((stage.path / ANSWERS).read_text(encoding="utf-8"))


def answers_markdown(prompts: Sequence[Prompt], given: Mapping[str, Sequence[str]]) -> str:
    """A section a prompt, the row's own response first."""
    parts = ["# Answers side by side", "Greedy, of the first seed's models."]
    for number, prompt in enumerate(prompts):
        parts += [f"## {prompt.row}", _quoted(prompt.text), "**in the data**", _quoted(prompt.reference)]
        for name, texts in given.items():
            parts += [f"**{name}**", _quoted(texts[number])]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" if line else ">" for line in (text.strip() or "(nothing)").splitlines())
