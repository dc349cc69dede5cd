"""Names of a run folder's folders and files."""

from __future__ import annotations

import re

STAGES, RESULTS, DAMAGED = "stages", "results", "damaged"

CHECKPOINTS = "checkpoints"
"""Folder with the states of trainings that are not finished."""

SERVED = "served"
"""Folder with the answers of servers for shards whose losses are not complete."""

SHORT_KEY = 12
"""Characters of a stage's key that its folder's name holds."""

FINISHED = re.compile(r"(?:(?P<name>.+)-)?(?P<key>[0-9a-f]{12})")
"""A stage's folder: name (none for results) and short key."""

UNFINISHED = re.compile(r"\.(?:(?P<name>.+)-)?(?P<key>[0-9a-f]{12})\.-?\d+")
"""The same while it is being written; the number is the writing process's."""

UNFINISHED_FILE = re.compile(r"\..+\.-?\d+\.tmp")
"""See ``files.temporary_path``."""
