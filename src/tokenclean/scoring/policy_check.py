"""How losses were computed: two columns must agree in it before one is subtracted from the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenclean.errors import PolicyMismatchError


def check_same_policy(base: Mapping[str, object], reference: Mapping[str, object]) -> None:
    """Raise PolicyMismatchError unless base and reference losses were computed in the same way.

    ``base``, ``reference``: their ``Scorer.policy`` (precision, pack_tokens, kernel). Two policies change losses by as
    much as many scores are large.
    """
    for key in sorted(base.keys() | reference.keys()):
        mine, theirs = (policy.get(key, "nothing recorded") for policy in (base, reference))
        if mine != theirs:
            raise PolicyMismatchError(
                f"base and reference losses differ in {key} (base: {mine}; reference: {theirs}), so their difference "
                "is not a score. Compute both again on one machine with one version of the program, under another "
                "output name; where the models themselves do not allow the same policy, use a reference of the base's "
                "architecture"
            )


def merge_policies(policies: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """One policy for the metadata: of each key the value that all shards share, else the list of values."""
    values: dict[str, list[object]] = {}
    for policy in policies:
        for key, value in policy.items():
            if value not in (met := values.setdefault(key, [])):
                met.append(value)
    return {key: met[0] if len(met) == 1 else met for key, met in values.items()}
