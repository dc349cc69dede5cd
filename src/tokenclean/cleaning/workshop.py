"""The workshop: what all strategies of one experiment share — tokens, splits, losses, the warm-up — each made once."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenclean.cleaning.noise_estimates import PoolNoise
from tokenclean.cleaning.rows import (
    check_best_rated,
    check_rendered,
    open_mixture,
    sample_texts,
    split_heldout,
    split_rows,
    take_rows,
    tokens_options,
)
from tokenclean.cleaning.schedule import check_base, schedule_parts
from tokenclean.ds2 import curated_pool as curation
from tokenclean.ds2 import select_best
from tokenclean.errors import PoolError, RecipeError, RunFolderError
from tokenclean.models.device import give_back_memory, resolve_device
from tokenclean.models.loading.load import (
    ModelSource,
    check_two_models,
    load_tokenizer,
    resolve_source,
    source_fingerprint,
)
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.models.loading.tokenizer_identity import check_same_tokenizer
from tokenclean.models.nf4_linear import bitsandbytes_functions
from tokenclean.pool import Intake, Mixture, Pool, RejectedRow
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.scoring import PairedDifference, paired_difference
from tokenclean.scoring.policy_check import check_same_policy
from tokenclean.scoring.shards import LOSSES_VERSION, sharded_losses
from tokenclean.scoring.token_shards import TOKENS_VERSION
from tokenclean.store import Stage, Store, fingerprint, write_json
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.training.fine_tune import TRAINING_VERSION, train, training_inputs
from tokenclean.training.online_mixture import OnlineMixture
from tokenclean.training.step_plan import SchedulePart

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Raise a number when the stage's code comes to mean something else; old results are then stale and made anew.
STAGE_VERSIONS = {"tokens": TOKENS_VERSION, "losses": LOSSES_VERSION, "training": TRAINING_VERSION, "results": 2}
STAGE_VERSIONS |= curation.VERSIONS
STAGE_VERSIONS |= {"evaluation": 1, "samples": 1, "comparison": 3, "sweep": 2}

CHECKPOINTS = "checkpoints"
"""Folder of the run folder with the states of trainings that are not done."""

NOISE_RATES = "noise_rates.json"
"""File of a training with a noise mixture: the noise rate last found of each of its rows, null for an unused one."""

_ASKED_ONCE = (
    "base",
    "best_rated",
    "_ratings",
    "splits",
    "parts",
    "warmup",
    "initial_reference",
    "given_reference",
    "noise",
)
_ERROR_SAMPLE_TOKENS = 1024
_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Observer:
    """How a run tells what it does. ``note(text)``; ``progress(label, unit)`` gives a function (done, total)."""

    note: Callable[[str], None] = logger.info
    progress: Callable[[str, str], Callable[[int, int], None]] = lambda label, unit: lambda done, total: None


@dataclass(frozen=True)
class Model:
    """A model of the experiment.

    ``name``: in tables. ``source``: where it lies. ``key``: hash of what made it. ``weights``: hash of what came out,
    since training on a GPU need not give the same weights twice. ``training``: what its training did.
    """

    name: str
    source: ModelSource
    key: str
    weights: str = ""
    training: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Where what was trained lies: the adapter, or the whole model."""
        return Path(self.source.adapter or self.source.base)

    @property
    def identity(self) -> list[str]:
        """For the inputs of the stages that use it."""
        return [self.key, self.weights]


