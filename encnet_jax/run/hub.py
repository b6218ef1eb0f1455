"""The Hugging Face hub, by the package huggingface_hub: files and folders of models."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from encnet_jax.errors import UserError, reason_of, require_package

PREFIX = "hf://"
_NAME = r"\w[\w.-]*"
_REPOSITORY = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?", re.ASCII
)
# Beside a file, a revision has no slash, unless it is one that the hub itself makes.
_FILE = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[\w.-]+))?/(?P<file>.+)",
    re.ASCII,
)
# By which a file is told from a revision with slashes.
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")


def parse_repository(address: str) -> tuple[str, str | None] | None:
    """Splits `OWNER/REPO[@REVISION]`, with or without `hf://`.

    Returns:
        OWNER/REPO and the revision (a branch, a tag or a commit); None for any other
        text, such as `hf://OWNER/REPO/FILE` or `hf://OWNER/REPO@REVISION/FILE.pth`.
    """
    match = _REPOSITORY.fullmatch(address.removeprefix(PREFIX))
    if match is None or ".." in address:  # which neither names nor branches have
        return None
    repo, revision = match["repo"], match["revision"]
    if revision and "/" in revision and revision.lower().endswith(_WEIGHTS):
        return None
    return repo, revision


def check_repository(repo_id: str) -> None:
    """Raises `UserError` unless a text is OWNER/REPO."""
    if parse_repository(repo_id) != (repo_id, None):
        raise UserError(f"repo_id={repo_id!r}: must be OWNER/REPO")


def download_file(address: str) -> str:
    """Downloads `hf://OWNER/REPO[@REVISION]/FILE` to the cache, unless it is there.

    Args:
        address: The revision is a branch without a slash, a tag, a commit, or
            `refs/pr/NUMBER`.

    Returns:
        The path of the file.

    Raises:
        UserError: Another form, no such file or revision, or no connection.
    """
    match = _FILE.fullmatch(address.removeprefix(PREFIX))
    if match is None:
        raise UserError(f"{address}: must be hf://OWNER/REPO[@REVISION]/FILE")
    repo, revision, file = match["repo"], match["revision"], match["file"]
    with _hub(address, "cannot be downloaded") as client:
        return client.hf_hub_download(repo_id=repo, filename=file, revision=revision)


def download_folder(address: str, files: Sequence[str]) -> Path:
    """Downloads files of `OWNER/REPO[@REVISION]` to the cache, unless they are there.

    Args:
        address: See `parse_repository`.
        files: Their names; those that are not in the repository are left out.

    Returns:
        The folder in the cache.

    Raises:
        UserError: Another form, no such repository or revision, or no connection.
    """
    parsed = parse_repository(address)
    if parsed is None:
        raise UserError(f"{address}: must be hf://OWNER/REPO or with @REVISION")
    repo, revision = parsed
    with _hub(address, "cannot be downloaded") as client:
        folder = client.snapshot_download(
            repo_id=repo, revision=revision, allow_patterns=[*files]
        )
    return Path(folder)


def upload_folder(
    folder: Path, repo_id: str, *, private: bool, revision: str | None, message: str
) -> str:
    """Uploads a folder in one commit; creates the repository if there is none.

    Args:
        folder: The folder.
        repo_id: OWNER/REPO.
        private: Whether a new repository is private. An existing one that is public is
            refused.
        revision: The branch, created if there is none; None: `main`.
        message: Message of the commit.

    Returns:
        The address of the repository.

    Raises:
        UserError: Not OWNER/REPO, no permission, or no connection.
    """
    check_repository(repo_id)
    with _hub(repo_id, "cannot be uploaded") as client:
        url = client.create_repo(repo_id, private=private, exist_ok=True)
        if private and not client.repo_info(repo_id).private:
            raise UserError(f"{repo_id}: is public; private=True is for a new one")
        if revision is not None and not revision.startswith("refs/"):
            client.create_branch(repo_id, branch=revision, exist_ok=True)
        client.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message,
        )
    return str(url)


@contextlib.contextmanager
def _hub(address: str, failed: str) -> Iterator[Any]:
    """Yields a client of the hub; whatever it raises becomes one line."""
    require_package("huggingface_hub", "weights", address)
    import huggingface_hub
    from huggingface_hub import errors

    known = (
        (errors.GatedRepoError, "access must be requested on its page, then log in"),
        (
            errors.RepositoryNotFoundError,
            "no such repository on the hub; if it is private, log in (hf auth login)",
        ),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.EntryNotFoundError, "no such file"),
    )
    try:
        yield huggingface_hub.HfApi()
    except UserError:
        raise
    # Requests fail by types of several HTTP packages, which differ between versions.
    except Exception as error:
        reason = reason_of(error)[:300]
        for kind, text in known:
            if isinstance(error, kind) and not isinstance(error, FileNotFoundError):
                reason = text
                break
        raise UserError(f"{address}: {failed}: {reason}") from error
