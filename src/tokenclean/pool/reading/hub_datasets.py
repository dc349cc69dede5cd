"""Rows of a dataset on the Hugging Face Hub, through the optional package ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tokenclean.errors import MissingExtraError, PoolError
from tokenclean.hub_reachable import why_unreachable
from tokenclean.pool.reading.record import Record
from tokenclean.pool.reading.tables import BATCH_ROWS, read_batch
from tokenclean.pool.reading.text_files import choose_split
from tokenclean.recipe import SourceSettings
from tokenclean.redaction import redact

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REASON_CHARACTERS = 400


def read_hub(source: SourceSettings) -> Iterator[Record]:
    """The rows of one split of the dataset ``source.hub`` (``owner/name``) as stored: no feature is decoded.

    ``split`` is needed where the dataset has more than one. ``streaming`` reads the rows over the network instead of
    storing the dataset first.

    Where the Hub cannot be reached, only the local cache is searched. Raises PoolError where the dataset cannot
    be reached, found or read; MissingExtraError without ``datasets``.
    """
    name, config, split, revision = source.hub or "", source.config, source.split, source.revision
    # The package would take any other name for a file format or a folder and read what is in the working folder.
    if not _NAME.fullmatch(name):
        raise PoolError(f"{name!r} is no name of a dataset on the Hub; expected owner/name, as tatsu-lab/alpaca")
    if Path(name).exists():
        raise PoolError(f"{name}: is also a local path, which would be read instead; rename it, or read it by path")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", f"reading {name} from the Hub") from error
    place = f"{name} on the Hub"
    count = 0
    # Behind these calls are the network, a cache and a dozen file formats, and they document no common error.
    unreachable = why_unreachable()
    try:
        with _offline() if unreachable else nullcontext():
            if split is None:
                splits = datasets.get_dataset_split_names(name, config_name=config, revision=revision)
                split = choose_split(place, splits, None)
            dataset: Any = datasets.load_dataset(
                name, name=config, split=split, revision=revision, streaming=source.streaming
            )
        # A streamed dataset would fetch and open the file behind every image and sound, even for Arrow tables.
        if source.streaming and dataset.features:
            dataset = dataset.decode(False)
        for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
            for batch in table.to_batches():
                yield from read_batch(batch, count + 1)
                count += batch.num_rows
    except PoolError:
        raise
    except Exception as error:
        raise PoolError(_describe_failure(place, count, error, unreachable)) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the libraries, which read the environment only when they are imported, from asking the Hub."""
    from datasets import config
    from huggingface_hub import constants

    settings: tuple[Any, ...] = (config, constants)
    before = [module.HF_HUB_OFFLINE for module in settings]
    for module in settings:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _describe_failure(place: str, rows: int, error: Exception, unreachable: str | None) -> str:
    said = f"{unreachable}; {error}" if unreachable and not rows else str(error) or type(error).__name__
    reason = " ".join(redact(said).split())[:_REASON_CHARACTERS]
    after = f" after row {rows}" if rows else ""
    return (
        f"{place}: cannot be read{after}: {reason}. Check its name, config, split and revision, your right to read it "
        "(hf auth login) and the network; a file you fetched yourself can be read by its path"
    )
