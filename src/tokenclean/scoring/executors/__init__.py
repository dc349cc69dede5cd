"""Where the shards of a pass are computed: in this process, in those of torchrun, or by the actors of a Ray cluster.

A pass is described once: ``ShardLosses`` says what a shard's losses are computed from and where they are stored,
``PassShard`` what its tokens are. An executor decides who computes which shard, and nothing else, so the results are
the same bits and a pass begun under one executor continues under another.

``ray_executor`` is imported where it is asked for only.
"""

from tokenclean.scoring.executors.executor import Executor, PassShard
from tokenclean.scoring.executors.local import LOCAL, LocalExecutor
from tokenclean.scoring.executors.torchrun import TorchrunExecutor

__all__ = ["LOCAL", "Executor", "LocalExecutor", "PassShard", "TorchrunExecutor"]
