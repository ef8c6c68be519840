"""Every error the package raises on purpose.

MoraError               one line: what happened, the value, what to do; exit code 1
|- SettingsError        a setting, flag or template is wrong; found before the first request
|- SourceError          the source rows can't be read, or are of another schema
|- RunFolderError       the run folder is another build's, in use, or can't be written
|  |- LogHeld           a partition's answer log is in use by another process
|  `- DamagedFile       a file of a run or dataset folder is missing, damaged or can't be read
|- EndpointError        the model endpoint can't be used at all (refused, 401, no such model)
|- AnswersPending       requests were written as files; answers are to be put beside them
|- ClusterError         no machine of the cluster can do the work
|- LimitReached         a limit of the settings was met; state is kept
|- UnreliableScores     the scorers can't be trusted: mostly noise, or not what they were
|- NothingSelected      a stage left nothing for the next one
|- PublishError         staging or pushing the dataset failed
`- ExtraMissing         an optional dependency is not installed

DropRow                 not a failure: this source row is left out, for a counted reason
PendingRetry            not a failure of the run: the next one asks this prompt again
"""

from __future__ import annotations

# what reading a text of somebody else may raise, whatever stands in it
UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class MoraError(Exception):
    """Root of the tree; its text is one line that says what happened, the value, and what to do."""

    # loop time until which answers in flight are waited for, set by who sees it first
    until: float | None = None


class SettingsError(MoraError):
    """A setting, flag or template is wrong."""


class SourceError(MoraError):
    """The source rows can't be read, or are of another schema."""


class RunFolderError(MoraError):
    """The run folder belongs to another build, is in use by another process, or can't be
    written."""


class LogHeld(RunFolderError):
    """A partition's answer log is in use by another process."""


class DamagedFile(RunFolderError):
    """A file of a run or dataset folder is missing, damaged or can't be read."""


class EndpointError(MoraError):
    """The model endpoint can't be used at all: refused, 401, no such model, or it stopped
    answering."""


class AnswersPending(MoraError):
    """Requests were written as files for another program; the same command goes on when its answers
    are there."""


class ClusterError(MoraError):
    """No machine of the cluster can do the work; what was answered is kept."""


class LimitReached(MoraError):
    """A limit of the settings (cost, tokens, error share) was met; the state is kept."""


class UnreliableScores(MoraError):
    """A dimension's scores are mostly noise, or the scorers changed during the run; the state is
    kept."""


class NothingSelected(MoraError):
    """A stage left nothing for the next one."""


class PublishError(MoraError):
    """Staging, linting or pushing the dataset failed."""


class ExtraMissing(MoraError):
    """An optional dependency is not installed; the text names the extra."""


class DropRow(Exception):
    """This source row is left out. `reason` is a short snake_case word that is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class PendingRetry(Exception):
    """A request ran out of tries on faults that may pass; its prompt is asked again by the next
    run."""
