"""What is in a zip archive, for whoever is to check it before PyTorch reads it."""

from __future__ import annotations

import zipfile


def entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by their names in lower case: PyTorch's reader takes `DATA.PKL` for `data.pkl`.

    Raises:
        ValueError: two have one name, or a name has an end within: PyTorch may read another one than was checked.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.orig_filename.lower()
        if name in found or "\0" in name:
            raise ValueError(f"its entry {name[:80]!r} is there twice, or has a name that ends within")
        found[name] = entry
    return found
