"""The error tree of hearth.

HearthError
├── ConfigError            a setting is wrong, unknown or contradicts another one      (exit 2)
│   └── PortInUseError     the address cannot be bound
├── ModelError             the model directory cannot be served                        (exit 3)
│   ├── ModelNotFoundError     no such directory, or no config.json in it
│   ├── UnknownArchitectureError
│   ├── WeightsError           weights missing, truncated, corrupt, or of another shape
│   ├── ChecksumError          a file is not the one that its source or its manifest names
│   └── TokenizerError         tokenizer or chat template missing or broken
├── CapacityError          memory or another host resource is too small                (exit 4)
├── KernelError            a kernel library is missing, or refused a call              (exit 5)
│   └── CanaryError            a model that was loaded gives garbage: it is not served
├── EngineError            the engine process failed                                   (exit 6)
│   └── EngineDeadError    the engine process is gone
├── RequestError           the client's request cannot be answered as it stands        (HTTP 400)
│   ├── ContextOverflowError   prompt + answer exceed the context
│   └── ModelNotServedError    the request names a model that is not served            (HTTP 404)
├── OverloadedError        the queue is full                                           (HTTP 429)
├── DeadlineExceededError  the request's time was over before it was complete          (HTTP 504)
├── RemoteError            a server that hearth asked as a client did not answer       (exit 7)
│   ├── UnreachableError       no answer at all, or none but "try later": ask another source
│   └── GatedModelError        the model is there, but not for this user
├── HostError              a setting of this machine cannot be read or changed         (exit 8)
│   ├── PrivilegeError         changing it needs root
│   └── JournalError           the record of changes cannot be written, or is damaged
└── StoreBusyError         another process holds what was to be changed                (exit 9)

Every class has a stable `code` (for logs, metrics and API bodies); every message states the
setting, its value and the permitted range; `hint` says what to do. The tables that map a code to
an HTTP status or an exit code are here, so that they exist once.
"""

from __future__ import annotations

from typing import ClassVar


class HearthError(Exception):
    """Root of every error that hearth raises on purpose; `str()` gives message and hint."""

    code: ClassVar[str] = "internal_error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(HearthError):
    """A setting is wrong, unknown or contradicts another one."""

    code = "invalid_config"
    exit_code = 2


class PortInUseError(ConfigError):
    """The address to listen on cannot be bound."""

    code = "port_in_use"


class ModelError(HearthError):
    """The model directory cannot be served."""

    code = "invalid_model"
    exit_code = 3


class ModelNotFoundError(ModelError):
    """There is no such directory, or it holds no config.json."""

    code = "model_not_found"


class UnknownArchitectureError(ModelError):
    """No family file maps this architecture."""

    code = "unknown_architecture"


class WeightsError(ModelError):
    """A weight file is missing, truncated, corrupt, or a tensor has another shape than needed."""

    code = "invalid_weights"


class TokenizerError(ModelError):
    """The tokenizer or the chat template is missing or cannot be used."""

    code = "invalid_tokenizer"


class ChecksumError(ModelError):
    """A file's contents are not those that its source or its manifest names."""

    code = "checksum_mismatch"


class CapacityError(HearthError):
    """A host resource is too small for what was asked."""

    code = "insufficient_capacity"
    exit_code = 4


class KernelError(HearthError):
    """A kernel library is missing, cannot run here, or refused a call."""

    code = "kernel_error"
    exit_code = 5


class CanaryError(KernelError):
    """A loaded model gives garbage: its weights, or the kernels that run them, are wrong."""

    code = "model_gives_garbage"


class EngineError(HearthError):
    """The engine process failed."""

    code = "engine_error"
    exit_code = 6


class EngineDeadError(EngineError):
    """The engine process is gone; running requests were ended with this error."""

    code = "engine_dead"
    http_status = 503


class RequestError(HearthError):
    """The client's request cannot be answered as it stands."""

    code = "invalid_request"
    http_status = 400


class ContextOverflowError(RequestError):
    """Prompt and answer together exceed the context; the message gives both numbers."""

    code = "context_length_exceeded"


class ModelNotServedError(RequestError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"
    http_status = 404


class OverloadedError(HearthError):
    """The queue is full; the client should retry later.

    `retry_after_s`: when trying again is expected to succeed; None where nothing is known.
    """

    code = "overloaded"
    http_status = 429

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(HearthError):
    """The request's time was over before it was complete."""

    code = "deadline_exceeded"
    http_status = 504


class RemoteError(HearthError):
    """A server that hearth asked as a client cannot be reached, or refused.

    `status`: the HTTP status of a refusal; None where there was no answer to read one from.
    """

    code = "remote_error"
    exit_code = 7

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class HostError(HearthError):
    """A setting of this machine cannot be read or changed."""

    code = "host_error"
    exit_code = 8


class PrivilegeError(HostError):
    """Changing a setting of this machine needs root."""

    code = "needs_root"


class JournalError(HostError):
    """The record of changes cannot be written, is damaged, or is being used by another process."""

    code = "journal_error"


class UnreachableError(RemoteError):
    """No connection, no answer in time, or a failure of the server's own; another may do."""

    code = "remote_unreachable"


class GatedModelError(RemoteError):
    """The model's owner gives it to those who asked for access and show a token."""

    code = "gated_model"


class StoreBusyError(HearthError):
    """Another process holds what was to be changed; the message names it."""

    code = "store_busy"
    exit_code = 9
