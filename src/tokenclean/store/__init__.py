"""The run folder: content-addressed stages, written whole or not at all, checked before they are used."""

from tokenclean.store.condition import StageState, check_stage, judge
from tokenclean.store.files import (
    array_hash,
    atomic_folder,
    atomic_path,
    disk_refusal,
    explained_refusals,
    file_hash,
    fingerprint,
    write_json,
)
from tokenclean.store.layout import CHECKPOINTS, DAMAGED, RESULTS, SERVED, SHORT_KEY, STAGES
from tokenclean.store.manifest import MANIFEST, Manifest, read_manifest, seal_folder
from tokenclean.store.stages import MadeElsewhere, Make, Stage, Store, describe_origin
from tokenclean.store.versions import STAGE_VERSIONS

__all__ = [
    "CHECKPOINTS",
    "DAMAGED",
    "MANIFEST",
    "RESULTS",
    "SERVED",
    "SHORT_KEY",
    "STAGES",
    "STAGE_VERSIONS",
    "MadeElsewhere",
    "Make",
    "Manifest",
    "Stage",
    "StageState",
    "Store",
    "array_hash",
    "atomic_folder",
    "atomic_path",
    "check_stage",
    "describe_origin",
    "disk_refusal",
    "explained_refusals",
    "file_hash",
    "fingerprint",
    "judge",
    "read_manifest",
    "seal_folder",
    "write_json",
]
