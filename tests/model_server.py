"""A local server around a small model that gives log-probabilities of prompts in the three forms, and misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from local_server import LocalServer, Reply, Request

NAME = "big-model"

Spoil = Callable[[Request, Any], Reply | None]
"""Given a request and the right answer, another answer; None for the right one."""


class ModelServer(LocalServer):
    """``form``: ``vllm`` (which knows echo too), ``echo`` or ``sglang``. ``bos``: the id that it puts before a text.
    ``longest``: tokens that it takes, None for any number. ``gives_ids``: whether ``echo`` can write tokens as ids.
    ``spoil``: what goes wrong."""

    def __init__(
        self,
        folder: Path,
        form: str,
        *,
        bos: int | None = None,
        longest: int | None = None,
        gives_ids: bool = True,
        lists_models: bool = True,
        spoil: Spoil = lambda request, answer: None,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.form, self.bos, self.longest, self.gives_ids = form, bos, longest, gives_ids
        self.lists_models, self.spoil = lists_models, spoil
        self._one_at_a_time = threading.Lock()
        super().__init__(self._reply_to)

    @property
    def asked(self) -> list[Request]:
        """Requests for log-probabilities."""
        return [request for request in self.requests if request.body]

    def logprobs(self, ids: Sequence[int]) -> list[float | None]:
        """log p of each token given those before it, None for the first."""
        import torch

        with self._one_at_a_time, torch.no_grad():
            input_ids = torch.tensor([list(ids)])
            found = self.model(input_ids).logits[0, :-1].double().log_softmax(-1)
            return [None, *found.gather(1, input_ids[0, 1:, None])[:, 0].tolist()]

    def _reply_to(self, request: Request) -> Reply:
        if not request.body:
            if not self.lists_models or request.path != "/v1/models":
                return Reply(status=404, body="{}")
            return Reply({"data": [{"id": NAME, **({"max_model_len": self.longest} if self.longest else {})}]})
        if request.path != ("/generate" if self.form == "sglang" else "/v1/completions"):
            is_known = request.path == "/v1/completions"  # SGLang has it too, without log-probabilities of prompts
            return Reply(self._plain()) if is_known else Reply(status=404, body='{"detail": "Not Found"}')
        body = request.body
        ids = self._ids_of(body.get("prompt", body.get("input_ids", body.get("text"))))
        if self.longest is not None and len(ids) + 1 > self.longest:
            message = f"This model's maximum context length is {self.longest} tokens"
            return Reply(status=400, body=json.dumps({"error": {"message": message}}))
        answer = self._right_answer(body, ids)
        return self.spoil(request, answer) or Reply(answer)

    def _ids_of(self, prompt: Any) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        return [*([] if self.bos is None else [self.bos]), *self.tokenizer.encode(prompt, add_special_tokens=False)]

    def _right_answer(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        logprobs, texts = self.logprobs(ids), [self.tokenizer.decode([id]) for id in ids]
        if self.form == "sglang":
            with_texts = body["return_text_in_logprobs"]
            entries = [[p, i, t if with_texts else None] for p, i, t in zip(logprobs, ids, texts, strict=True)]
            return {"text": "x", "meta_info": {"prompt_tokens": len(ids), "input_token_logprobs": entries}}
        answer = self._plain()
        [choice] = answer["choices"]
        answer["usage"] = {"prompt_tokens": len(ids), "completion_tokens": 1}
        if self.form == "vllm" and "prompt_logprobs" in body:
            triples = zip(logprobs, ids, texts, strict=True)
            choice["prompt_logprobs"] = [
                None if p is None else {str(i): {"logprob": p, "rank": 1, "decoded_token": t}} for p, i, t in triples
            ]
        if body.get("echo"):
            if body.get("return_tokens_as_token_ids") and self.gives_ids:
                texts = [f"token_id:{id}" for id in ids]
            choice["logprobs"] = {"tokens": [*texts, "x"], "token_logprobs": [*logprobs, -1.0]}
        return answer

    @staticmethod
    def _plain() -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": "x", "logprobs": None}], "usage": {}}
