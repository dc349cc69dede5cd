"""TRL's SFTTrainer on weighted tokens: a ``token_weight`` column stays with its tokens through cutting, packing and
padding, and the loss is Σ w·ℓ / Σ |w| over the whole accumulated batch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from tokenclean.errors import RecipeError, TableError, needs_extra
from tokenclean.integrations.weighted_rows import SMALLEST, UNTRAINED, WEIGHT, check_options, total_weight, weighted_row

with needs_extra("trl>=1.16", "trl", "WeightedSFTTrainer"):
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer
    from trl.trainer.utils import add_fused_lm_head, pad  # noqa: F401  (its log-probabilities are what is weighted)

logger = logging.getLogger(__name__)


@dataclass
class WeightedDataCollator(DataCollatorForLanguageModeling):
    """TRL's collator with ``token_weight`` (float32, of the shape of ``labels``) in the batch.

    The weight is 0 in padding, and for a token with nothing before it in its sequence, which has no loss: the first one
    of a row, or of the rest of a row that packing split.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        rows = [torch.tensor(example[WEIGHT], dtype=torch.float32) for example in examples]
        if self.padding_free:
            rows = [torch.cat(rows)]
        weights = pad(rows, padding_value=0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
        weights[batch["labels"] == UNTRAINED] = 0
        weights[:, 0] = 0
        return batch | {WEIGHT: weights}


class WeightedSFTTrainer(SFTTrainer):
    """An ``SFTTrainer`` that minimises Σ w·ℓ / Σ |w|, with ℓ the tokens' losses in nats.

    Takes ``SFTTrainer``'s arguments. Its data sets have ``input_ids`` and ``token_weight``, one float a token, as
    ``cleaned.parquet`` has; where there are ``labels``, a weight above 0 counts only with a label. Weights are cut
    and packed with their tokens under every ``max_length`` and ``packing_strategy``. The sums go over all batches
    that ``gradient_accumulation_steps`` adds up, and over all processes. An evaluation loss is the mean of its batches'
    losses, as in every Trainer. TRL's other metrics count each token with a weight once.

    Raises TableError naming the row without usable weights, and RecipeError for what has no weighted form:
    ``loss_type`` other than ``nll``, ``label_smoothing_factor``, ``compute_loss_func``, ``data_collator``,
    ``skip_prepare_dataset``, images, context parallelism.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config: Any = self.args
        faults = {
            f"loss_type must be nll, found {config.loss_type!r}": config.loss_type != "nll",
            "skip_prepare_dataset must be off: preparation is what keeps weights and tokens together": (
                (config.dataset_kwargs or {}).get("skip_prepare_dataset", False)
            ),
            "data_collator must be TRL's own, for rows of text without images": (
                type(self.data_collator) is not DataCollatorForLanguageModeling
            ),
        }
        check_options(self, *(problem for problem, is_so in faults.items() if is_so))
        self.data_collator = WeightedDataCollator(**vars(self.data_collator))

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """As TRL's for rows that are tokenized, with all three columns cut and packed together."""
        options: dict[str, Any] = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        names = dataset.column_names or list(next(iter(dataset)))
        if missing := {"input_ids", WEIGHT} - set(names):
            raise TableError(
                f"the {dataset_name} dataset has no column {', '.join(sorted(missing))}; it has {', '.join(names)}. "
                "WeightedSFTTrainer takes rows with ids and weights, as `tokenclean run` writes them to cleaned.parquet"
            )
        if packing and args.max_length is None:
            raise RecipeError("packing needs a max_length, the length of a pack", type(self).__name__)
        prepared: Any = dataset.map(
            lambda row, number: weighted_row(row, f"{dataset_name} dataset, row {number}"),
            with_indices=True,
            remove_columns=names,
            **options,
        )
        limit = args.max_length
        if limit is not None and isinstance(prepared, Dataset) and not (packing and args.packing_strategy != "bfd"):
            _warn_of_cuts(prepared, limit, dataset_name)
        if limit is not None and not packing:
            part = slice(None, limit) if args.truncation_mode == "keep_start" else slice(-limit, None)
            prepared = prepared.map(lambda row: {name: values[part] for name, values in row.items()}, **options)
            # As TRL does: a row whose targets were all cut off.
            prepared = prepared.filter(lambda row: any(row[WEIGHT]), **options)
        if packing and args.shuffle_dataset:
            prepared = prepared.shuffle(seed=args.seed)
        if packing and limit is not None:
            prepared = pack_dataset(prepared, limit, args.packing_strategy, options)
        return prepared.shuffle(seed=args.seed) if args.shuffle_dataset else prepared

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "seq_lengths", WEIGHT]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        return total_weight(self, batch_samples, device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's loss; ``num_items_in_batch``: Σ |w| of the step, else this batch's.

        TRL sums the log-probabilities of the tokens with a label and divides by ``num_items_in_batch``, at least 1, or
        by their number. So it is given log-probabilities times w / Σ |w|, and 1 to divide by, or times their number.
        """
        weights = inputs.pop(WEIGHT)[:, 1:]
        if num_items_in_batch is None:
            total, divisor = weights.abs().sum(), (inputs["labels"][:, 1:] != UNTRAINED).sum().clamp(min=1)
        else:
            total, divisor = torch.as_tensor(num_items_in_batch), 1
        factors = weights * (divisor / total.clamp(min=SMALLEST))

        def weighed(**options: Any) -> Any:
            outputs = model(**options)
            if options.get("fused_lm_head"):
                outputs.log_probs = outputs.log_probs * factors
            return outputs

        callable_model: Any = weighed
        items = None if num_items_in_batch is None else 1
        return super().compute_loss(callable_model, inputs, return_outputs, items)


def _warn_of_cuts(dataset: Dataset, limit: int, name: str) -> None:
    """Log how many rows are longer than ``limit`` tokens."""
    rows = len(dataset.filter(lambda row: len(row["input_ids"]) > limit))
    if rows:
        logger.warning(
            "%d of the %d rows of the %s dataset are longer than max_length=%d and are cut; those left without a "
            "weight are dropped",
            *(rows, len(dataset), name, limit),
        )
