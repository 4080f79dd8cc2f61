"""A folder that the tests publish, and what the Hub holds of it afterwards."""

from __future__ import annotations

import hashlib
from pathlib import Path

SECRET = "hf_RecognisableFakeToken1234567890"
CARD = '---\nlicense: mit\n---\n\n# A model\n\n    AutoModelForCausalLM.from_pretrained("small", dtype="auto")\n'


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def named(folder: Path) -> dict[str, bytes]:
    """What the Hub is to hold of a folder: its files, with the card naming the repository."""
    files = {name: (folder / name).read_bytes() for name in hashes(folder)}
    return {**files, "README.md": files["README.md"].replace(b'"small"', b'"me/small"')}
