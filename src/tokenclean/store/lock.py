"""One run at a time in a run folder: the lock that a run holds, and the record of who holds it.

The lock is the operating system's, on ``.lock``: it goes with its process, so the files of a killed run block nobody.
``.lock.json`` beside it only names the holder. Where the file system knows no locks, that record is the lock: it is
created exclusively, and it is taken over from a process of this host that runs no more. Whether a process of another
host still runs cannot be seen from here, so its record stands until somebody removes it.

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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tokenclean.errors import RunFolderError
from tokenclean.store.files import disk_refusal, json_bytes, temporary_path, write_json

LOCK = ".lock"
RECORD = ".lock.json"

_KNOWS_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
_MEND = "wait for it, stop it, or choose another output or name"


class RunLock:
    """The lock of one run folder. Re-entrant; two objects of the same folder exclude each other (see the module)."""

    def __init__(self, root: Path, note: Callable[[str], None]) -> None:
        self._root, self._record, self._note = root, root / RECORD, note
        # Without system locks the record is the lock (see _claim), not filelock's own marker.
        self._lock = FileLock(root / LOCK, thread_local=False, fallback_to_soft=False)
        self._depth = 0

    def acquire(self) -> bool:
        """Take the lock without waiting; True unless this object held it already.

        Raises RunFolderError naming the holder, or saying why the folder cannot be locked.
        """
        if self._depth == 0:
            self._take()
        self._depth += 1
        return self._depth == 1

    def release(self) -> None:
        """Undo one ``acquire``; the last one gives the folder free."""
        self._depth -= 1
        if self._depth:
            return
        with suppress(OSError):  # a record that stays will name a process that runs no more, and block nobody
            self._record.unlink()
        self._lock.release()

    def _take(self) -> None:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RunFolderError(f"{_in_use(self._root, read_holder(self._root) or {})}: {_MEND}") from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _KNOWS_NO_LOCKS:
                raise RunFolderError(
                    f"cannot lock the run folder {self._root}: {disk_refusal(error) or error}"
                ) from error
            self._note(f"{self._root}: its file system knows no locks; {RECORD} alone keeps other runs away")
            self._claim()
            return
        try:
            write_json(self._record, describe_process())
        except BaseException:
            self._lock.release()
            raise

    def _claim(self) -> None:
        """Make the record the lock: create it, in place of one whose process runs no more."""
        content = json_bytes(describe_process())
        try:
            if (record := _read_record(self._root)) is not None and _is_gone(record):
                self._remove(record)
            with open(self._record, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise self._refuse() from None
        except OSError as error:
            reason = disk_refusal(error) or error
            raise RunFolderError(f"cannot lock the run folder {self._root}: {reason}") from error

    def _remove(self, record: Mapping[str, Any]) -> None:
        """Remove the record of a dead process, and no other that a faster run may have put in its place."""
        aside = temporary_path(self._record)
        with suppress(FileNotFoundError):  # the faster run has removed it
            os.rename(self._record, aside)
            if _read(aside) != record:
                os.rename(aside, self._record)
                raise self._refuse()
            aside.unlink()

    def _refuse(self) -> RunFolderError:
        holder = _read_record(self._root) or {}
        return RunFolderError(
            f"{_in_use(self._root, holder)}: {_MEND}; if that process runs no more, delete {self._record}"
        )


def read_holder(root: Path) -> Mapping[str, Any] | None:
    """Who holds the folder's lock (see ``describe_process``), without taking it; None when it is free.

    Told from the record: a process of this host is looked up, one of another host is believed to run still. A record
    that cannot be read gives an empty mapping.
    """
    record = _read_record(root)
    return None if record is None or _is_gone(record) else record


def describe_process() -> dict[str, Any]:
    """This process for the record: number, host, time (UTC), program and subcommand, and its mark (``process_mark``).

    No other argument of the command is told: it could be anybody's secret.
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
    """What tells a process of this host from a later one of the same number; None where none of that number runs.

    On Linux the boot and the clock tick at which it started; empty where the system does not tell.
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


def _read_record(root: Path) -> Mapping[str, Any] | None:
    """The record; None where there is none, empty where it cannot be read (its writer may not have finished)."""
    return _read(root / RECORD)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    is_whole = isinstance(record, dict) and record.keys() >= {"pid", "host", "started", "command", "mark"}
    return record if is_whole else {}


def _is_gone(record: Mapping[str, Any]) -> bool:
    """Whether the record's process is known to run no more."""
    if record.get("host") != platform.node():
        return False
    mark = process_mark(record["pid"])
    return mark is None or ("" not in (mark, record["mark"]) and mark != record["mark"])


def _in_use(root: Path, holder: Mapping[str, Any]) -> str:
    if not holder:
        return f"the run folder {root} is in use by another process"
    who = f"process {holder['pid']} ({holder['command']}) on {holder['host']} since {holder['started']}"
    return f"the run folder {root} is in use by {who}"
