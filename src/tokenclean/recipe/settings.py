"""The sections of a recipe, their keys, defaults and bounds."""

from __future__ import annotations

from datetime import date as Date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, field_validator, model_validator

from tokenclean.recipe.base_settings import Limits, Section
from tokenclean.recipe.pool_settings import PoolSettings
from tokenclean.recipe.strategies import STRATEGIES, find_strategy

_UNICODE_BREAKS = {"\x85", "\u2028", "\u2029"}


def _check_strategy(name: str) -> str:
    find_strategy(name)
    return name


StrategyName = Annotated[str, AfterValidator(_check_strategy)]
Targets = Literal["response", "last_turn", "all"]


class TokensSettings(Section):
    template: Literal["tulu", "tokenizer"] = "tulu"
    max_length: int = Field(default=2048, ge=2)
    targets: Targets = "response"
    """Every trained assistant turn, the last one only, or every token (the pretraining labels of §3.2)."""
    date: str = "2024-07-26"
    """What a chat template that asks for today's date is told, as YYYY-MM-DD: the same for all rows and runs."""

    @field_validator("date")
    @classmethod
    def _check_date(cls, value: str) -> str:
        return Date.fromisoformat(value).isoformat()


class ModelSettings(Section):
    base: str = Field(min_length=1)
    """Hub id, folder, GGUF file, or adapter: the base model θ_0."""
    reference: str | None = None
    """A ready reference model θ' for rho and fixed_model in place of the warm-up."""
    revision: str | None = None
    trust_remote_code: tuple[str, ...] = ()
    """Names of the models that may run code from their own repository; every other may not."""
    device: str = "auto"


class NoiseMixtureSettings(Section):
    """A token is what the model's distribution gives or noise from the pool's unigram distribution; each row's noise
    rate is fitted by EM."""

    mode: Literal["online", "offline"] = "online"
    """Weigh tokens in the training itself, by its own losses; or before it, by those of model.reference or the base."""
    with_repetition: bool = False
    """The strategy noise_mixture drops repeated passages too."""
    mean: float = Field(default=0.005, gt=0, lt=1)
    """The noise rate expected of a row."""
    strength: float = Field(default=20, gt=0)
    """How many tokens that expectation counts as."""
    start: float = Field(default=0.1, gt=0, lt=1)
    iterations: int = Field(default=30, ge=1)


class RepetitionSettings(Section):
    """Response tokens inside an n-gram that many rows share are dropped."""

    n: int = Field(default=6, ge=1)
    row_share: float = Field(default=0.03, ge=0, le=1)
    """Of the rows with a response token, those that have to hold the n-gram …"""
    minimum_rows: int = Field(default=3, ge=1)
    """… and never fewer than this many."""


class CleaningSettings(Section):
    strategy: StrategyName = "self_evolving"
    """One of the strategies of ``tokenclean.recipe.STRATEGIES``, one of an installed package, or module:function."""
    proportion: float = Field(default=0.6, gt=0, le=1)
    """k of Eq. 4: the share of response tokens kept."""
    level: Literal["global", "source"] = "global"
    """Where fixed_model and self_evolving rank: over all tokens, or within each source."""
    splits: int = Field(default=5, ge=2)
    """D̃_0 … D̃_T; D̃_0 warms up the reference."""
    split_kind: Literal["stratified", "contiguous"] = "stratified"
    warmup: Literal["split", "ds2"] = "split"
    """Warm up the reference on a split like the others; or on the ds2_rows best-rated rows, which are D̃_0 then."""
    ds2_rows: int = Field(default=10_000, ge=1)
    """Best-rated training rows that the strategy ds2 trains on."""
    sample_weights: Literal["none", "rating"] = "none"
    """Weigh every token of a row by the row's curated label + 1, brought to a mean of 1 over the training rows."""
    score_against: Literal["base", "previous"] = "base"
    """Score against θ_0 (the prose of §4.3.2) or against θ_{t−1} (the listing of Algorithm 1)."""
    adapters: Literal["fresh", "one"] = "fresh"
    """Let each round of self_evolving train a fresh LoRA with an optimizer and a learning-rate schedule of its own, on
    top of the earlier rounds'; or train one LoRA on through all rounds, with one optimizer and one schedule."""
    stop_when: Literal["never", "held_out_loss_rises"] = "never"
    """Let self_evolving go through all splits, or stop at the first model that is worse than the best before it on the
    held-out rows, and hand over that best."""
    allow_weak_reference: bool = False
    also: tuple[Literal["noise_mixture", "repetition"], ...] = ()
    """On top of what rho, fixed_model, self_evolving, noise_mixture or repetition keep."""
    noise_mixture: NoiseMixtureSettings = NoiseMixtureSettings()
    repetition: RepetitionSettings = RepetitionSettings()


