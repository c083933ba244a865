"""The hub of the tests speaks Hugging Face's protocol: `huggingface_hub` itself pulls from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from tests.support.hub_server import COMMIT, REPO, FakeHub, git_sha1, sha256
from tests.unit.hub.hubs import model_files


def test_the_library_reads_the_list_of_files() -> None:
    with FakeHub(model_files()) as hub:
        api = HfApi(endpoint=hub.url, token=False)
        info = api.model_info(REPO, files_metadata=True)
        pinned = api.model_info(REPO, revision=COMMIT, files_metadata=True)
    assert info.sha == pinned.sha == COMMIT
    siblings = {s.rfilename: s for s in info.siblings or []}
    assert set(siblings) == set(hub.files)
    lfs = siblings["tokenizer.json"].lfs
    assert lfs is not None
    assert lfs.sha256 == sha256(hub.files["tokenizer.json"])
    assert siblings["config.json"].lfs is None
    assert siblings["config.json"].blob_id == git_sha1(hub.files["config.json"])


@pytest.mark.parametrize("path", ["config.json", "tokenizer.json", "onnx/model.onnx"])
def test_the_library_downloads_files_of_both_kinds(tmp_path: Path, path: str) -> None:
    with FakeHub(model_files()) as hub:
        found = hf_hub_download(
            REPO, path, endpoint=hub.url, cache_dir=tmp_path, token=False, etag_timeout=5
        )
    assert Path(found).read_bytes() == hub.files[path]
    assert COMMIT in found


def test_the_library_understands_the_refusals(tmp_path: Path) -> None:
    with FakeHub(model_files()) as hub:
        api = HfApi(endpoint=hub.url, token=False)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("test-org/other")
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision="nowhere")
        hub.gated, hub.token = True, "hf_right"
        with pytest.raises(GatedRepoError):
            hf_hub_download(REPO, "config.json", endpoint=hub.url, cache_dir=tmp_path, token=False)
