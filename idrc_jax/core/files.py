"""Files that are written whole or not at all, and locks between processes, on one host or on a shared file system."""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from idrc_jax.core.json_values import Json, parsed


def cache_folder() -> Path:
    """The user's folder for what can be made again, which exists then; OSError or RuntimeError where there is none."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idrc_jax"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what replaces a file, atomically, when the block ends well and it is on the disk."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # processes of two hosts may have one number
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, whatever the locale, without a byte order mark; UnicodeDecodeError for another.

    Lines end in `\\n`, as those that are appended do; of lines that end in `\\r\\n` the `\\r` is left out.
    """
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not blank, without the blanks around them."""
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by a new one with this content, atomically."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """`write_text` of a value as JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Json:
    """The JSON object in a file, or ValueError."""
    try:
        content = parsed(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a readable {path}, got: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"Expected a JSON object in {path}, got {type(content).__name__}.")
    return content


def read_manifest(path: Path, version: int, what: str) -> Json | None:
    """The JSON object in a file, None without the file; ValueError unless its schema_version is this one."""
    if not path.is_file():
        return None
    try:
        manifest = parsed(read_text(path))
        found = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        why = f", which is damaged: {error}" if isinstance(error, ValueError) else ""
        raise ValueError(f"Expected {what}, got {path}{why}.") from None
    if found != version:
        raise ValueError(f"Expected schema_version {version} in {path}, got {found}: use the release that wrote it.")
    return manifest


def make_folder(folder: Path) -> None:
    """Make a folder that can be written, or ValueError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"Expected a workdir that can be made, got {folder}: {error.strerror}. Choose another."
        ) from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"Expected a workdir that can be written, got {folder}. Choose another.")


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this lock of the folder, which is a file `.lock` in it.

    The file stays: NFS locks only what is open for writing, and whoever removed it could part two that wait.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, path, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock_or_refuse(descriptor: int, path: Path) -> None:
    """Hold an open file for this process, or ValueError if another holds it; the lock ends with the file."""
    try:
        _lock(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Expected no other process to write {path}, got one that does: wait, or use another workdir."
        ) from None


def _lock(descriptor: int, path: Path, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ValueError(f"Expected a file system with locks (flock) for {path}, got: {error.strerror}.") from None
