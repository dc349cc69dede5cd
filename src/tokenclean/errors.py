"""Every error that tokenclean raises on purpose.

The tree (in brackets the exit code of the command line)::

    TokencleanError
    ├── InputError [2]              the user's file, recipe or model does not fit
    │   ├── RecipeError             (ValueError)   recipe or option; lists all faults together
    │   ├── PoolError               (ValueError)   pool file missing, unreadable or empty
    │   ├── TemplateError           (ValueError)   a conversation cannot be rendered
    │   ├── TokenizerMismatchError  (ValueError)   base and reference do not share their tokenizer
    │   ├── ModelError              (ValueError)   a model cannot be found or loaded
    │   ├── EvaluationError         (ValueError)   a benchmark is unknown or its data are not available
    │   ├── TableError              (ValueError)   a per-token table lacks a column or is damaged
    │   └── MissingExtraError       (ImportError)  an optional dependency is not installed
    └── RunError [1]                the input was fine, the run was not
        ├── NonFiniteError          (ValueError)   NaN or inf where a number is needed
        ├── WeakReferenceError      (RuntimeError) the reference is not better than the base (§4.2.1)
        ├── TrainingError           (RuntimeError) nothing selected, or a training step that failed
        ├── PolicyMismatchError     (ValueError)   losses of two precision policies cannot be subtracted
        ├── RankError               (RuntimeError) processes that share the work lost each other
        └── RunFolderError          (OSError)      the run folder cannot be used
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TokencleanError(Exception):
    """Base class of all errors raised on purpose."""

    exit_code = 1


class InputError(TokencleanError):
    """The user's file, recipe or model does not fit; the message says how to fix it."""

    exit_code = 2


class RunError(TokencleanError):
    """The input was fine, but the run could not be finished."""


class RecipeError(InputError, ValueError):
    """A recipe, an override or an option is wrong. ``problems``: every fault found."""

    def __init__(self, problems: str | list[str], source: str = "recipe") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        count = len(self.problems)
        head = f"{source}: " if count == 1 else f"{source}: {count} problems\n  - "
        super().__init__(head + "\n  - ".join(self.problems))


class PoolError(InputError, ValueError):
    """A pool file is missing, unreadable or holds no usable row."""


class TemplateError(InputError, ValueError):
    """A conversation cannot be rendered with the chosen template."""


class TokenizerMismatchError(InputError, ValueError):
    """Base and reference give different ids for the same text (§4.2.1 asks for one tokenizer)."""


class ModelError(InputError, ValueError):
    """A model cannot be found, loaded or used for scoring."""


class EvaluationError(InputError, ValueError):
    """A benchmark is unknown, or its data are not available."""


class TableError(InputError, ValueError):
    """A per-token table or a file of ratings lacks a column or a row, or its columns do not match."""


class MissingExtraError(InputError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'tokenclean[{extra}]'")


@contextmanager
def needs_extra(package: str, extra: str, purpose: str) -> Iterator[None]:
    """Raise MissingExtraError where the imports in the block fail."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, extra, purpose) from error


class NonFiniteError(RunError, ValueError):
    """NaN or inf where a number is needed; the message names the row."""


class WeakReferenceError(RunError, RuntimeError):
    """The reference model is not better than the base, or its scores are no larger than rounding errors."""


class TrainingError(RunError, RuntimeError):
    """Training cannot go on: nothing is selected, or the loss is not finite."""


class PolicyMismatchError(RunError, ValueError):
    """Losses were computed in two ways, so their difference would partly measure that."""


class RankError(RunError, RuntimeError):
    """The processes that share the work cannot reach each other, or one of them has ended."""


class RunFolderError(RunError, OSError):
    """The run folder cannot be written, is in use, or holds something else; the message says what to do."""
