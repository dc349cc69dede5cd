"""Passes over a small pool, for tests of what a pass stores and says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenclean.executors import LOCAL, Executor
from tokenclean.models.loading.load import load_model, load_tokenizer, resolve_source
from tokenclean.observer import Observer
from tokenclean.pool import survey_pool
from tokenclean.recipe import TokensSettings, source_from
from tokenclean.scoring.model_losses import ScoringPolicy
from tokenclean.scoring.pool_pass import PassOutcome, PoolToScore, score_pool

CHARACTERS = 900
ROWS = 16
POLICY = ScoringPolicy("exact", 512)
TULU = TokensSettings()


def save_reference(base: Path, folder: Path, **config) -> Path:
    """A random adapter on the base."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    lora = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config})
    model = get_peft_model(load_model(str(base)), lora)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(str(folder))
    return folder


class Passes:
    """Passes over one pool into one folder, and what they said."""

    def __init__(self, pool: Path, folder: Path, base: Path, reference: Path | None) -> None:
        self.pool, self.folder, self.base, self.reference = pool, folder, base, reference
        self.tokenizer = load_tokenizer(str(base))
        self.notes: list[str] = []
        self.reported: list[tuple[int, int]] = []

    def run(
        self,
        name: str = "s",
        *,
        models: tuple[str, ...] = ("base", "reference"),
        policy: ScoringPolicy = POLICY,
        tokenization: TokensSettings = TULU,
        max_rejected_share: float = 0.05,
        progress: Callable[[int, int], None] | None = None,
        executor: Executor = LOCAL,
        trusted: tuple[str, ...] = (),
    ) -> PassOutcome:
        sources = (source_from({"path": str(self.pool)}),)
        listing = self.folder / f"{name}.rejected.jsonl"
        survey = survey_pool(sources, CHARACTERS, listing, max_rejected_share)
        outcome = score_pool(
            PoolToScore(sources, survey, listing, CHARACTERS, max_rejected_share),
            {name: resolve_source(str(getattr(self, name)), trusted=trusted) for name in models},
            self.tokenizer,
            self.folder / f"{name}.parquet",
            tokenization=tokenization,
            policy=policy,
            executor=executor,
            observer=Observer(self.notes.append, lambda label, unit: progress or self._tell),
        )
        assert outcome is not None
        return outcome

    def _tell(self, done: int, total: int) -> None:
        self.reported.append((done, total))

    def table(self, name: str = "s") -> bytes:
        return (self.folder / f"{name}.parquet").read_bytes()

    def stages(self, kind: str, name: str = "s") -> list[Path]:
        return sorted((self.folder / f"{name}.shards" / "stages").glob(f"{kind}-*"))
