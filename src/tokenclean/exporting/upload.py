"""Upload of an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from tokenclean.errors import InputError, RunError, RunFolderError


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
