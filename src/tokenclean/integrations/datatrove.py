"""A datatrove step that scores documents and keeps those with a score high enough."""

from __future__ import annotations

from typing import Any

from tokenclean.errors import needs_extra
from tokenclean.integrations.row_scores import RowScorer

with needs_extra("datatrove", "datatrove", "tokenclean's datatrove step"):
    from datatrove.data import Document
    from datatrove.pipeline.filters.base_filter import BaseFilter


class TokenScoreFilter(BaseFilter):
    """Writes ``metadata["token_score"]``, in nats a token, and drops documents that score below ``minimum``.

    A document whose metadata have ``messages``, or ``prompt`` and ``completion``, is that conversation; any other is
    its text, trained throughout. ``minimum``: None keeps every document that has a score. A document without one
    (nothing in it can be trained) is dropped with the reason ``no_score``; datatrove counts both reasons, and
    ``exclusion_writer`` writes what was dropped. Errors as of ``RowScorer``.
    """

    name = "tokenclean score"

    def __init__(
        self,
        scorer: RowScorer,
        minimum: float | None = None,
        exclusion_writer: Any = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(exclusion_writer, batch_size)
        self.scorer, self.minimum = scorer, minimum

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether one document stays."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """Whether each document stays, or False with the reason."""
        return [
            self._judge(doc, score) for doc, score in zip(batch, self.scorer.score(list(map(_row, batch))), strict=True)
        ]

    def _judge(self, doc: Document, score: float | None) -> bool | tuple[bool, str]:
        if score is None:
            return False, "no_score"
        doc.metadata["token_score"] = score
        return True if self.minimum is None or score >= self.minimum else (False, "low_score")


def _row(doc: Document) -> dict[str, object]:
    for keys in (("messages",), ("prompt", "completion")):
        if all(key in doc.metadata for key in keys):
            return {key: doc.metadata[key] for key in keys}
    return {"text": doc.text}