class ScoringSettings(Section):
    precision: Literal["exact", "safe", "fast"] = "safe"
    pack_tokens: int = Field(default=4096, ge=1)


class LoraSettings(Section):
    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    shared_dropout: bool = True
    """One dropout mask for all modules that read the same tensor (q, k and v; gate and up), else one each."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @field_validator("target_modules", mode="before")
    @classmethod
    def _check_targets(cls, value: Any) -> Any:
        names = value if isinstance(value, (list, tuple)) else ()
        if value != "all-linear" and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError(f"expected all-linear or a list of module names such as [q_proj, v_proj], found {value!r}")
        return value


class TrainingSettings(Section):
    method: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=48, ge=1)
    """Conversations an optimizer step."""
    minimum_steps: int = Field(default=0, ge=0)
    """Take smaller batches where a round would have fewer steps with a learning rate above 0 than this."""
    epochs: int = Field(default=1, ge=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=0.0, ge=0)
    """0 is no clipping."""
    shuffle: bool = True
    loss_normalisation: Literal["token", "sample"] = "token"
    """One mean over the batch's selected tokens (Eq. 1), or the mean of the samples' means (§5.1)."""
    precision: Literal["exact", "safe", "fast", "mixed"] = "safe"
    """As scoring.precision, or mixed: the frozen base in bf16, adapters, residual and head in float32."""
    quantization: Literal["none", "nf4"] = "none"
    """In training, hold the linear layers of the frozen base as precision says, or in 4-bit NF4. Scoring never does."""
    activation_checkpointing: bool = False
    """Keep each layer's input alone and compute the rest again in the backward pass: less memory, a third more work."""
    pack_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one forward and backward pass, of which a batch takes as many as it needs; None: see
    ``pack_tokens_on``."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Among several processes: each holds the whole model, or its part of every weight (FSDP2)."""
    checkpoint_minutes: float = Field(default=5, ge=0)
    """Save the state of a training this often, after a step; 0: after every step. A stopped run goes on from there."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where the Trainer reports each step to, beside the journal (JSON lines) that is always written."""
    eval_rows: int = Field(default=0, ge=0)
    """Rows set aside from the training rows, whose loss is printed after each epoch."""

    def pack_tokens_on(self, device_type: str) -> int:
        """``pack_tokens``, or by default 512 on a CPU, where larger packs gain little speed and take much memory, and
        4,096 elsewhere. Packs do not bear on a training's mathematics."""
        if self.pack_tokens is not None:
            return self.pack_tokens
        return 512 if device_type == "cpu" else 4096

    @model_validator(mode="after")
    def _check_sharding(self) -> TrainingSettings:
        if self.sharding == "fsdp2" and self.precision == "fast":
            raise ValueError("precision: fast keeps copies of whole weights, sharding: fsdp2 parts; use mixed or safe")
        return self

    @model_validator(mode="after")
    def _check_mixed(self) -> TrainingSettings:
        if self.precision == "mixed" and self.method == "full":
            raise ValueError(
                "precision: mixed holds the frozen base in bf16, but method: full freezes nothing; use safe"
            )
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> TrainingSettings:
        if self.quantization == "nf4" and self.method == "full":
            raise ValueError(
                "quantization: nf4 holds the frozen base in 4 bits, but method: full freezes nothing; use lora, "
                "or quantization: none"
            )
        if self.quantization == "nf4" and self.sharding == "fsdp2":
            raise ValueError(
                "quantization: nf4 keeps whole layers in every process, sharding: fsdp2 parts; use sharding: none, or "
                "quantization: none"
            )
        return self


