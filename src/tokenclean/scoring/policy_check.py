"""How losses were computed, recorded with them: what two columns must share before one is subtracted from the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenclean.errors import PolicyMismatchError


def check_same_policy(base: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Raise PolicyMismatchError unless base and reference losses were computed in the same way.

    ``base``, ``reference``: what ``Scorer.policy`` gave (precision, pack_tokens, kernel). The difference of two
    policies is as large as many scores, so it would be taken for one.
    """
    for key in sorted(base.keys() | reference.keys()):
        mine, theirs = (policy.get(key, "nothing recorded") for policy in (base, reference))
        if mine != theirs:
            raise PolicyMismatchError(
                f"base and reference losses differ in {key} (base: {mine}; reference: {theirs}), so their difference "
                "is no score. Compute both anew on one machine with one version of the program, under another name "
                "of the output; where the models themselves do not allow the same, take a reference of the base's "
                "architecture"
            )


def merge_policies(policies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One policy for the record: a key's value where all shards share it, else the list of its values."""
    values: dict[str, list[Any]] = {}
    for policy in policies:
        for key, value in policy.items():
            if value not in (met := values.setdefault(key, [])):
                met.append(value)
    return {key: met[0] if len(met) == 1 else met for key, met in values.items()}
