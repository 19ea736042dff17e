"""Which labs there are: the state directory, their ids, and which of them live.

A lab is a directory <root>/<id> with `lab.json` and a file `lock` that its fabric process keeps locked (flock): the
kernel drops the lock at the process's end, whatever its way. So a lab whose lock can be taken is dead, its directory is
all that is left of it, and removing that touches nobody else. No state is kept anywhere else.
"""

from __future__ import annotations

import ctypes
import difflib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import InputError, MachineError

ROOT_BYTES_MIN = 512 << 20
"""A memory file system smaller than this (a container's /dev/shm has 64 MiB) is passed over."""
SOCKET_PATH_BYTES_MAX = 107
"""What the kernel takes as the path of a unix socket."""
ID_TRIES_MAX = 100
STATE_VARIABLE = "LAB_STATE_DIR"
_TMPFS_MAGIC = 0x0102_1994
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


@dataclass(frozen=True, slots=True)
class LabRecord:
    """One lab as its directory tells it. `kept` labs stay after the command that made them (`lab up`)."""

    lab_id: str
    directory: Path
    alive: bool
    kept: bool
    details: dict[str, object] = field(default_factory=dict)

    @property
    def topology(self) -> str:
        """The topology's name; "?" for a directory that was left before it was known."""
        return str(self.details.get("topology", "?"))


@dataclass(frozen=True, slots=True)
class Claim:
    """A directory that this process has just made, and the descriptor that holds its lock."""

    lab_id: str
    directory: Path
    lock: int


def state_roots() -> list[Path]:
    """Where this user's labs may be, the preferred place first; they need not exist.

    LAB_STATE_DIR in the environment replaces them all: labs there and labs elsewhere don't see each other.
    """
    uid = os.geteuid()
    if os.environ.get(STATE_VARIABLE):
        return [Path(os.environ[STATE_VARIABLE]).absolute()]
    runtime = Path("/run") if uid == 0 else _runtime_directory(uid)
    places: list[tuple[Path, Path]] = []  # the file system that has to hold it, the directory
    if runtime is not None:
        places.append((runtime, runtime / "ccm-lab"))
    places.append((Path("/dev/shm"), Path(f"/dev/shm/ccm-lab-{uid}")))
    in_memory = [root for base, root in places if _in_memory(base)]
    # Mapped files on a disk wait for its write-back now and then; still better than no lab.
    return [*in_memory, Path(f"/tmp/ccm-lab-{uid}")]


def claim(name: str | None, topology: str) -> Claim:
    """Makes a lab's directory and locks it. Without a `name` the id is the topology's name and a random part.

    Raises InputError for a name that is taken by a living lab or unusable, MachineError where no directory can be made.
    """
    root = _make_root()
    if name is not None and not _NAME.fullmatch(name):
        raise InputError(
            None, None, None, f'lab name "{name}": expected a letter or digit, then up to 31 letters, digits, "_.-"'
        )
    with _registry_locked(root):
        for _ in range(ID_TRIES_MAX):
            lab_id = name if name is not None else f"{_stem(topology)}-{secrets.token_hex(4)}"
            directory = root / lab_id
            if directory.exists() and name is not None:
                if _locked(directory):
                    raise InputError(
                        None, None, None, f'lab "{name}" is up already (`lab down {name}`, or --name OTHER)'
                    )
                shutil.rmtree(directory)
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)
                return Claim(lab_id, directory, _take_lock(directory))
    raise MachineError(f"no free lab id in {root}", f"remove old directories in {root}")


def labs() -> list[LabRecord]:
    """All labs of this user, living and dead, by id."""
    found: list[LabRecord] = []
    for root in state_roots():
        if not root.is_dir():
            continue
        with _registry_locked(root):
            found += [_read(directory) for directory in sorted(root.iterdir()) if directory.is_dir()]
    return sorted(found, key=lambda record: record.lab_id)


