"""The trainers that a cleaned data set is exported to, a file each."""

from __future__ import annotations

from tokenclean.exporting.trainers.axolotl import write_axolotl
from tokenclean.exporting.trainers.axolotl_parts import write_axolotl_parts
from tokenclean.exporting.trainers.hf import write_hf
from tokenclean.exporting.trainers.llamafactory import write_llamafactory
from tokenclean.exporting.trainers.llamafactory_v1 import write_llamafactory_v1
from tokenclean.exporting.trainers.megatron_bridge import write_megatron_bridge
from tokenclean.exporting.trainers.ms_swift import write_ms_swift
from tokenclean.exporting.trainers.open_instruct import write_open_instruct
from tokenclean.exporting.trainers.spans import write_spans_form
from tokenclean.exporting.trainers.tinker import write_tinker
from tokenclean.exporting.trainers.trl import write_trl, write_unsloth
from tokenclean.exporting.trainers.writer import TextWriter, TokenWriter, Written

WRITERS: dict[str, TokenWriter | TextWriter] = {
    "trl": TokenWriter(write_trl),
    "unsloth": TokenWriter(write_unsloth),
    "llamafactory": TokenWriter(write_llamafactory),
    "llamafactory-v1": TextWriter(write_llamafactory_v1),
    "axolotl": TokenWriter(write_axolotl),
    "axolotl-parts": TextWriter(write_axolotl_parts),
    "ms-swift": TokenWriter(write_ms_swift, takes="positive"),
    "open-instruct": TokenWriter(write_open_instruct),
    "megatron-bridge": TokenWriter(write_megatron_bridge),
    "tinker": TokenWriter(write_tinker, takes="signed"),
    "hf": TokenWriter(write_hf, takes="signed", lists_ids=False),
    "spans": TextWriter(write_spans_form),
}
"""Name of a form -> its writer."""

__all__ = ["WRITERS", "TextWriter", "TokenWriter", "Written"]
