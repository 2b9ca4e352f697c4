"""Archives from the official servers, whole and verified or not at all."""

import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from src.datasets.examples import DataError
from src.runtime.files import file_hash, replacing

TIMEOUT = 20  # seconds without an answer after which a server counts as unreachable
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".h5.gz")


@dataclass(frozen=True)
class Download:
    """One file of the official server, kept in `folder` of the data root and, if it is an archive, unpacked there."""

    url: str
    md5: str
    folder: str

    def path(self, root: Path) -> Path:
        return root / self.folder / self.url.rpartition("/")[2]

    def _unpacking(self, root: Path) -> Path:
        path = self.path(root)
        return path.with_name(f"{path.name}.unpacking")

    def interrupted(self, root: Path) -> bool:
        """Whether an earlier unpacking was cut short, so that what lies beside the archive may be half of it."""
        return self._unpacking(root).exists()

    def fetch(self, root: Path, advice: str) -> None:
        """Download unless the file is there already, verify, unpack.

        A file with another hash is set aside as `<name>.bad`. Raises DataError, with `advice` on other ways, when the
        server cannot be reached or gives another file than the published one.
        """
        path = self.path(root)
        if path.exists() and (found := file_hash(path, "md5")) != self.md5:
            print(f"{path}: expected md5 {self.md5}, found {found}; set aside as {set_aside(path).name}")
        if not path.exists():
            self._download(path, advice)
        if path.name.endswith(ARCHIVES):
            from torchvision.datasets.utils import extract_archive

            self._unpacking(root).touch()
            print(f"unpacking {path}")
            extract_archive(str(path), str(path.parent) if not path.name.endswith(".h5.gz") else None)
            self._unpacking(root).unlink()

    def _download(self, path: Path, advice: str) -> None:
        with replacing(path) as temporary:
            try:
                with urllib.request.urlopen(self.url, timeout=TIMEOUT) as answer, open(temporary, "wb") as file:
                    size = int(answer.headers.get("Content-Length", 0)) or None
                    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
                        while block := answer.read(1 << 20):
                            file.write(block)
                            bar.update(len(block))
            except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
                raise DataError(
                    f"cannot download {self.url}: {getattr(error, 'reason', None) or error}\n{advice}\n"
                    f"Without a network: fetch that file elsewhere, put it at {path} and run the same command again."
                ) from error
            if (found := file_hash(temporary, "md5")) != self.md5:
                aside = set_aside(temporary, path)
                raise DataError(f"{self.url}: expected md5 {self.md5}, found {found}; set aside as {aside}\n{advice}")


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
