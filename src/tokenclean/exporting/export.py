"""One export: from the canonical file to a complete folder for one trainer, and on to the Hub."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tokenclean.errors import InputError, RecipeError, RunError, RunFolderError, TableError
from tokenclean.exporting.cleaned_file import CleanedDataset, read_cleaned
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers import WRITERS, TokenWriter, Written
from tokenclean.exporting.trainers.writer import describe_changes
from tokenclean.exporting.weight_range import WHY, limit_dataset, limit_weights
from tokenclean.exporting.weighted_texts import WeightedTexts
from tokenclean.store import atomic_folder

_CARD = "README.md"
_ROW_IDS = "row_ids.csv"
_LEFT_OUT = "left_out.csv"


@dataclass(frozen=True)
class ExportResult:
    """``files``: names inside ``folder``, sorted. ``snippet``: the shell command that uses the export.
    ``keeps_everything``: its labels are those of the data before cleaning. ``changes``: what the form cannot hold, a
    sentence each. ``left_out``: how many rows of the cleaned data set are not in it, with their ids in a file."""

    folder: Path
    rows: int
    files: tuple[str, ...]
    snippet: str
    keeps_everything: bool
    changes: tuple[str, ...] = ()
    left_out: int = 0


def export(
    cleaned_path: Path | str,
    to: str,
    folder: Path | str,
    card: Card,
    texts: Callable[[CleanedDataset], WeightedTexts] | None = None,
) -> ExportResult:
    """Write a canonical file in the form ``to`` (a key of WRITERS) into a new or empty folder.

    ``README.md`` is its card, which also says what the form cannot hold. ``row_ids.csv`` lists the ids of the rows of
    tokens, ``left_out.csv`` those that the form leaves out, where there are any. ``texts``: gives the texts of a data
    set's rows, for forms that hold texts. The folder gets its name only when complete.

    Raises RecipeError for an unknown form, TableError for a file of another kind, for one whose texts are not to be
    had, and where no row is left; RunFolderError for a folder that is not empty or cannot be written,
    MissingExtraError where the writer needs ``datasets``.
    """
    if to not in WRITERS:
        raise RecipeError(f"unknown trainer {to!r}; known: {', '.join(WRITERS)}", source="export")
    cleaned, folder, writer = read_cleaned(cleaned_path), Path(folder), WRITERS[to]
    with atomic_folder(folder) as temporary:
        if isinstance(writer, TokenWriter):
            written = _write_tokens(writer, cleaned, temporary, card)
        elif texts is None:
            raise TableError(f"{cleaned.path}: holds tokens without their texts, which --to {to} writes; export a run")
        else:
            written = writer.write(texts(cleaned), temporary, card)
        if written.left_out:
            _write_left_out(written, temporary / _LEFT_OUT)
        data = next((str(file.relative_to(temporary)) for file in temporary.rglob("*.parquet")), None)
        (temporary / _CARD).write_text(replace(card, changes=written.changes).to_markdown(data), encoding="utf-8")
        files = sorted(str(file.relative_to(temporary)) for file in temporary.rglob("*") if file.is_file())
    snippet = f"cd {shlex.quote(str(folder))} && {written.command}"
    keeps_everything, left_out = cleaned.keeps_everything, len(written.left_out)
    return ExportResult(folder, written.rows, tuple(files), snippet, keeps_everything, written.changes, left_out)


def _write_tokens(writer: TokenWriter, cleaned: CleanedDataset, folder: Path, card: Card) -> Written:
    limited = limit_dataset(cleaned, writer.takes)
    command = writer.write(limited, folder, card)
    if writer.lists_ids:
        limited.write_row_ids(folder / _ROW_IDS)
    weights = cleaned.column("token_weight").values
    why = WHY[writer.takes]
    changes = describe_changes(weights, limit_weights(weights, writer.takes), why)
    left_out = tuple((id, why) for id in limited.dropped_ids[len(cleaned.dropped_ids) :])
    return Written(command, len(limited.rows), changes, left_out)


def _write_left_out(written: Written, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("id", "reason"))
        lines.writerows(written.left_out)


def push_folder(folder: Path | str, repo_id: str, *, private: bool) -> str:
    """Upload the folder as the data-set repository ``repo_id``, created if needed, and return its URL.

    The token comes from the environment (HF_TOKEN) or the user's login, nowhere else. Raises RunFolderError for a
    missing folder, InputError for an invalid name, RunError where the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, whichever this Hub client uses
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if not Path(folder).is_dir():
        raise RunFolderError(f"{folder}: no such folder; `tokenclean export --to hf` writes one")
    login = "set HF_TOKEN to a token with write access, or run `hf auth login`"
    api = HfApi()
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, repo_type="dataset", commit_message="Cleaned token labels"
        )
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is not the name of a Hub repository, such as user/name ({error})") from error
    except LocalTokenNotFoundError as error:
        raise RunError(f"cannot upload to {repo_id}: no token; {login}") from error
    except OfflineModeIsEnabled as error:
        raise RunError(f"cannot upload to {repo_id}: HF_HUB_OFFLINE is set; unset it to upload") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = login if status in (401, 403, 404) else "try again"
        raise RunError(f"cannot upload to {repo_id}: the Hub answered {status}; {remedy}") from error
    except HTTPError as error:
        raise RunError(f"cannot upload to {repo_id}: the Hub cannot be reached ({error}); try again") from error
    return str(url)
