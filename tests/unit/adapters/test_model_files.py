"""Models in one file and in shards, and the digest of either."""

import hashlib
from pathlib import Path

import pytest

from adapters.llamacpp.files import model_digest, model_files

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))


def test_shards_are_found_from_the_first() -> None:
    one = Path("/models/of-all-00001.gguf")
    assert model_files(one) == [one]
    names = [path.name for path in model_files(Path("/models/m-00001-of-00003.gguf"))]
    assert names == ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    for other in ("m-00002-of-00003.gguf", "m-00001-of-00000.gguf", "m-00001-of-99999.gguf"):
        with pytest.raises(ValueError, match="not the first of"):
            model_files(Path("/models") / other)


@pytest.mark.req("ORCH-3032", "ORCH-3037")
def test_the_digest_is_that_of_all_shards(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    first.write_bytes(b"one")
    with pytest.raises(FileNotFoundError):
        model_digest(first)
    second.write_bytes(b"two")
    whole = tmp_path / "m.gguf"
    whole.write_bytes(b"onetwo")
    expected = f"sha256:{hashlib.sha256(b'onetwo').hexdigest()}"
    assert model_digest(first) == model_digest(whole) == expected
    second.write_bytes(b"TWO")
    assert model_digest(first) != expected
    assert model_digest(whole) == expected


@pytest.mark.req("ORCH-3032")
def test_a_digest_is_remembered_for_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"content")
    model_digest(path)
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    memo.write_text("a" * 64)
    assert model_digest(path) == f"sha256:{'a' * 64}"
    path.write_bytes(b"CONTENT")
    assert model_digest(path) == f"sha256:{hashlib.sha256(b'CONTENT').hexdigest()}"
