"""The Hugging Face Hub: which repositories lie in its cache here, and how others get there. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vlmft.errors import DataError

Kind = Literal["model", "dataset"]

# A model's own files; some repositories hold the same weights again in other forms.
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]
_NOT_OURS = ["original/*", "onnx/*", "consolidated*"]
_PATIENCE = 4.0  # seconds until the Hub counts as out of reach


def here(repo: str, kind: Kind, revision: str | None = None) -> Path | None:
    """The folder of the repository's snapshot in the Hub's cache; None where it is absent or not whole."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, local_files_only=True, **_which(kind, revision)))
    except (OSError, ValueError):
        return None


def unreachable(repo: str, kind: Kind, revision: str | None = None) -> str | None:
    """Why the repository cannot be had from here, in words; None where it can. Waits a few seconds at most."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=_PATIENCE)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except HFValidationError:
        return f"{repo!r} is no name of a repository"
    except HfHubHTTPError as error:
        return _refused(repo, kind, error)
    except Exception as error:  # whatever the network layer of the day raises
        return f"no network: {error}"
    return None


def download(repo: str, kind: Kind, revision: str | None = None) -> Path:
    """The folder of the repository's snapshot, after fetching what is missing of it. Raises DataError saying why not.

    A download that was broken off goes on where it was; until it is whole, `here` does not see it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repo, **_which(kind, revision)))
    except HfHubHTTPError as error:
        raise DataError(f"{repo}: {_refused(repo, kind, error)}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{repo}: the download failed: {_first_line(error)}") from error


def cache() -> str:
    """Where the Hub's cache lies."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _which(kind: Kind, revision: str | None) -> dict[str, Any]:
    which: dict[str, Any] = {"repo_type": kind, "revision": revision}
    return which | ({"allow_patterns": _MODEL_FILES, "ignore_patterns": _NOT_OURS} if kind == "model" else {})


def _refused(repo: str, kind: Kind, error: Exception) -> str:
    """What the Hub's answer means for whoever asked."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    token = "the token that is set (HF_TOKEN or `hf auth login`)"
    if isinstance(error, GatedRepoError):
        if get_token() is None:
            return f"it is gated: ask for access at {page}, then set HF_TOKEN or log in with `hf auth login`"
        return f"it is gated, and {token} has no access: ask for it at {page} with the token's account"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, RepositoryNotFoundError):
        if get_token() is None:
            return "there is no such repository, or it is private and needs HF_TOKEN"
        return f"there is no such repository, or {token} may not read it"
    response: Any = getattr(error, "response", None)
    if getattr(response, "status_code", None) == 401:
        return f"{token} is not valid" if get_token() else "it needs a login: set HF_TOKEN or `hf auth login`"
    return f"the Hub answers: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
