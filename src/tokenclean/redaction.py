"""Keeping access tokens and passwords out of messages, recipes and manifests."""

from __future__ import annotations

import os
import re

_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
_MINIMUM_LENGTH = 8  # a shorter value is not a token, and replacing it would garble the text
_HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/?#]+@")  # user:password@ of a URL


def redact(text: str) -> str:
    """The text with every secret in it replaced: Hub tokens by ``hf_…``, a URL's user and password by ``…``.

    Secrets are the values of the environment's Hub token variables, anything that looks like a Hub token, and the text
    between :// and @ in a URL.
    """
    for value in sorted((os.environ.get(name, "").strip() for name in _VARIABLES), key=len, reverse=True):
        if len(value) >= _MINIMUM_LENGTH:
            text = text.replace(value, "hf_…")
    return _CREDENTIALS.sub("…@", _HUB_TOKEN.sub("hf_…", text))


def holds_secret(text: str) -> bool:
    """Whether ``redact`` would change the text."""
    return redact(text) != text
