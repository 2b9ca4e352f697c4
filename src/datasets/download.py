"""Archives from the official servers, whole and verified or not at all."""

import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from src.datasets.examples import DataError
from src.runtime.files import file_hash

TIMEOUT = 20  # seconds without an answer after which a server counts as unreachable
WAITS = (1.0, 4.0, 15.0)  # seconds before the second, third and fourth try
LONGEST_WAIT = 60.0  # seconds that a server may ask to wait
AGENT = "Mozilla/5.0 (compatible; task-arithmetic suite)"  # several servers answer 403 to Python's own
PARTIAL, OUT_OF_RANGE = 206, 416
BUSY = (429, 500, 502, 503, 504)
SHA256_DIGITS = 64
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".h5.gz")


@dataclass(frozen=True)
class Download:
    """One file of the official server, kept in `folder` of the data root and, if it is an archive, unpacked there.

    digest: MD5 as torchvision states it, or, of 64 digits, SHA-256.
    """

    url: str
    digest: str
    folder: str

    @property
    def algorithm(self) -> str:
        return "sha256" if len(self.digest) == SHA256_DIGITS else "md5"

    def mismatch(self, path: Path) -> str:
        """What is wrong with the hash of a file; empty where it is the published one."""
        found = file_hash(path, self.algorithm)
        return "" if found == self.digest else f"expected {self.algorithm} {self.digest}, found {found}"

    def path(self, root: Path) -> Path:
        return root / self.folder / self.url.rpartition("/")[2]

    def _unpacking(self, root: Path) -> Path:
        path = self.path(root)
        return path.with_name(f"{path.name}.unpacking")

    @property
    def is_archive(self) -> bool:
        return self.url.endswith(ARCHIVES)

    def interrupted(self, root: Path) -> bool:
        """Whether an earlier unpacking was cut short, so that what lies beside the archive may be half of it."""
        return self._unpacking(root).exists()

    def fetch(self, root: Path, advice: str) -> None:
        """Download unless the file is there already, verify, unpack.

        A download that was cut short goes on where it stopped. A file with another hash is set aside as `<name>.bad`.
        Raises DataError, with `advice` on other ways, when the server cannot be reached, refuses, stays busy or gives
        another file than the published one, and when the disk has no room for it.
        """
        path = self.path(root)
        if path.exists() and (wrong := self.mismatch(path)):
            print(f"{path}: {wrong}; set aside as {set_aside(path).name}")
        if not path.exists():
            self._download(path, advice)
        if self.is_archive:
            from torchvision.datasets.utils import extract_archive

            self._unpacking(root).touch()
            print(f"unpacking {path}")
            extract_archive(str(path), str(path.parent) if not path.name.endswith(".h5.gz") else None)
            self._unpacking(root).unlink()

    def _download(self, path: Path, advice: str) -> None:
        """Fetch into `<name>.part`, going on after what is there, and give it its name once its hash is right."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        for wait in (*WAITS, None):
            try:
                self._fetch_rest(part)
                break
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or wait is None:
                    raise DataError(f"{self.url}: {_refusal(error.code)}\n{self._otherwise(path, advice)}") from error
                time.sleep(_asked_to_wait(error, wait))
            except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
                if wait is None:
                    raise DataError(self._stopped(part, path, error, advice)) from error
                time.sleep(wait)
        if wrong := self.mismatch(part):
            aside = set_aside(part, path)
            raise DataError(
                f"{self.url}: {wrong}: the server gave a whole file, and another one; set aside as {aside}\n{advice}"
            )
        part.replace(path)

    def _fetch_rest(self, part: Path) -> None:
        """One request, for what is missing. Raises CutShort, and urllib's errors."""
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": AGENT} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != OUT_OF_RANGE or not have:
                raise
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return  # it was whole
            part.unlink()
            raise CutShort("the part that was there is longer than the file; it is fetched anew") from error
        with answer:
            have = have if answer.status == PARTIAL else 0  # a server that knows no ranges gives all of it
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            require_room(part.parent, (total or 0) - have)
            with open(part, "ab" if have else "wb") as file:
                with tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
                    while block := answer.read1(1 << 20):  # what has come, so that a stall loses nothing
                        file.write(block)
                        bar.update(len(block))
        if total is not None and (size := part.stat().st_size) < total:
            raise CutShort(f"cut short: {size} of {total} bytes came")

    def _stopped(self, part: Path, path: Path, error: Exception, advice: str) -> str:
        reason = getattr(error, "reason", None) or error
        kept = f"\nThe same command goes on after the {part.stat().st_size} bytes that came." if part.exists() else ""
        return f"cannot download {self.url}: {reason}{kept}\n{self._otherwise(path, advice)}"

    def _otherwise(self, path: Path, advice: str) -> str:
        return (
            f"{advice}\nWithout a network: fetch that file elsewhere, put it at {path} and run the same command again."
        )


class CutShort(ConnectionError):
    """Fewer bytes came than the server said."""


def _refusal(code: int) -> str:
    """What a server's status means, in words."""
    if code in (401, 403):
        return f"the server refuses to give it ({code})"
    if code in (404, 410):
        return f"the server no longer has it ({code})"
    return f"the server is too busy, and stayed so ({code})" if code in BUSY else f"the server answers {code}"


def _asked_to_wait(error: urllib.error.HTTPError, wait: float) -> float:
    """Seconds until the next try: the server's own wish, where it is short."""
    wish = error.headers.get("Retry-After", "")
    return min(float(wish), LONGEST_WAIT) if wish.isdecimal() else wait


def require_room(folder: Path, needed: int) -> None:
    """Raise DataError where the disk has less room than a download needs."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: expected room for the {needed / 1e9:.1f} GB that are still to come, found "
            f"{free / 1e9:.1f} GB; make room, or take another --data-location. The same command goes on"
        )


def set_aside(path: Path, name: Path | None = None) -> Path:
    """Rename a file so that nothing reads it: `<name>.bad`, numbered when that is taken."""
    base = name or path
    aside = base.with_name(f"{base.name}.bad")
    number = 1
    while aside.exists():
        number += 1
        aside = base.with_name(f"{base.name}.bad{number}")
    path.rename(aside)
    return aside


def remote_size(url: str) -> int | None:
    """Bytes of a file on a server, by its own word; None where it says none, or does not answer."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": AGENT})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            length = answer.headers.get("Content-Length")
    except (OSError, HTTPException):
        return None
    return int(length) if length else None
