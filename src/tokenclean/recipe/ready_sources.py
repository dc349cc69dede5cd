"""Ready sources: the paper's five, each a name for where its rows lie and what they look like.

``{ready: alpaca, count: 10000}`` in ``pool.sources`` stands for the values below; whatever stands beside ``ready`` goes
over them. With ``path`` the rows come from a local file or folder of the same columns, and with another ``format`` the
column map of the ready one does not hold.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

READY_SOURCES: Final[dict[str, dict[str, Any]]] = {
    # instruction, input, output, and the rendered text, which is not read. Answers by text-davinci-003.
    "alpaca": {"hub": "tatsu-lab/alpaca", "split": "train", "format": "alpaca", "license": "CC BY-NC 4.0"},
    # instruction, context, response, category. Written by people.
    "dolly": {
        "hub": "databricks/databricks-dolly-15k",
        "split": "train",
        "format": "alpaca",
        "license": "CC BY-SA 3.0",
    },
    # messages, id. 90k rows drawn from the collection's few- and zero-shot parts, as the Tulu mixtures take them; the
    # collection itself is hundreds of gigabytes.
    "flan_v2": {
        "hub": "ai2-adapt-dev/flan_v2_converted",
        "split": "train",
        "format": "messages",
        "license": "ODC-BY 1.0",
    },
    # A row is a message of a tree: message_id, parent_id, text, role, rank, deleted, and more that is not read.
    "oasst1": {"hub": "OpenAssistant/oasst1", "split": "train", "format": "oasst", "license": "Apache-2.0"},
    # idx, conversations of from and value. Questions and answers by ChatGPT.
    "wizardlm": {
        "hub": "WizardLMTeam/WizardLM_evol_instruct_V2_196k",
        "split": "train",
        "format": "sharegpt",
        "license": "MIT",
    },
}

_OF_THE_PLACE = ("hub", "config", "split", "revision", "streaming")
_OF_THE_FORMAT = ("columns", "roles")


def expand_ready(values: Mapping[str, Any]) -> dict[str, Any]:
    """A source's values with those of its ``ready`` source underneath, which gives it its name too.

    Raises ValueError where ``ready`` names none.
    """
    values = dict(values)
    name = values.pop("ready", None)
    if name is None:
        return values
    if not isinstance(name, str) or name not in READY_SOURCES:
        close = difflib.get_close_matches(str(name), READY_SOURCES, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"ready: expected one of {', '.join(READY_SOURCES)}, found {name!r}{hint}")
    underneath = {"name": name, **READY_SOURCES[name]}
    dropped: set[str] = set()
    if values.get("path") is not None or values.get("hub") is not None:
        dropped.update(_OF_THE_PLACE)
    if values.get("format") is not None and values["format"] != underneath["format"]:
        dropped.update(_OF_THE_FORMAT)
    return {key: value for key, value in underneath.items() if key not in dropped} | values
