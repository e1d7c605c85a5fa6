"""What an agent refuses or loses, as one small tree.

AgentError
  AddressRefused        a controller address that must not be dialled, or is not one
  BadOption             an engine option that cannot be understood
  ModelNotFound         no catalogue name, folder of the store or directory of that name
  NothingFits           no candidate fits the memory budget
  IdentityUnreadable    the identity file is not one of ours
  EngineUnavailable     the engine cannot take the request now
  StreamBroken          the controller's end does not keep the protocol
  PullError             a download did not end in a verified model; what arrived is kept unless it was wrong
    UnsafeName          a file name of the repository that would leave the folder
    RepositoryRefused   not found, gated, or without a usable checkpoint
    SourceUnreachable   the source kept failing until the retries were spent
    DigestMismatch      the bytes are not those that the hub lists; they are deleted
    DiskFull            not enough free space, before or during the download
    PullBusy            another process is pulling this model
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of all. `code` is a stable word; `retryable` says whether the same attempt may succeed later."""

    code = "agent_error"
    retryable = False


class AddressRefused(AgentError):
    """The address is malformed, or not loopback and neither TLS nor --insecure was given."""

    code = "address_refused"


class BadOption(AgentError):
    """The message names the option and what it takes."""

    code = "bad_option"


class ModelNotFound(AgentError):
    """Neither a name of the catalogue that is in the store, nor a directory in the published layout."""

    code = "model_not_found"


class NothingFits(AgentError):
    """Every candidate needs more memory than the budget; the message has the bytes."""

    code = "nothing_fits"


class IdentityUnreadable(AgentError):
    """The identity file exists but is damaged; removing it gives the node a new id."""

    code = "identity_unreadable"


class EngineUnavailable(AgentError):
    """The engine is loading, gone or too far behind to take a frame."""

    code = "engine_unavailable"
    retryable = True


class StreamBroken(AgentError):
    """The peer sent what the protocol does not allow."""

    code = "stream_broken"
    retryable = True


class PullError(AgentError):
    """Base of everything that ends a pull."""

    code = "pull_failed"


class UnsafeName(PullError):
    """A file name with a parent reference, an absolute path, a drive or a device name."""

    code = "unsafe_name"


class RepositoryRefused(PullError):
    """The hub does not give this repository, or it is not a checkpoint that shoal can serve."""

    code = "repository_refused"


class SourceUnreachable(PullError):
    """The source kept failing; what has arrived is kept and the next pull goes on from there."""

    code = "source_unreachable"
    retryable = True


class DigestMismatch(PullError):
    """The downloaded bytes do not have the digest that the hub lists; the file was deleted."""

    code = "digest_mismatch"
    retryable = True


class DiskFull(PullError):
    """The disk does not hold the files. Nothing that had arrived is lost."""

    code = "disk_full"


class PullBusy(PullError):
    """Another process holds the lock of this model."""

    code = "pull_busy"
    retryable = True
