"""A run that is open: its context on real models, with its run folder, device and loaded models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.passes import ModelPasses
from tokenclean.cleaning.run_data import RunData, read_run_data
from tokenclean.cleaning.run_stages import Stages
from tokenclean.cleaning.trainings import ModelTrainings
from tokenclean.ds2.curated_pool import CuratedPool, curate_pool
from tokenclean.executors import LOCAL, Executor
from tokenclean.models.device import device_for, resolve_device
from tokenclean.models.frozen_linear import bitsandbytes_functions
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.observer import Observer
from tokenclean.pool import Pool
from tokenclean.recipe import Recipe
from tokenclean.store import Store


@dataclass(frozen=True)
class OpenRun:
    """``context``: for strategies; the rest for what is computed and written around them. ``passes``: the context's,
    which give further columns too. ``device``: the torch device of this process. ``models``: those in its memory."""

    context: RunContext
    passes: ModelPasses
    stages: Stages
    observer: Observer
    device: str
    models: ModelCache

    def for_strategy(self) -> OpenRun:
        """The same run for one more strategy: ``stages.used`` then names what that strategy would compute alone."""
        stages = self.stages.for_strategy()
        passes = replace(self.passes, stages=stages, policies={}, served_policies={})
        return _assemble(self.context.data, passes, self.device)


def open_run(
    recipe: Recipe,
    observer: Observer | None = None,
    store: Store | None = None,
    executor: Executor = LOCAL,
) -> OpenRun:
    """Read the recipe's pool and open its run folder; no model is loaded.

    ``store``: the recipe's run folder, where the caller holds its lock already. ``executor``: where passes are
    computed, vectors for ratings and near-duplicates. Raises as ``read_run_data``.
    """
    observer = observer or Observer()
    store = store or Store(recipe.folder, note=observer.note)
    processes = executor.processes

    def rate(pool: Pool) -> CuratedPool:
        if not processes.is_first:  # the first process computes the ratings, the others then find them
            processes.barrier()
        curated = curate_pool(pool, recipe, store, observer, executor)
        if processes.is_first:
            processes.barrier()
        return curated

    listing = store.root / "rejected.jsonl"
    data = read_run_data(recipe, rate, listing=listing, note=observer.note, executor=executor)
    if recipe.tokens.template != "tokenizer" and getattr(data.tokenizer, "chat_template", None):
        observer.note(
            f"chat template: {recipe.tokens.template}; the model has one of its own (--set tokens.template=tokenizer)"
        )
    return open_run_on(data, store, observer, executor)


def open_run_on(data: RunData, store: Store, observer: Observer | None = None, executor: Executor = LOCAL) -> OpenRun:
    """A run on rows that are there already."""
    recipe = data.recipe
    if recipe.training.quantization == "nf4":
        bitsandbytes_functions()  # if it is missing, say so before hours of scoring
    processes = executor.processes
    device = resolve_device(recipe.model.device, local_rank=processes.local_rank if processes.count > 1 else None)
    passes = ModelPasses(
        recipe.scoring,
        Stages(store, processes),
        observer or Observer(),
        device_for(executor, recipe.model.device),
        ModelCache(device),
        data.tokenizer,
        executor,
    )
    return _assemble(data, passes, device)


def _assemble(data: RunData, passes: ModelPasses, device: str) -> OpenRun:
    stages, observer, models = passes.stages, passes.observer, passes.models
    trainings = ModelTrainings(data.recipe, data.base_source, stages, observer, device, models)
    context = RunContext(data, passes, trainings, observer.note)
    return OpenRun(context, passes, stages, observer, device, models)