class Workshop:
    """Stages of one experiment over one pool (see the module's text).

    ``tokens``: the training rows; ``heldout``: rows on which models are compared and nothing is trained. ``processes``:
    those that go through the same strategies side by side, sharing passes and trainings; the first writes.
    ``curated``: the whole pool's ratings, corrected, where the recipe has ratings. ``mixture``: what the rows were
    taken from, by default they are the whole pool.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        pool: Pool,
        heldout_pool: Pool,
        tokenizer: Any = None,
        observer: Observer | None = None,
        processes: Processes = SINGLE_PROCESS,
        curated: curation.CuratedPool | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self.processes, self.curated = processes, curated
        self.recipe, self.store, self.pool, self.heldout_pool = recipe, store, pool, heldout_pool
        self.observer = observer or Observer()
        self.base_source = resolve_source(
            recipe.model.base, revision=recipe.model.revision, trusted=recipe.model.trust_remote_code
        )
        check_base(recipe, self.base_source)
        if recipe.training.quantization == "nf4":
            bitsandbytes_functions()  # missing, it is told before hours of scoring
        self.tokenizer = tokenizer or load_tokenizer(self.base_source)
        self.device = resolve_device(
            recipe.model.device, local_rank=processes.local_rank if processes.count > 1 else None
        )
        self.tokens = tokenize_pool(pool, self.tokenizer, **tokens_options(recipe))
        self.heldout = tokenize_pool(heldout_pool, self.tokenizer, **tokens_options(recipe))
        unusable = (*self.tokens.unusable, *self.heldout.unusable)
        self.rejected: tuple[RejectedRow, ...] = (*pool.rejected, *unusable)
        """All rows set aside: those that could not be read, then those without a target."""
        mixture = mixture or Mixture(pool, (), Intake.of((*pool, *heldout_pool, *pool.rejected)))
        listing = store.root / "rejected.jsonl"
        self.intake = check_rendered(
            mixture, recipe, self.tokens.rendered_rows, self.heldout.rendered_rows, listing=listing
        )
        """What became of all rows that were read."""
        for name, tokens in (("training", self.tokens), ("held-out", self.heldout)):
            if not tokens.is_response.values.any():
                reasons = "; ".join(str(row) for row in tokens.unusable[:3])
                raise PoolError(f"no {name} row has a response token to train on. {reasons}")
        self._models = ModelCache(self.device)
        self._policies: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self.made: list[str] = []
        self._found: set[str] = set()
        self.used: set[str] = set()
        """Names of the stages asked for."""

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        observer: Observer | None = None,
        store: Store | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> Workshop:
        """Load the recipe's pool, filtered and drawn as it says, and set the held-out rows aside.

        ``store``: the recipe's run folder, where the caller holds its lock already. Raises PoolError where more than
        ``pool.max_rejected_share`` of the rows cannot be used; no model is loaded.
        """
        observer = observer or Observer()
        store = store or Store(recipe.folder, note=observer.note)
        mixture = open_mixture(recipe, listing=store.root / "rejected.jsonl", note=observer.note)
        pool, curated = mixture.pool, None
        if (settings := recipe.pool.curation) is not None:
            curated = cls._curated(pool, recipe, store, observer, processes)
            if settings.rows is not None and settings.rows < len(pool):
                pool = pool.take(np.sort(curated.selection(settings.rows)))
        training, heldout = split_heldout(take_rows(pool, recipe), recipe)
        return cls(
            recipe, store, training, heldout, observer=observer, processes=processes, curated=curated, mixture=mixture
        )

    @staticmethod
    def _curated(
        pool: Pool, recipe: Recipe, store: Store, observer: Observer, processes: Processes
    ) -> curation.CuratedPool:
        """The pool's curated ratings; where processes share the run, the others wait until the first has made them."""
        if not processes.is_first:
            processes.barrier()
        curated = curation.curate_pool(pool, recipe, store, note=observer.note, progress=observer.progress)
        if processes.is_first:
            processes.barrier()
        return curated

    def afresh(self) -> Workshop:
        """The same tokens, models and stages for one more strategy, which asks for each anew: its ``used`` tells what
        it would have made alone."""
        other = copy.copy(self)
        for name in _ASKED_ONCE:
            vars(other).pop(name, None)
        other.used = set()
        return other

    def model(self, source: ModelSource) -> AbstractContextManager[torch.nn.Module]:
        """A block with the model loaded, as ``ModelCache.using``."""
        return self._models.using(source)

    def unload(self) -> None:
        """Free the memory of the models loaded, which another workshop may need."""
        self._models.clear()

    @cached_property
    def base(self) -> Model:
        """θ_0."""
        return Model("base", self.base_source, source_fingerprint(self.base_source))

    @cached_property
    def splits(self) -> list[np.ndarray]:
        """Rows of D̃_0 … D̃_T (§4.3.2)."""
        first = self.best_rated if self.recipe.cleaning.warmup == "ds2" else None
        return split_rows(self.tokens.sources, self.recipe, first)

    @cached_property
    def best_rated(self) -> np.ndarray:
        """The ``cleaning.ds2_rows`` best-rated training rows by DS², ascending. Raises RecipeError without ratings, or
        where that would be all rows."""
        count = self.recipe.cleaning.ds2_rows
        check_best_rated(count, len(self.tokens))
        return np.sort(select_best(*self._ratings, count))

    @cached_property
    def _ratings(self) -> tuple[np.ndarray, np.ndarray]:
        """Curated label, int64, and long-tail score of each training row; RecipeError without ratings."""
        if self.curated is None:
            raise RecipeError("pool.curation: DS² needs the pool's ratings; name their file and column there")
        rated = self.curated.by_id
        labels, long_tail = zip(*(rated[row] for row in self.tokens.ids), strict=True)
        return np.array(labels, dtype=np.int64), np.array(long_tail)

    def weighted(self, weights: Ragged) -> Ragged:
        """Token weights over the training rows times the loss weights that the data state, and times the weights of
        the samples, where ``cleaning.sample_weights`` asks for these: curated label + 1, at a mean of 1."""
        if self.tokens.weight is not None:
            weights = weights.with_values(weights.values * self.tokens.weight.values)
        if self.recipe.cleaning.sample_weights == "none":
            return weights
        of_row = self._ratings[0] + 1.0
        factors = np.repeat(of_row / of_row.mean(), weights.lengths)
        return weights.map_values(lambda values: (values * factors).astype(np.float32))

    @cached_property
    def parts(self) -> list[SchedulePart | None]:
        """What the training on each split takes of the one schedule over all rounds (``cleaning.adapters: one``); None
        where it has a schedule of its own."""
        return schedule_parts(self.recipe, self.tokens, self.splits)

    @cached_property
    def warmup(self) -> Model:
        """θ_1: the base fine-tuned on D̃_0 with full tokens."""
        return self._warm_up("warm-up")

    @cached_property
    def initial_reference(self) -> Model:
        """θ_1 from which self-evolving and its control go on: the warm-up, or with ``cleaning.adapters: one`` a warm-up
        of its own, which takes the first part of the one schedule."""
        return self.warmup if self.parts[0] is None else self._warm_up("reference-0", self.parts[0])

    def _warm_up(self, name: str, part: SchedulePart | None = None) -> Model:
        full = self.tokens.is_response.map_values(lambda labels: labels.astype(np.float32))
        return self.train(name, self.base, full, self.splits[0], part=part)

    @cached_property
    def given_reference(self) -> Model | None:
        """``model.reference``, checked to share the base's tokenizer; None where the recipe names none."""
        name = self.recipe.model.reference
        if name is None:
            return None
        source = resolve_source(name, trusted=self.recipe.model.trust_remote_code)
        texts = sample_texts(self.pool, self.tokenizer, self.recipe.tokens.template)
        for note in check_same_tokenizer(self.tokenizer, load_tokenizer(source), texts):
            self.observer.note(f"reference {source}: {note} (allowed: text is rendered with the base's)")
        model = Model("reference", source, source_fingerprint(source))
        check_two_models(self.base.key, model.key)
        return model

    @cached_property
    def noise(self) -> PoolNoise:
        """Of the training rows. The mixture's offline losses are those of ``model.reference``, else of the base."""
        return PoolNoise(
            self.recipe,
            self.tokens,
            self.tokenizer,
            self.observer.note,
            lambda: self.losses(self.given_reference or self.base),
        )

    def train(
        self,
        name: str,
        start: Model,
        weights: Ragged,
        rows: np.ndarray | None = None,
        mixture: OnlineMixture | None = None,
        part: SchedulePart | None = None,
        tokens: TokenizedPool | None = None,
    ) -> Model:
        """Fine-tune ``start`` on ``rows`` (all by default) with token weights (float, over all training rows), times
        those of the samples.

        ``tokens``: other rows than the training rows, over which rows and weights go then, as they are.

        With a ``mixture`` tokens are weighed by the training's own losses too, and the stage has ``NOISE_RATES``.
        ``part``: see ``trainer.train``; the moments that the next part needs are among the stage's tensors.
        """
        settings, seed = self.recipe.training, self.recipe.seed
        weights = self.weighted(weights) if tokens is None else weights
        tokens = self.tokens if tokens is None else tokens
        rows = np.arange(len(tokens)) if rows is None else rows
        ids, weight = tokens.input_ids.take(rows), weights.take(rows)
        inputs = training_inputs(
            start.identity, ids, weight, settings, seed=seed, device=self._device_kind, mixture=mixture, part=part
        )
        checkpoints = self.store.root / CHECKPOINTS / fingerprint([STAGE_VERSIONS["training"], inputs])[:12]

        def make(folder: Path) -> dict[str, Any]:
            self.observer.note(
                f"training {name} on {int(np.count_nonzero(weight.values)):,} tokens of {len(rows):,} rows"
            )
            self._models.clear()  # their memory is the training's
            progress = self.observer.progress(f"train {name}", "step")
            trained = train(
                start.source,
                ids,
                weight,
                settings,
                folder,
                seed=seed,
                device=self.device,
                progress=progress,
                mixture=mixture,
                checkpoints=checkpoints,
                row_names=[tokens.ids[row] for row in rows],
                processes=self.processes,
                name=name,
                part=part,
            )
            give_back_memory()
            if mixture is not None and self.processes.is_first:
                write_json(folder / NOISE_RATES, [trained.row_rates.get(row) for row in range(len(rows))])
            return {"what": name, **trained.as_manifest()}

        stage = self._stage_of_all("training", inputs, make)
        if self.processes.is_first:
            shutil.rmtree(checkpoints, ignore_errors=True)
        source = (
            replace(self.base_source, adapter=str(stage.path))
            if settings.method == "lora"
            else ModelSource(str(stage.path), trusted=self.base_source.trusted)
        )
        tensors = {file: told for file, told in stage.manifest["files"].items() if file.endswith(".safetensors")}
        return Model(name, source, stage.key, fingerprint(tensors), stage.manifest["results"])

    def losses(self, model: Model) -> Ragged:
        """Losses of all training rows, scored split by split so that every model sees the same packs."""
        parts = [self.split_losses(model, rows, f"D{number}") for number, rows in enumerate(self.splits)]
        whole = np.full(len(self.tokens.input_ids.values), np.nan, dtype=np.float32)
        for rows, part in zip(self.splits, parts, strict=True):
            whole[self.places(rows)] = part.values
        return self.tokens.input_ids.with_values(whole)

    def split_losses(self, model: Model, rows: np.ndarray, name: str) -> Ragged:
        """Losses of the given training rows, the split ``name``."""
        return self._losses(model, self.tokens.take(rows), name)

    def heldout_losses(self, model: Model) -> Ragged:
        """Losses of the held-out rows."""
        return self._losses(model, self.heldout, "held-out")

    def against(self, model: Model, baseline: Model) -> PairedDifference:
        """Held-out loss of one model against another."""
        return paired_difference(self.heldout_losses(model), self.heldout_losses(baseline))

    def score_error(self, reference: Model, rows: np.ndarray) -> float:
        """Mean |score error| in nats of the scoring policy, against float32 one conversation a pass, on a sample; at
        least what float32 itself rounds away from a loss.

        The sample is the first of ``rows`` that hold about 1,000 tokens.
        """
        lengths = self.tokens.input_ids.lengths[rows]
        count = max(1, int(np.searchsorted(np.cumsum(lengths), _ERROR_SAMPLE_TOKENS)))
        sample = self.tokens.take(rows[:count])
        losses = [
            [self._losses(model, sample, "sample", **policy) for model in (self.base, reference)]
            for policy in ({}, {"precision": "exact", "pack_tokens": 1})
        ]
        ours, plain = (base - of_reference for base, of_reference in losses)
        rounding = float(np.finfo(np.float32).eps * np.nanmean(losses[0][0].values))
        return max(float(np.nanmean(np.abs((ours - plain).values))), rounding)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Indices into the flat columns of the training pool of all tokens of ``rows``."""
        offsets = self.tokens.input_ids.offsets
        return np.concatenate([np.arange(int(offsets[r]), int(offsets[r + 1])) for r in rows])

    def _losses(self, model: Model, tokens: TokenizedPool, what: str, **policy: Any) -> Ragged:
        options = {**self.recipe.scoring.model_dump(mode="json"), **policy}
        return sharded_losses(
            self._losses_stage,
            lambda: self._models.using(model.source),
            tokens,
            {"model": model.identity, "device": self._device_kind},
            what=f"{what} under {model.name}",
            progress=self.observer.progress(f"score {what} with {model.name}", "token"),
            processes=self.processes,
            **options,
        )

    def _losses_stage(self, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Stage:
        """The stage of a shard, whose losses were computed as those of any other model on the same tokens.

        Raises PolicyMismatchError where they were not (say, a run that moved to another machine midway).
        """
        stage = self.stage("losses", inputs, make)
        key = (inputs["tokens"], inputs["precision"], inputs["pack_tokens"])
        policy = stage.manifest["results"]["policy"]
        check_same_policy(self._policies.setdefault(key, policy), policy)
        return stage

    @property
    def reused(self) -> list[str]:
        """Names of the stages that an earlier run made, sorted."""
        return sorted(self._found)

    @property
    def _device_kind(self) -> str:
        """``cpu``, ``cuda``, …: losses of two kinds are never subtracted from each other."""
        return self.device.partition(":")[0]

    def _stage_of_all(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Stage:
        """The stage ``name``, found, or made by all processes together; the folder of the first is kept."""
        if self.processes.count == 1:
            return self.stage(name, inputs, make)
        if not self.processes.is_first:
            if self.processes.gather(None)[0]:
                with tempfile.TemporaryDirectory() as scratch:
                    make(Path(scratch))
            self.processes.barrier()
            return self._stage_of_first(name, inputs)

        def make_with_all(folder: Path) -> Mapping[str, Any]:
            self.processes.gather(True)
            return make(folder)

        stage = self.stage(name, inputs, make_with_all)
        if stage.was_reused:
            self.processes.gather(False)
        self.processes.barrier()
        return stage

    def _stage_of_first(self, name: str, inputs: Mapping[str, Any]) -> Stage:
        """A stage that the first rank has finished, once this machine sees it too (a shared disk may take its time)."""

        def missing(folder: Path) -> Mapping[str, Any]:
            raise RunFolderError(
                f"{self.store.root}: rank {self.processes.rank} does not see the stage {name} that rank 0 has made; "
                "all processes need the same run folder, on a disk that they share"
            )

        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self.stage(name, inputs, missing)
            except RunFolderError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        within: str = "stages",
    ) -> Stage:
        """The stage ``name`` in its present version, found or made, and counted."""
        stage = self.store.stage(name, STAGE_VERSIONS[name], inputs, make, within=within)
        self.used.add(stage.path.name)
        if not stage.was_reused:
            self.made.append(stage.path.name)
        elif stage.path.name not in self.made:
            self._found.add(stage.path.name)
        return stage
