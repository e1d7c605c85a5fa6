"""A repository of a model hub, pinned to one commit: which files, how large, with which digests, under which licence.

Names and hashes come from the `huggingface-hub` library, which any server with the same API serves as well; bytes are fetched
by `fetch.py`. The library is imported by the pull only, never by the agent's own process.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import quote

from .backoff import Backoff
from .errors import RepositoryRefused, SourceUnreachable, UnsafeName
from .retry import RETRYABLE_STATUS, Busy, retry_after_s

HUGGING_FACE = "https://huggingface.co"
METADATA_TIMEOUT_S = 30.0
MAX_FILES = 2000
"""A repository with more files than this is not a checkpoint."""

MAX_REVISION_LENGTH = 200
MAX_FAILURES = 5
"""Times that a listing is asked for again."""

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 10.0

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)

_WANTED = frozenset(
    """config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt added_tokens.json
    special_tokens_map.json chat_template.jinja chat_template.json preprocessor_config.json video_preprocessor_config.json
    model.safetensors.index.json LICENSE LICENSE.txt LICENSE.md""".split()
)
_REQUIRED = ("config.json", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file. `digest` is `sha256-HEX` of the content, or `git-HEX`, the SHA-1 of git's blob object."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit, the wanted files only."""

    source: str
    repo: str
    commit: str
    licence: str
    files: tuple[RemoteFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def url(self, file: RemoteFile) -> str:
        """Where its bytes are: by commit, so that a branch that moves meanwhile changes nothing."""
        return f"{self.source}/{self.repo}/resolve/{self.commit}/{quote(file.name)}"


def check_repo(repo: str) -> str:
    """The repository's id `owner/name`. Raises UnsafeName for anything else."""
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise UnsafeName(f"{repo!r} is not a repository like Qwen/Qwen3.5-0.8B")
    return repo


def check_name(name: str) -> str:
    """A listed file name that stays inside its folder on every system. Raises UnsafeName."""
    has_bad_letter = any(letter in name for letter in '\\:\0*?"<>|\n\r')
    # An empty part is an absolute path or a doubled slash.
    if has_bad_letter or any(part in ("", ".", "..") or _DEVICE.fullmatch(part) for part in name.split("/")):
        raise UnsafeName(
            f"the repository lists the file name {name!r}, which would leave its folder; nothing was fetched"
        )
    return name


def wanted_files(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """What serving needs: configuration, tokenizer, template, safetensors and their index, at the top level only.

    Raises UnsafeName for any name of the listing, RepositoryRefused when something required is missing.
    """
    chosen: dict[str, RemoteFile] = {}
    for file in files:
        name = check_name(file.name)
        if not _PLAIN_NAME.fullmatch(name):
            continue
        if name in _WANTED or name.endswith(".safetensors"):
            chosen[name] = file
    missing = [name for name in _REQUIRED if name not in chosen]
    if missing:
        raise RepositoryRefused(f"the repository has no {' and no '.join(missing)}: it is not a checkpoint to serve")
    if not any(name.endswith(".safetensors") for name in chosen):
        raise RepositoryRefused("the repository has no safetensors files; weights in pickle formats are never loaded")
    return tuple(sorted(chosen.values(), key=lambda file: (file.size, file.name)))


def source_url(source: str) -> str:
    """`huggingface`, or the base address of a server with the same API. Raises RepositoryRefused."""
    if source == "huggingface":
        return os.environ.get("HF_ENDPOINT", HUGGING_FACE).rstrip("/")
    if re.fullmatch(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?", source):
        return source.rstrip("/")
    raise RepositoryRefused(f"--source {source!r}: give huggingface or an http(s) address without user name or query")


def token_for(source: str) -> str | None:
    """The access token to send to this source.

    HF_TOKEN goes to whatever source the user names beside it; a token that a login has saved goes to its own hub only.
    """
    explicit = os.environ.get("HF_TOKEN")
    if explicit:
        return explicit.strip() or None
    if source != HUGGING_FACE:
        return None
    from huggingface_hub import get_token

    return get_token()


def look_up(
    source: str,
    repo: str,
    revision: str,
    token: str | None,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[], float] = random.random,
) -> Snapshot:
    """Resolve a branch, tag or commit to a commit and list its files. `source` is a base address.

    A source that is busy or out of order is asked again within bounds. Raises RepositoryRefused, SourceUnreachable or
    UnsafeName.
    """
    check_repo(repo)
    if not revision or len(revision) > MAX_REVISION_LENGTH or ".." in revision:
        raise RepositoryRefused(f"--revision {revision!r} is not a branch, tag or commit")
    backoff = Backoff(BACKOFF_BASE_S, BACKOFF_CAP_S, draw)
    while True:
        try:
            return _ask(source, repo, revision, token)
        except Busy as error:
            if backoff.num_failures >= MAX_FAILURES:
                raise SourceUnreachable(str(error)) from error
            sleep(max(backoff.next_delay_s(), error.after_s or 0.0))


def _ask(source: str, repo: str, revision: str, token: str | None) -> Snapshot:
    """One question. Raises Busy where asking again may help."""
    # Its own download path is not used: memory without bound, and a killed download that starts from zero.
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    api = HfApi(endpoint=source, token=token if token is not None else False, library_name="shoal")
    try:
        found = api.model_info(repo, revision=revision, files_metadata=True, timeout=METADATA_TIMEOUT_S)
    except hub_errors.GatedRepoError as error:
        raise RepositoryRefused(
            f"{repo} is gated: accept its terms on the hub and set HF_TOKEN to a token of that account"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise RepositoryRefused(f"{repo} has no revision {revision!r}") from error
    except hub_errors.OfflineModeIsEnabled as error:
        raise SourceUnreachable("HF_HUB_OFFLINE is set: unset it to pull") from error
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):  # mirrors do not all say it in the hub's own words
            raise RepositoryRefused(
                f"{repo} is not on {source}, or is private and HF_TOKEN gives no access (status {status})"
            ) from error
        message = f"{source} answered {repo} with status {status}"
        if status in RETRYABLE_STATUS and error.response is not None:
            raise Busy(message, retry_after_s(error.response.headers.get("retry-after"))) from error
        raise SourceUnreachable(message) from error
    except (httpx2.HTTPError, OSError) as error:
        raise Busy(f"{source} cannot be reached: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceUnreachable(f"{source} answered {repo} with something that is no listing") from error
    commit = found.sha or ""
    siblings = found.siblings or []
    if not _COMMIT.fullmatch(commit):
        raise SourceUnreachable(f"{source} names no commit for {repo}@{revision}")
    if len(siblings) > MAX_FILES:
        raise RepositoryRefused(f"{repo} lists {len(siblings)} files, more than {MAX_FILES}")
    files = [_remote_file(sibling.rfilename, sibling.size, sibling.blob_id, sibling.lfs) for sibling in siblings]
    card = found.card_data
    licence = str(card.get("license") or "") if card is not None else ""
    return Snapshot(source, repo, commit, licence or "not stated", wanted_files(files))


def _remote_file(name: str, size: int | None, blob_id: str | None, lfs: object) -> RemoteFile:
    """Raises SourceUnreachable when the listing lacks a size or digest: such a file could not be verified."""
    sha256 = getattr(lfs, "sha256", None)
    length = getattr(lfs, "size", None) if sha256 is not None else size
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256):
        digest = f"sha256-{sha256}"
    elif isinstance(blob_id, str) and _SHA1.fullmatch(blob_id):
        digest = f"git-{blob_id}"
    else:
        raise SourceUnreachable(f"the listing gives no digest of {name!r}: it could not be verified")
    if not isinstance(length, int) or length < 0:
        raise SourceUnreachable(f"the listing gives no size of {name!r}")
    return RemoteFile(name, length, digest)
