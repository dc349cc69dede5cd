"""Whether the Hugging Face Hub can be reached: its libraries try for 23 s for each file before they give up."""

from __future__ import annotations

_PROBE_SECONDS = 5


def why_unreachable() -> str | None:
    """Why the Hub, or the mirror in ``HF_ENDPOINT``, cannot be reached; None where it answers.

    Tries one request. Any status counts as an answer, since a mirror need not serve its root.
    """
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.utils import get_session

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception as error:  # the HTTP library's own classes, which differ between releases of huggingface_hub
        return f"cannot reach {constants.ENDPOINT} ({error})"
    return None
