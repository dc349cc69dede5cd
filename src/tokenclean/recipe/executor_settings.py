"""Who computes losses and what else takes long before a training: the settings of executors."""

from __future__ import annotations

from pydantic import Field, field_validator

from tokenclean.recipe.base_settings import Section

RAY, RAY_CLIENT = "ray", "ray://"


class ExecutorSettings(Section):
    """Who computes tokens, losses, near-duplicates, vectors and the answers of a local model. Results do not depend on
    it, and what was begun under one ``kind`` continues under another."""

    kind: str = "local"
    """``local``: this process, or those of torchrun or accelerate launch; ``ray``: actors of the Ray cluster that
    RAY_ADDRESS names or this machine belongs to, else of this machine alone; ``ray://HOST:10001``: of a cluster that is
    reached through its Ray Client server."""
    actors: int | None = Field(default=None, ge=1)
    """Actors of Ray, each of which loads the model and computes one shard or batch after another; by default as many as
    the cluster has CPUs and GPUs for when a stage begins."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of an actor, which computes on its CPUs if this is 0; 0.5 puts two actors on one GPU."""
    num_cpus: int = Field(default=1, ge=1)
    """CPUs, and threads, of an actor."""

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, value: str) -> str:
        if value not in ("local", RAY) and not (value.startswith(RAY_CLIENT) and len(value) > len(RAY_CLIENT)):
            raise ValueError(f"found {value!r}, expected local, ray, or ray:// and the address of a Ray Client server")
        return value

    @field_validator("num_gpus")
    @classmethod
    def _check_num_gpus(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"found {value}, expected a share of one GPU or a whole number, as Ray does")
        return value

    @property
    def is_ray(self) -> bool:
        """Whether actors of Ray compute."""
        return self.kind != "local"
