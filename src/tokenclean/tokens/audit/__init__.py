"""The label doctor: what is wrong with the labels of a dataset, before a run finds out."""

from tokenclean.tokens.audit.checks import CHECKS, Check
from tokenclean.tokens.audit.findings import Example, Piece
from tokenclean.tokens.audit.report import AuditReport, CheckResult, audit_pool, audit_sources, check_names

__all__ = [
    "CHECKS",
    "AuditReport",
    "Check",
    "CheckResult",
    "Example",
    "Piece",
    "audit_pool",
    "audit_sources",
    "check_names",
]
