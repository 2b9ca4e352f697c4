"""Files: written whole or not at all, read as JSON that may be damaged, and their hashes."""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from src.runtime.messages import UserError

LONGEST = 255  # bytes of a file's name, on most file systems
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # how files of torch.save before 1.6 begin
MAX_JSON = 1 << 28  # bytes
ROOM = 1 << 20  # bytes that a result takes at most, about
# What the system says of a place where nothing can be written, as opposed to what is wrong with a file.
NO_PLACE = frozenset(
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM ENOTDIR EEXIST EISDIR ENAMETOOLONG ELOOP EIO EILSEQ".split()
)


class StorageError(UserError, OSError):
    """A file that cannot be written: no room, no right, no folder. What was there before is still there."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path near `path`; when the block ends without an error, that file takes `path`'s name.

    The temporary lies in a hidden folder `.<name>.<random>.tmp` beside `path` (a rename is atomic within one file
    system only), unique to this call, so writers that race never mix. The folder is locked as long as the file is
    written, and not the file, which a library may replace by one of its own. What killed processes left has no lock,
    and is removed. Raises StorageError where there is no room for the file, or no right to write it.
    """
    claimed, lock, temporary = None, None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        claimed, lock = _claimed(path)
        temporary = claimed / "new"
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut could keep the new name and lose the bytes
        os.replace(temporary, path)
    except OSError as error:
        ours = temporary is None or error.filename in (None, temporary, str(temporary))
        if isinstance(error, StorageError) or not ours or error.errno not in NO_PLACE:
            raise
        refuse(path, error)
    finally:
        if claimed is not None and lock is not None:
            _give_up(claimed, lock)


def refuse(path: Path, error: OSError) -> NoReturn:
    """Raise StorageError in words, for an error that came of writing `path`."""
    folder = _nearest_folder(path)
    raise StorageError(
        f"{path}: expected room in {folder} and the right to write there, found: {os.strerror(error.errno or 0)}"
        f"{_free(folder)}. What was there is as it was. Make room, or name another folder (--save, --results, "
        "--cache-dir); then the same command goes on"
    ) from None


def in_words(error: OSError) -> StorageError | None:
    """For an error that nothing nearer to it has put into words; None where it is not of a place."""
    if error.errno not in NO_PLACE:
        return None
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    what, free = (path, _free(_nearest_folder(path))) if path else ("a file that is read or written", "")
    return StorageError(
        f"{what}: expected room and the right to read and to write there, found: {os.strerror(error.errno or 0)}{free}"
        ". Make room, or name another place (--save, --results, --cache-dir, --data-location); then the same command "
        "goes on"
    )


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB are free)"
    return ""


def require_writable(path: Path, room: int = ROOM) -> None:
    """Raise StorageError, before long work, where `path` could not be written at its end. room: bytes that it needs.

    Nothing is made but a temporary file, in the nearest folder that is there.
    """
    folder = _nearest_folder(path)
    try:
        if len(os.fsencode(path.name)) > LONGEST:
            raise OSError(errno.ENAMETOOLONG, "")
        claimed, lock = _claimed(folder / path.name)
        try:
            (claimed / "new").touch()
        finally:
            _give_up(claimed, lock)
        if path.is_dir():
            raise OSError(errno.EISDIR, "")
        if shutil.disk_usage(folder).free < room:
            raise OSError(errno.ENOSPC, "")
    except OSError as error:
        refuse(path, error)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders in a folder where no process writes any more."""
    for name in _names(folder):
        if not TEMPORARY.fullmatch(name):
            continue
        with suppress(OSError):  # another process was faster, or is not ours to judge
            lock = os.open(folder / name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # in use
                os.close(lock)
            else:
                _give_up(folder / name, lock)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _claimed(path: Path) -> tuple[Path, int]:
    """A new temporary folder for `path`, and the descriptor that locks it."""
    while True:
        ending = f".{secrets.token_hex(6)}.tmp"
        name = os.fsdecode(os.fsencode(path.name)[: LONGEST - 1 - len(ending)])
        claimed = path.with_name(f".{name}{ending}")
        claimed.mkdir()
        try:
            lock = os.open(claimed, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process took it for abandoned before it was locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = _is_at(lock, claimed)
        except BlockingIOError:  # another process has locked it, and is about to remove it
            ours = False
        except OSError:  # a file system without locks
            ours = True
        if ours:
            return claimed, lock
        os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _give_up(claimed: Path, lock: int) -> None:
    """Remove a temporary folder while it is locked, then the lock."""
    shutil.rmtree(claimed, ignore_errors=True)
    os.close(lock)


def _nearest_folder(path: Path) -> Path:
    """The folder of a file, or the nearest above it that exists."""
    return next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """In hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def parse_json(data: bytes) -> Any:
    """What UTF-8 JSON says. Raises ValueError, in words, for whatever else `data` is: nested without end, NaN, ..."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("lists or entries nested too deep") from None


def shared_memory() -> int:
    """Free bytes of /dev/shm, in which processes share tensors; 0 where there is none. Containers often have 64 MB."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0


def read_json(path: Path) -> Any:
    """As parse_json, of a file. Raises FileNotFoundError, and ValueError for a file that cannot be read as JSON."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON + 1)
    except (IsADirectoryError, PermissionError) as error:
        raise ValueError(os.strerror(error.errno or 0)) from None
    if len(data) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON} bytes")
    return parse_json(data)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no number")


def describe_start(start: bytes) -> str:
    """What a file is that begins with these 9 bytes, in words."""
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return "a pickle (torch.save), which is never executed"
    if start == OLD_TORCH:
        return (
            "a file of torch.save before PyTorch 1.6; write it anew by: "
            "torch.save(torch.load(FILE, map_location='cpu', weights_only=True), FILE)"
        )
    if start[:1] == b"\x80" and start[1:2] in b"\1\2\3\4\5":
        return "a bare pickle, which is never executed"
    if start.startswith(b"\x93NUMPY"):
        return "a NumPy file"
    if start.lstrip().startswith(b"<"):
        return "a web page"
    return "a foreign file" if len(start) == 9 else f"a file of {len(start)} bytes"
