"""The label doctor: what is wrong with the labels of a dataset, before a run finds out."""

from tokenclean.tokens.audit.checks import CHECKS
from tokenclean.tokens.audit.findings import Example
from tokenclean.tokens.audit.report import AuditReport, CheckResult, audit_pool, audit_sources, check_names

__all__ = [
    "CHECKS",
    "AuditReport",
    "CheckResult",
    "Example",
    "audit_pool",
    "audit_sources",
    "check_names",
]
