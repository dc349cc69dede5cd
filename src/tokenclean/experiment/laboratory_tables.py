"""What the laboratory found, as tables, a JSON document and a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tokenclean.experiment.laboratory import Laboratory
from tokenclean.experiment.laboratory_columns import LabPass
from tokenclean.experiment.preferences import ModelPreference, preference_table
from tokenclean.experiment.result_files import Measured
from tokenclean.experiment.run import loss_table
from tokenclean.lab.detection_quality import DetectionQuality
from tokenclean.report.report_page import Report, Section, TableBlock
from tokenclean.report.tables import Table, share_text


@dataclass(frozen=True)
class Findings:
    """``passes``: those that gave the detectors' columns. ``detectors``: by name. ``preferences``: one a model.
    ``measured``: models on held-out rows, empty where nothing was trained."""

    laboratory: Laboratory
    passes: Sequence[LabPass]
    detectors: Mapping[str, DetectionQuality]
    preferences: Sequence[ModelPreference]
    measured: Sequence[Measured] = ()

    @property
    def tables(self) -> dict[str, Table]:
        """The tables by a name for files."""
        tables = {"detectors": detector_table(self)}
        if self.preferences:
            tables["preference"] = preference_table(self.preferences)
        if self.measured:
            tables["heldout-loss"] = loss_table(list(self.measured), self.laboratory.context)
        return tables


def detector_table(findings: Findings) -> Table:
    """One row a detector."""
    rows = tuple(
        (
            name,
            *(_number(part.auroc) for part in (found.onset, found.later, found.whole)),
            *(_number(part.average_precision, 3) for part in (found.onset, found.later, found.whole)),
            share_text(found.flagged_share),
            *map(_number, (found.precision, found.recall)),
            share_text(found.estimated_rate),
            _number(found.calibration_error, 3),
        )
        for name, found in findings.detectors.items()
    )
    first = next(iter(findings.detectors.values()))
    note = (
        f"AUROC and average precision (AP) against all clean tokens: of the first token of each span, "
        f"of the later ones, of all; a score that says nothing has AUROC 0.5 and AP {first.onset.rate:.3f}, "
        f"{first.later.rate:.3f}, {first.whole.rate:.3f}. flags, precision, recall: at the detector's own line; "
        "estimate: its own of the share of noise; ECE: expected calibration error, ten bins"
    )
    columns = ("AUROC first", "later", "all", "AP first", "later", "all", "flags", "precision", "recall", "estimate")
    return Table("Detectors against known noise", ("detector", *columns, "ECE"), rows, note)


def lead(findings: Findings) -> str:
    """How much noise there is and what was scored to find it, in a few sentences."""
    truth, labels = findings.laboratory.truth, findings.laboratory.labels
    kinds = Counter(span.kind for span in truth.spans)
    rows = len({span.row for span in truth.spans})
    shown = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(6))
    shown += f", {len(kinds) - 6} more kinds" if len(kinds) > 6 else ""
    text = (
        f"{len(truth):,} rows, {rows:,} with noise; {int(labels.is_noise.values.sum()):,} of "
        f"{int(labels.is_response.values.sum()):,} response tokens are noise ({share_text(labels.rate)}), in "
        f"{len(truth.spans):,} spans ({shown})."
    )
    tokens = sum(one.tokens for one in findings.passes)
    text += f" {len(findings.passes)} passes over {tokens:,} tokens ({_passes_text(findings.passes)})."
    cut = int(findings.laboratory.context.tokens.is_truncated.sum())
    return text + (f" {cut:,} rows are cut at tokens.max_length; noise behind the cut is not counted." if cut else "")


def lab_document(findings: Findings) -> dict[str, object]:
    """Everything as a JSON value; a figure that does not exist is None."""
    truth, labels = findings.laboratory.truth, findings.laboratory.labels
    return {
        "rows": len(truth),
        "rows_with_noise": len({span.row for span in truth.spans}),
        "rows_set_aside": len(findings.laboratory.context.data.rejected),
        "spans": dict(Counter(span.kind for span in truth.spans).most_common()),
        "response_tokens": int(labels.is_response.values.sum()),
        "noise_tokens": int(labels.is_noise.values.sum()),
        "noise_rate": labels.rate,
        "passes": [asdict(one) for one in findings.passes],
        "detectors": {name: _without_nan(asdict(found)) for name, found in findings.detectors.items()},
        "preference": {p.name: _without_nan(asdict(p)) for p in findings.preferences},
        "heldout_loss": [_without_nan(dict(m.to_json())) for m in findings.measured],
    }


def lab_page(findings: Findings, title: str) -> Report:
    """The tables as a page."""
    tables = findings.tables
    sections = [Section(name, table.title, (TableBlock(name, table),)) for name, table in tables.items()]
    return Report(title, (lead(findings),), tuple(sections))


def _passes_text(passes: Sequence[LabPass]) -> str:
    return "; ".join(f"{one.what}: {one.tokens:,}" for one in passes)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
