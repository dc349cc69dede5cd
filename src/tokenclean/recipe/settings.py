"""The sections of a recipe, their keys, defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date as Date
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from tokenclean.recipe.base_settings import Limits, Section
from tokenclean.recipe.cleaning_settings import CleaningSettings, StrategyName
from tokenclean.recipe.error_messages import explain_all
from tokenclean.recipe.executor_settings import ExecutorSettings
from tokenclean.recipe.pool_settings import PoolSettings
from tokenclean.recipe.server_settings import ServedModel
from tokenclean.recipe.strategies import STRATEGIES, find_strategy

_UNICODE_BREAKS = {"\x85", "\u2028", "\u2029"}


Template = Literal["tulu", "tokenizer"]
Precision = Literal["exact", "safe", "fast"]

NEEDS_EXACT = (
    "a served reference is rounded as its server does, which does not cancel against rounding here, so the base has to "
    "be scored in float32"
)


class TokensSettings(Section):
    """How conversations become token ids and labels."""

    template: Template = "tulu"
    """``tulu``, the paper's chat template (§10.1), or ``tokenizer``, the tokenizer's own."""
    max_length: int = Field(default=2048, ge=2)
    """Cut conversations at this many tokens."""
    targets: Literal["response", "last_turn", "all"] = "response"
    """Train every assistant turn, the last one only, or all tokens, plain text included (§3.2)."""
    date: str = "2024-07-26"
    """Date given to a chat template that asks for today's, the same for all rows and runs."""

    @field_validator("date", mode="before")
    @classmethod
    def _check_date(cls, value: object) -> object:
        """YAML reads an unquoted date as one."""
        return Date.fromisoformat(str(value)).isoformat()


class ModelSettings(Section):
    """The models that a run starts from, and where they run."""

    base: str = Field(min_length=1)
    """Base model θ_0: Hub id, folder, GGUF file, or PEFT adapter folder."""
    reference: str | ServedModel | None = None
    """Trained reference model θ' for ``rho`` and ``fixed_model``, named like the base, or behind a server; by default
    the warm-up trains one."""
    revision: str | None = None
    """Branch, tag or commit of a base from the Hub."""
    trust_remote_code: tuple[str, ...] = ()
    """Models that may run code from their own repository (no other may)."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, …, or ``auto``: the first GPU, or the CPU where there is none."""

    @field_validator("base", mode="before")
    @classmethod
    def _check_local(cls, value: object) -> object:
        if isinstance(value, Mapping):
            raise ValueError(
                "a base is trained here, so its weights have to be here: expected a Hub id, folder, GGUF file or "
                "adapter; only model.reference may be behind a server"
            )
        return value

    @field_validator("reference", mode="before")
    @classmethod
    def _read_served(cls, value: object) -> object:
        """A union's own faults would name every form that was tried."""
        if value is None or isinstance(value, str | ServedModel):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a model's name or path, or the keys url and model of a server, found {value!r}")
        try:
            return ServedModel.model_validate(value)
        except ValidationError as error:
            raise ValueError("; ".join(explain_all(error, ServedModel, "model.reference"))) from error


class ScoringSettings(Section):
    """How losses are computed for scoring."""

    precision: Precision = "safe"
    """``exact``: float32; ``safe``: bf16 inside matrix products, on a CPU in pairs of base and reference, so that
    rounding cancels in the score; ``fast``: bf16 products, float32 elsewhere."""
    pack_tokens: int = Field(default=4096, ge=1)
    """Tokens in one forward pass."""


