"""The cache: aigcc goes on without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from aigcc import cache


@pytest.fixture(autouse=True)
def forget() -> None:
    cache._forgotten.cache_clear()


def test_the_users_own_cache_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIGCC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "aigcc"
    assert cache.cache_folder().is_dir()


def test_without_a_folder_to_write_into_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="not kept for the next run"):
        folder = cache.cache_folder()
    (folder / "rows.json").write_text("{}")
    assert cache.cache_folder() == folder


def test_a_read_only_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIGCC_CACHE", str(tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.warns(UserWarning, match="read-only"):
        assert cache.cache_folder() != tmp_path
