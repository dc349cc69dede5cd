"""One export: from the canonical file to a complete folder for one trainer, and on to the Hub."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tokenclean.errors import InputError, RecipeError, RunError, RunFolderError
from tokenclean.exporting.cleaned_file import read_cleaned
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers import WRITERS
from tokenclean.store import atomic_folder

_CARD = "README.md"
_ROW_IDS = "row_ids.csv"


@dataclass(frozen=True)
class ExportResult:
    """``files``: names inside ``folder``, sorted. ``snippet``: the shell command that uses the export.
    ``keeps_everything``: its labels are those of the data before cleaning."""

    folder: Path
    rows: int
    files: tuple[str, ...]
    snippet: str
    keeps_everything: bool


def export(cleaned_path: Path | str, to: str, folder: Path | str, card: Card) -> ExportResult:
    """Write a canonical file in the form of the trainer ``to`` (a key of WRITERS) into a new or empty folder.

    ``README.md`` is its card, ``row_ids.csv`` lists the ids of its rows. The folder gets its name only when complete.
    Raises RecipeError for an unknown trainer, TableError for a file of another kind or with weights that the trainer
    cannot take, RunFolderError for a folder that is not empty or cannot be written, MissingExtraError where the writer
    needs ``datasets``.
    """
    if to not in WRITERS:
        raise RecipeError(f"unknown trainer {to!r}; known: {', '.join(WRITERS)}", source="export")
    cleaned, folder = read_cleaned(cleaned_path), Path(folder)
    with atomic_folder(folder) as temporary:
        command = WRITERS[to](cleaned, temporary, card)
        if to != "hf":  # there every row has its ids as columns
            cleaned.write_row_ids(temporary / _ROW_IDS)
        data = next((str(file.relative_to(temporary)) for file in temporary.rglob("*.parquet")), None)
        (temporary / _CARD).write_text(card.to_markdown(data), encoding="utf-8")
        files = sorted(str(file.relative_to(temporary)) for file in temporary.rglob("*") if file.is_file())
    snippet = f"cd {shlex.quote(str(folder))} && {command}"
    return ExportResult(folder, len(cleaned.rows), tuple(files), snippet, cleaned.keeps_everything)


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