class LoraSettings(Section):
    """The adapter that ``method: lora`` trains."""

    rank: int = Field(default=64, ge=1)
    """Rank of the LoRA adapter."""
    alpha: float = Field(default=16, gt=0)
    """Numerator of the LoRA adapter's scale, alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on the LoRA adapter's inputs."""
    shared_dropout: bool = True
    """Use one dropout mask for all modules that read the same tensor (q, k, v; gate, up), else one for each."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules that get an adapter: ``all-linear``, or a list of names such as ``[q_proj, v_proj]``."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _check_targets(cls, value: object) -> object:
        names = value if isinstance(value, (list, tuple)) else ()
        if value != "all-linear" and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError(f"expected all-linear or a list of module names such as [q_proj, v_proj], found {value!r}")
        return value


class TrainingSettings(Section):
    """How a model is fine-tuned."""

    method: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter, or all weights."""
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate; a training of few steps needs 1e-3 to 2e-3."""
    batch_size: int = Field(default=48, ge=1)
    """Conversations per optimizer step."""
    minimum_steps: int = Field(default=0, ge=0)
    """Use smaller batches where a round would otherwise take fewer steps than this with a learning rate above 0."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the training rows."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Learning rate after the warm-up: linear or cosine decay to 0, or constant."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps during which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=0.0, ge=0)
    """Clip gradients to this norm; 0 for no clipping."""
    shuffle: bool = True
    """Shuffle the rows in every epoch; the paper does not."""
    loss_normalisation: Literal["token", "sample"] = "token"
    """``token``: mean over the batch's selected tokens (Eq. 1); ``sample``: mean of its samples' means (§5.1)."""
    precision: Literal["exact", "safe", "fast", "mixed"] = "safe"
    """``exact``: float32; ``safe``: bf16 inside matrix products; ``fast``: bf16 products, float32 elsewhere; ``mixed``:
    the frozen base held in bf16, adapters, residual and head in float32."""
    quantization: Literal["none", "nf4"] = "none"
    """``nf4``: hold the frozen base's linear layers in 4 bits while training (bitsandbytes); scoring never does."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and recompute the rest in the backward pass: less memory, a third more work."""
    pack_tokens: int | None = Field(default=None, ge=1)
    """Tokens in one forward and backward pass; by default 512 on a CPU, else 4,096."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Among several processes, each holds the whole model (``none``) or its part of every weight (``fsdp2``)."""
    checkpoint_minutes: float = Field(default=5, ge=0)
    """Save the training's state this often, so that a stopped training continues from there; 0: after every step."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers that get every step's figures, besides the journal (JSON lines) that is always written."""
    eval_rows: int = Field(default=0, ge=0)
    """Set aside this many training rows and print their loss after each epoch."""

    def pack_tokens_on(self, device_type: str) -> int:
        """``pack_tokens``, or its default on this device; it does not change what a training computes."""
        if self.pack_tokens is not None:
            return self.pack_tokens
        return 512 if device_type == "cpu" else 4096  # larger packs cost a CPU much memory for little speed

    @model_validator(mode="after")
    def _check_together(self) -> TrainingSettings:
        if self.sharding == "fsdp2" and self.precision == "fast":
            raise ValueError("precision: fast keeps copies of whole weights, sharding: fsdp2 parts; use mixed or safe")
        if self.method == "full" and self.precision == "mixed":
            raise ValueError(
                "precision: mixed holds the frozen base in bf16, but method: full freezes nothing; use safe"
            )
        if self.method == "full" and self.quantization == "nf4":
            raise ValueError(
                "quantization: nf4 holds the frozen base in 4 bits, but method: full freezes nothing; use lora, or "
                "quantization: none"
            )
        if self.sharding == "fsdp2" and self.quantization == "nf4":
            raise ValueError(
                "quantization: nf4 keeps whole layers in every process, sharding: fsdp2 parts; use sharding: none, or "
                "quantization: none"
            )
        return self


class EvaluationSettings(Section):
    """What the trained models are compared on."""

    controls: tuple[StrategyName, ...] = ()
    """Further strategies to train for comparison; they share tokens, base losses and warm-up."""
    tasks: tuple[str, ...] = ("mmlu", "truthfulqa", "tydiqa", "hellaswag", "arc_challenge", "boolq", "logiqa")
    """Benchmarks of ``compare``: the paper's seven by default; also ``xquad``, ``arc_easy``, ``e2e_slots``, ``chrf``,
    ``choice`` and any task of lm-evaluation-harness."""
    data_dir: str | None = None
    """Folder with the benchmarks' data as local files; by default they come from the Hub or its cache."""
    limit: int | None = Field(default=None, ge=1)
    """Ask only the first questions, this many, of every part of a benchmark (a subject of MMLU, a language of
    TyDi QA)."""
    limits: Limits = ()
    """The limit of single benchmarks, such as ``{mmlu: 5}``."""
    pairs: str | None = Field(default=None, min_length=1)
    """File of rows that state their noise and their ``clean`` answer, as for ``tokenclean lab``: how much each model
    prefers the clean one. It may be a file of the pool; rows that are trained on are left out."""
    samples: int = Field(default=3, ge=0)
    """Number of held-out prompts that all models of ``compare`` answer side by side."""
    sample_tokens: int = Field(default=64, ge=1)
    """Maximal length of these answers in tokens."""