class EvaluationSettings(Section):
    controls: tuple[StrategyName, ...] = ()
    """Further strategies to train for comparison; they share tokens, base losses and warm-up."""
    tasks: tuple[str, ...] = ("mmlu", "truthfulqa", "tydiqa", "hellaswag", "arc_challenge", "boolq", "logiqa")
    """Benchmarks of ``compare``: these seven of the paper, xquad, arc_easy, or any task of lm-evaluation-harness."""
    data_dir: str | None = None
    """Folder of the benchmarks' data as local files; from the Hub or its cache by default."""
    limit: int | None = Field(default=None, ge=1)
    """Ask only the first so many questions of every part of a benchmark (a subject of MMLU, a language of TyDi QA)."""
    limits: Limits = ()
    """The same by benchmark, such as ``{mmlu: 5}``."""
    samples: int = Field(default=3, ge=0)
    """Held-out prompts that every model of ``compare`` answers side by side."""
    sample_tokens: int = Field(default=64, ge=1)
    """Tokens of such an answer at most."""


class Recipe(Section):
    """A whole experiment. ``seed`` drives splits, random selection and training alike."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    seed: int = Field(default=42, ge=0, lt=2**32)
    output: str = "runs"
    """The run folder is ``<output>/<name>``."""
    pool: PoolSettings
    tokens: TokensSettings = TokensSettings()
    model: ModelSettings
    cleaning: CleaningSettings = CleaningSettings()
    scoring: ScoringSettings = ScoringSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("output")
    @classmethod
    def _expand(cls, value: str) -> str:
        return str(Path(value).expanduser())

    @model_validator(mode="after")
    def _check_curation(self) -> Recipe:
        wanted = {
            "the strategy ds2": any(find_strategy(name).needs_ratings for name in self.strategies),
            "cleaning.warmup: ds2": self.cleaning.warmup == "ds2",
            "cleaning.sample_weights: rating": self.cleaning.sample_weights == "rating",
        }
        if self.pool.curation is None and any(wanted.values()):
            names = " and ".join(name for name, is_asked in wanted.items() if is_asked)
            raise ValueError(f"pool.curation: {names} needs the pool's ratings; name their file there")
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        if self.model.reference and all(find_strategy(name).trains_references for name in self.strategies):
            raise ValueError(
                "model.reference: self_evolving trains its own references; leave it out, or use rho or fixed_model"
            )
        if self.cleaning.adapters == "one" and self.training.method == "full":
            raise ValueError(
                "cleaning.adapters: one trains one LoRA through all rounds, but training.method: full has none; use "
                "method: lora, or adapters: fresh"
            )
        return self

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategy and its controls, each once, in the order in which they are run: ours first."""
        wanted = dict.fromkeys((self.cleaning.strategy, *self.evaluation.controls))
        return tuple(dict.fromkeys((*(name for name in STRATEGIES if name in wanted), *wanted)))

    @property
    def pool_seed(self) -> int:
        """Draws the rows used and the held-out ones."""
        return self.seed if self.pool.seed is None else self.pool.seed

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output) / self.name

    def to_yaml(self) -> str:
        """The recipe with every value spelled out, save what a source leaves at its default."""
        values = self.model_dump(mode="json")
        values["pool"]["sources"] = [s.model_dump(mode="json", exclude_defaults=True) for s in self.pool.sources]
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if _UNICODE_BREAKS.isdisjoint(text):
            return text
        return yaml.safe_dump(values, sort_keys=False)  # YAML folds these where they stand bare
