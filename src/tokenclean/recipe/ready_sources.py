"""Ready sources: the paper's five, each a name for where its rows are found and in which form.

``{ready: alpaca, count: 10000}`` in ``pool.sources`` stands for the values below; keys given beside ``ready`` override
them. With ``path`` the rows come from a local file or folder with the same columns; with another ``format`` the ready
source's column map does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokenclean.recipe.error_messages import did_you_mean

READY_SOURCES: Final[dict[str, dict[str, str]]] = {
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

_HUB_KEYS = ("hub", "config", "split", "revision", "streaming")
_FORMAT_KEYS = ("columns", "roles")


def expand_ready(values: Mapping[str, object]) -> dict[str, object]:
    """A source's values, completed by those of the ready source that ``ready`` names; the source is called like it too.

    Raises ValueError for an unknown ready source.
    """
    values = dict(values)
    name = values.pop("ready", None)
    if name is None:
        return values
    if not isinstance(name, str) or name not in READY_SOURCES:
        expected = f"ready: expected one of {', '.join(READY_SOURCES)}, found {name!r}"
        raise ValueError(expected + did_you_mean(str(name), READY_SOURCES))
    ready = {"name": name, **READY_SOURCES[name]}
    dropped: set[str] = set()
    if values.get("path") is not None or values.get("hub") is not None:
        dropped.update(_HUB_KEYS)
    if values.get("format") is not None and values["format"] != ready["format"]:
        dropped.update(_FORMAT_KEYS)
    return {key: value for key, value in ready.items() if key not in dropped} | values
