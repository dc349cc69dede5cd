"""Who computes: this process, those of torchrun, or the actors of a Ray cluster.

What is computed is described once, as a ``Work``: it computes one item after another, in this process or in another
that has opened it. An executor decides who computes which item, and nothing else, so results are the same bits and what
was begun under one executor continues under another.

``ray_executor`` is imported where it is asked for only.
"""

from tokenclean.executors.executor import Compute, Executor, FileWork, Item, Stages, Work, WriteFiles, find_stage
from tokenclean.executors.local import LOCAL, LocalExecutor
from tokenclean.executors.torchrun import TorchrunExecutor

__all__ = [
    "LOCAL",
    "Compute",
    "Executor",
    "FileWork",
    "Item",
    "LocalExecutor",
    "Stages",
    "TorchrunExecutor",
    "Work",
    "WriteFiles",
    "find_stage",
]
