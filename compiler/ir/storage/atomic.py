"""Write files so that a failure leaves the old ones untouched."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

_DRAFT = re.compile(r"\.[0-9a-f]{8}\.tmp$")


@contextmanager
def replacing(*paths: Path, removed: Iterable[Path] = ()) -> Iterator[list[BinaryIO]]:
    """Open new contents for `paths`, which take their places together when the block ends.

    The new contents lie beside their places, so the disk must hold both for a while. If the block
    raises (Ctrl-C too), or the disk is full, they are removed and nothing else changes; those of a
    process that was killed are removed here, by the next one. Whoever has an old file open keeps
    reading the old contents. A symbolic link is replaced, not followed.

    Args:
        paths: Where the new contents go.
        removed: Old files that the new contents make needless; they go when these come.

    Raises:
        OSError: If a file cannot be written or replaced.
    """
    with ExitStack() as stack:
        drafts = [stack.enter_context(_draft(path)) for path in paths]
        yield [file for _, file in drafts]
        for _, file in drafts:
            file.flush()
            os.fsync(file.fileno())
        moves = {path: draft for (draft, _), path in zip(drafts, paths, strict=True)}
        _swap(moves | dict.fromkeys(removed))


@contextmanager
def _draft(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    _remove_abandoned(path)
    draft = _beside(path)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            lock(descriptor)
            if path.exists():
                if not os.access(path, os.W_OK):
                    raise PermissionError(errno.EACCES, "the old file is read-only", str(path))
                draft.chmod(stat.S_IMODE(path.stat().st_mode))
            yield draft, file
    finally:
        draft.unlink(missing_ok=True)


Lock = Literal["own", "taken", "unknown"]


def lock(descriptor: int) -> Lock:
    """Make a file or folder this process's own until it is closed, or say that another has it.

    It is closed when a process ends, in whatever way. "unknown" where the file system knows of no
    locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unknown"
    return "own"


def _remove_abandoned(path: Path) -> None:
    """Remove the drafts of `path` that belong to processes which were killed."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _DRAFT.search(draft.name):
            continue
        with suppress(OSError):  # it is gone, or somebody else's
            descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if lock(descriptor) == "own":
                    draft.unlink()
            finally:
                os.close(descriptor)


def _swap(moves: dict[Path, Path | None]) -> None:
    """Move every draft to its place, and remove what lies at a place without one; or do nothing."""
    undo: list[Callable[[], object]] = []
    links: list[Path] = []
    try:
        for path, draft in moves.items():
            if len(moves) > 1:
                links.append(_beside(path))
                undo.append(_remember(path, links[-1]))
            if draft is None:
                path.unlink()
            else:
                draft.replace(path)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    finally:
        for link in links:
            link.unlink(missing_ok=True)
    for folder in {path.parent for path in moves}:
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(descriptor)
        os.close(descriptor)


def _remember(path: Path, link: Path) -> Callable[[], object]:
    """Keep the old file alive under another name, and return what brings it back."""
    if not os.path.lexists(path):
        return lambda: path.unlink(missing_ok=True)
    try:
        os.link(path, link, follow_symlinks=False)
    except OSError:
        return lambda: None  # a file system without hard links has no way back
    return lambda: link.replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