class Recipe(Section):
    """A whole experiment."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """Name of the run; its folder is ``output/name``."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of splits, random selection and training."""
    output: str = "runs"
    """Folder that holds the run folder."""
    pool: PoolSettings
    tokens: TokensSettings = TokensSettings()
    model: ModelSettings
    cleaning: CleaningSettings = CleaningSettings()
    scoring: ScoringSettings = ScoringSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    executor: ExecutorSettings = ExecutorSettings()

    @field_validator("executor", mode="before")
    @classmethod
    def _read_executor(cls, value: object) -> object:
        """``executor: ray`` is short for ``executor: {kind: ray}``."""
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("output")
    @classmethod
    def _expand(cls, value: str) -> str:
        try:
            return str(Path(value).expanduser())
        except RuntimeError as error:  # the home of somebody unknown
            raise ValueError(f"{value!r}: {error}") from error

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
        if self.cleaning.trusted is not None and any(wanted.values()):
            names = " and ".join(name for name, is_asked in wanted.items() if is_asked)
            raise ValueError(f"cleaning.trusted: its rows have no ratings, which {names} needs; leave one of them out")
        return self

    @model_validator(mode="after")
    def _check_trusted(self) -> Recipe:
        asking = [name for name in self.strategies if find_strategy(name).needs_trusted]
        if asking and self.cleaning.trusted is None:
            raise ValueError(
                f"cleaning.trusted: the strategy {' and '.join(asking)} takes a gradient step on checked rows; name "
                "the file of 50 to 200 of them there"
            )
        return self

    @model_validator(mode="after")
    def _check_given(self) -> Recipe:
        if ("given" in self.strategies) != (self.cleaning.given is not None):
            raise ValueError(
                "cleaning.given: the strategy given, as strategy or control, and the file of its scores or weights go "
                "together; name both or leave both out"
            )
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        if self.model.reference and all(find_strategy(name).trains_references for name in self.strategies):
            raise ValueError(
                "model.reference: self_evolving trains its own references; leave it out, or use rho or fixed_model"
            )
        if self.model.reference and self.cleaning.trusted is not None:
            raise ValueError(
                "cleaning.trusted: its rows warm up a reference, but model.reference names one; leave one of them out"
            )
        if self.cleaning.proportion == "auto" and "auto" in self.strategies:
            raise ValueError(
                "cleaning.proportion: auto is for a strategy that ranks and does not go with the strategy auto; "
                "give a number, or leave the strategy auto out"
            )
        if isinstance(self.model.reference, ServedModel) and self.scoring.precision != "exact":
            raise ValueError(f"scoring.precision: {NEEDS_EXACT}; set scoring.precision=exact")
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
    def chooses(self) -> bool:
        """Whether the run itself chooses something by rows that are then not reported on."""
        return "auto" in (self.cleaning.proportion, *self.strategies)

    @property
    def pool_seed(self) -> int:
        """Seed that draws the rows used and the held-out ones."""
        return self.seed if self.pool.seed is None else self.pool.seed

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output) / self.name

    def result_inputs(self) -> dict[str, object]:
        """The values that results may depend on, for their stages' inputs: all but who computes."""
        return self.model_dump(mode="json", exclude={"executor"})

    def to_yaml(self) -> str:
        """The recipe with every value written out, except the defaults of a source."""
        values = self.model_dump(mode="json")
        values["pool"]["sources"] = [s.model_dump(mode="json", exclude_defaults=True) for s in self.pool.sources]
        if (trusted := self.cleaning.trusted) is not None:
            values["cleaning"]["trusted"] = trusted.model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if _UNICODE_BREAKS.isdisjoint(text):
            return text
        return yaml.safe_dump(values, sort_keys=False)  # unescaped, YAML reads these as line breaks