def find(name: str) -> LabRecord:
    """The living lab called `name` (its id, or the only one whose id or topology begins so). Raises InputError."""
    living = [record for record in labs() if record.alive]
    exact = [record for record in living if record.lab_id == name]
    near = exact or [record for record in living if record.lab_id.startswith(name)]
    if len(near) == 1:
        return near[0]
    raise unknown("lab", name, [record.lab_id for record in living], "`lab ps` lists them")


def unknown(kind: str, name: str, known: list[str], hint: str = "") -> InputError:
    """The error for a name that nothing has, with the nearest one that something has."""
    close = difflib.get_close_matches(name, known, n=1)
    meant = f' (did you mean "{close[0]}"?)' if close else ""
    there = ", ".join(known[:20]) if known else "none"
    tail = f"; {hint}" if hint and not close else ""
    return InputError(None, None, None, f'no {kind} "{name}"{meant}; there is: {there}{tail}')


def remove_dead(record: LabRecord) -> bool:
    """Removes what a dead lab left; False when it turns out to live after all."""
    root = record.directory.parent
    with _registry_locked(root):
        if not record.directory.is_dir():
            return True
        if _locked(record.directory):
            return False
        shutil.rmtree(record.directory, ignore_errors=True)
    return True


def write_record(directory: Path, details: dict[str, object]) -> None:
    """Writes a lab's `lab.json`, whole or not at all."""
    draft = directory / "lab.json.new"
    draft.write_text(json.dumps(details, indent=1), encoding="utf-8")
    draft.replace(directory / "lab.json")


def _read(directory: Path) -> LabRecord:
    details: dict[str, object] = {}
    with suppress(OSError, ValueError):
        loaded = json.loads((directory / "lab.json").read_text(encoding="utf-8"))
        if isinstance(loaded, dict):
            details = loaded
    return LabRecord(directory.name, directory, _locked(directory), bool(details.get("kept", False)), details)


def _stem(topology: str) -> str:
    """At most 16 harmless characters of a topology's name, for ids that tell something in `ps`."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", topology)[:16].strip("-") or "lab"


def _take_lock(directory: Path) -> int:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _locked(directory: Path) -> bool:
    """Whether some process holds the lab's lock. Only meaningful while the registry is locked."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _registry_locked(root: Path) -> Iterator[None]:
    """Nobody claims or removes a lab meanwhile: between making a directory and locking it, it would look dead."""
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_root() -> Path:
    problems: list[str] = []
    for root in state_roots():
        try:
            root.mkdir(mode=0o700, parents=STATE_VARIABLE in os.environ, exist_ok=True)
            status = root.lstat()
        except OSError as error:
            problems.append(f"{root}: {error.strerror}")
            continue
        # In a directory that all may write to, somebody else may have been there first.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return root
        problems.append(f"{root}: not a private directory of this user")
    raise MachineError(
        f"no place for the lab's state ({'; '.join(problems)})", "make one of these writable for this user"
    )


def _runtime_directory(uid: int) -> Path | None:
    """$XDG_RUNTIME_DIR where it is this user's own (after su it is somebody else's)."""
    text = os.environ.get("XDG_RUNTIME_DIR", "")
    path = Path(text)
    try:
        return path if text and path.is_absolute() and path.stat().st_uid == uid else None
    except OSError:
        return None


def state_is_in_memory(directory: Path) -> bool:
    """Whether `directory`, or what it will be made in, is on a memory file system."""
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    answer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None)
    return libc.statfs(os.fsencode(existing), answer) == 0 and int.from_bytes(answer.raw[:4], "little") == _TMPFS_MAGIC


def _in_memory(base: Path) -> bool:
    """Whether `base` is a memory file system of a useful size that this user may write to."""
    try:
        size = os.statvfs(base)
    except OSError:
        return False
    large = size.f_blocks * size.f_frsize >= ROOT_BYTES_MIN
    return large and os.access(base, os.W_OK) and state_is_in_memory(base)
