"""One run at a time in a run folder: the lock that a run holds, and the record of who holds it.

The lock is the operating system's, on ``.lock``: it ends with its process, so the files of a killed run block nobody.
``.lock.json`` beside it only names the holder. On a file system without locks (ENOLCK and the like) that record is the
lock: it is created exclusively, and taken over from a process of this host that has ended. Whether a process of another
host still runs cannot be seen from here, so its record holds until somebody removes it.

filelock's own replacement, ``SoftFileLock``, does not serve there: it takes over a dead process's marker only by
exchanging two names, which NFS and Lustre refuse, and these are the file systems without locks.

A file system whose locks are known to one host only (Lustre mounted with ``localflock``) keeps apart the runs of that
host, not those of two.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tokenclean.errors import RunFolderError
from tokenclean.store.files import explained_refusals, json_bytes, temporary_path, write_json

LOCK = ".lock"
RECORD = ".lock.json"

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})


class RunLock:
    """The lock of one run folder. Re-entrant; two objects of the same folder exclude each other (see the module)."""

    def __init__(self, root: Path, note: Callable[[str], None]) -> None:
        self._root, self._record, self._note = root, root / RECORD, note
        self._lock = FileLock(root / LOCK, thread_local=False, fallback_to_soft=False)
        self._depth = 0

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Hold the lock for the block; yields True unless this object held it already.

        Does not wait for another process: raises RunFolderError naming the holder, or saying why the folder cannot be
        locked.
        """
        if self._depth == 0:
            with explained_refusals(f"cannot lock the run folder {self._root}"):
                self._take()
        self._depth += 1
        try:
            yield self._depth == 1
        finally:
            self._depth -= 1
            if self._depth == 0:
                with suppress(OSError):  # a record that stays names a process that no longer runs, and blocks nobody
                    self._record.unlink()
                self._lock.release()

    def _take(self) -> None:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise _in_use(self._root) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            self._note(f"{self._root}: its file system has no locks; only {RECORD} keeps other runs out")
            self._claim_record()
            return
        try:
            write_json(self._record, describe_process())
        except BaseException:
            self._lock.release()
            raise

    def _claim_record(self) -> None:
        """Make the record the lock: create it, in place of one whose process has ended."""
        record = _read(self._record)
        if record is not None and _has_ended(record):
            aside = temporary_path(self._record)
            with suppress(FileNotFoundError):  # a faster run has removed it
                os.rename(self._record, aside)
                if _read(aside) == record:
                    aside.unlink()
                else:  # it is the record that a faster run has put there
                    os.rename(aside, self._record)
        try:
            with open(self._record, "xb") as file:
                file.write(json_bytes(describe_process()))
        except FileExistsError:
            raise _in_use(self._root, f"; if that process no longer runs, delete {self._record}") from None


def read_holder(root: Path) -> Mapping[str, object] | None:
    """Who holds the folder's lock (see ``describe_process``), without taking it; None when it is free.

    Goes by the record: a process of this host is looked up, one of another host is taken to be running. A record that
    cannot be read gives an empty mapping.
    """
    record = _read(root / RECORD)
    return None if record is None or _has_ended(record) else record


def describe_process() -> dict[str, object]:
    """This process for the record: pid, host, time (UTC), program and subcommand, and its mark (``process_mark``).

    No other argument of the command is recorded: it could be anybody's secret.
    """
    program = Path(sys.argv[0])
    words = [program.parent.name if program.name == "__main__.py" else program.name]
    words += [word for word in sys.argv[1:2] if re.fullmatch(r"[a-z][a-z-]{0,30}", word)]
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(words),
        "mark": process_mark(os.getpid()),
    }


def process_mark(pid: int) -> str | None:
    """What distinguishes a process of this host from a later one with the same pid; None where no such pid runs.

    On Linux the boot and the clock tick at which it started; empty where the system does not say.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it runs, for somebody else
        pass
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()  # the name in brackets may hold anything
    return None if state in "ZX" else f"{boot} {fields[18]}"  # Z, X: dead, but not yet waited for


def _read(path: Path) -> Mapping[str, object] | None:
    """The record; None where there is none, empty where it cannot be read (its writer may not have finished)."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    is_whole = isinstance(record, dict) and record.keys() >= {"pid", "host", "started", "command", "mark"}
    return record if is_whole else {}


def _has_ended(record: Mapping[str, object]) -> bool:
    """Whether the record's process is known to have ended."""
    pid = record.get("pid")
    if not isinstance(pid, int) or record["host"] != platform.node():
        return False
    mark = process_mark(pid)
    return mark is None or ("" not in (mark, record["mark"]) and mark != record["mark"])


def _in_use(root: Path, more: str = "") -> RunFolderError:
    who = "another process"
    if holder := read_holder(root):
        who = f"process {holder['pid']} ({holder['command']}) on {holder['host']} since {holder['started']}"
    return RunFolderError(
        f"the run folder {root} is in use by {who}: wait for it, stop it, or choose another output or name{more}"
    )
