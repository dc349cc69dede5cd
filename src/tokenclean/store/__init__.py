"""The run folder: content-addressed stages, written whole or not at all, checked before they are used."""

from tokenclean.store.files import (
    array_hash,
    atomic_folder,
    atomic_path,
    disk_refusal,
    file_hash,
    fingerprint,
    write_json,
)
from tokenclean.store.manifest import MANIFEST, check_stage, read_manifest, seal_folder
from tokenclean.store.stage_report import StageState, judge
from tokenclean.store.stages import DAMAGED, RESULTS, STAGES, Stage, Store

__all__ = [
    "DAMAGED",
    "MANIFEST",
    "RESULTS",
    "STAGES",
    "Stage",
    "StageState",
    "Store",
    "array_hash",
    "atomic_folder",
    "atomic_path",
    "check_stage",
    "disk_refusal",
    "file_hash",
    "fingerprint",
    "judge",
    "read_manifest",
    "seal_folder",
    "write_json",
]
