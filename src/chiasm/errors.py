"""Every error a user can meet, with its HTTP status and its exit code.

An error's message is one sentence that says what happened and to what; `hint` says what to do
about it. Neither ever holds a decoder's or a driver's own words: those can leak addresses and
paths (CVE-2026-22778), and they change under us.

`kind`, `code` and `param` are the fields of OpenAI's error object (`type`, `code`, `param`), so
the server can answer without a table of its own.
"""

from __future__ import annotations


class ChiasmError(Exception):
    """The base of all errors meant for a user's eyes."""

    http_status = 500
    exit_code = 1
    kind = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class InvalidRequest(ChiasmError):
    """The caller asked for something that cannot be done as asked."""

    http_status = 400
    exit_code = 2
    kind = "invalid_request_error"


class ConfigurationError(InvalidRequest):
    """A setting, a recipe or a file of ours holds a value that cannot be used."""

    code = "invalid_configuration"


# Pictures ---------------------------------------------------------------------------------------


class ImageError(InvalidRequest):
    """A picture could not be opened. `source` names it, `reason` is one fixed sentence."""

    code = "invalid_image"

    def __init__(
        self, source: str, reason: str, *, hint: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(f"{source}: {reason}", hint=hint, param=param)
        self.source = source
        self.reason = reason


class NotAnImage(ImageError):
    """The bytes are no picture in a format that is read here."""

    code = "not_an_image"


class BrokenImage(ImageError):
    """The header is a picture's, the rest is damaged or cut short."""

    code = "broken_image"


class ImageTooLarge(ImageError):
    """More bytes or more pixels than the limits allow; found before anything was decoded."""

    http_status = 413
    code = "image_too_large"


class DecodeTimeout(ImageError):
    """Decoding took longer than the limits allow, and was stopped."""

    code = "decode_timeout"

    def __init__(self, source: str, seconds: int) -> None:
        super().__init__(
            source,
            f"decoding it takes longer than the limit of {seconds:,} seconds.",
            hint="Save it anew in a plain form, as PNG or baseline JPEG, or make it smaller.",
        )


class AnimatedImage(ImageError):
    """Several frames where one picture was meant. Indexing takes the first; a question may not."""

    code = "animated_image"

    def __init__(self, source: str, frames: int) -> None:
        super().__init__(
            source,
            f"it has {frames:,} frames, of which a model sees one.",
            hint="Send the frame that you mean as a still picture.",
        )


# Weights ----------------------------------------------------------------------------------------


class WeightsError(ChiasmError):
    """Weights could not be fetched, verified or read."""

    http_status = 503
    exit_code = 3
    code = "weights_unavailable"


class DigestMismatch(WeightsError):
    """A file is not, byte for byte, what the catalogue promises."""

    code = "digest_mismatch"


class Offline(WeightsError):
    """Weights are missing and fetching was forbidden by `--offline`."""

    code = "offline"


class DownloadFailed(WeightsError):
    """A source did not answer, or answered that it has no such file."""

    code = "download_failed"


class NoSpace(ChiasmError):
    """The disk is full, or would be."""

    http_status = 507
    exit_code = 4
    code = "no_space"


class UnknownModel(InvalidRequest):
    """No such model in the catalogue or on the disk."""

    http_status = 404
    code = "model_not_found"


class UnsupportedCheckpoint(InvalidRequest):
    """A checkpoint was found but its architecture or its tensors do not fit."""

    code = "unsupported_checkpoint"


# Generation -------------------------------------------------------------------------------------


class Unsupported(InvalidRequest):
    """A model cannot do what was asked for; another might."""

    code = "unsupported_parameter"


class ContextExceeded(InvalidRequest):
    """Pictures and text have more tokens than the model reads."""

    code = "context_length_exceeded"


class Unaffordable(InvalidRequest):
    """No size of its pictures brings a request within what it may cost or take."""

    code = "unaffordable"


class GeneratorUnreachable(ChiasmError):
    """No server that answers questions can be reached, or none serves the model that is wanted."""

    http_status = 503
    exit_code = 7
    code = "generator_unreachable"


class ProviderKeyRefused(GeneratorUnreachable):
    """A provider does not take this server's key: its operator's matter, not the caller's."""

    code = "provider_key_refused"


class ProviderQuotaSpent(ProviderKeyRefused):
    """An account of this server with a provider is used up: its operator's matter, too."""

    code = "provider_quota_spent"


class ProviderBusy(GeneratorUnreachable):
    """A provider takes no more requests for now. retry_after: seconds, where it says so."""

    http_status = 429
    exit_code = 8
    code = "provider_busy"
    kind = "rate_limit_error"

    def __init__(
        self, message: str, *, retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class ContentRefused(InvalidRequest):
    """A provider's own rules forbid it to answer this text or these pictures."""

    code = "content_refused"


class NoModelQualifies(ChiasmError):
    """None of a route's models has been measured to be as good as the route demands."""

    http_status = 503
    exit_code = 7
    code = "no_model_qualifies"


class GeneratorFailed(ChiasmError):
    """The server that was answering broke off, took too long, or sent what is no answer."""

    http_status = 502
    exit_code = 7
    code = "generator_failed"


class Overloaded(ChiasmError):
    """More requests wait than may. retry_after: seconds until there should be room."""

    http_status = 429
    exit_code = 8
    code = "queue_full"
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class TimedOut(ChiasmError):
    """The request's own deadline has passed."""

    http_status = 504
    exit_code = 8
    code = "deadline_exceeded"


class Cancelled(ChiasmError):
    """Whoever asked does not want the answer any more. Nobody is left to read this."""

    http_status = 499
    exit_code = 130
    code = "cancelled"


# Keys and budgets -------------------------------------------------------------------------------


class InvalidKey(ChiasmError):
    """No key, or one that is not known, has expired or was revoked: which, is not said."""

    http_status = 401
    exit_code = 2
    code = "invalid_api_key"
    kind = "authentication_error"


class KeyForbidden(ChiasmError):
    """The key is good, but not for this model or this collection."""

    http_status = 403
    exit_code = 2
    code = "key_forbidden"
    kind = "permission_error"


class KeyNotFound(InvalidRequest):
    """No key by that id or name."""

    http_status = 404
    code = "key_not_found"


class BudgetExceeded(ChiasmError):
    """A key's budget has too little left for this request. resets: when it begins anew, ISO 8601.

    To ask again soon is no use, though the status is 429, as it is with OpenAI.
    """

    http_status = 429
    exit_code = 8
    code = "insufficient_quota"
    kind = "insufficient_quota"

    def __init__(self, message: str, *, resets: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.resets = resets


class RateLimited(Overloaded):
    """A key asks faster than it may. retry_after: seconds until this request would pass."""

    code = "rate_limit_exceeded"


# Training ---------------------------------------------------------------------------------------


class UnusableData(InvalidRequest):
    """Training data is missing, has other columns than it should, or is damaged beyond a share."""

    code = "unusable_data"


class TrainingDiverged(ChiasmError):
    """A loss or a gradient is no number any more. The newest snapshot is untouched."""

    exit_code = 6
    code = "training_diverged"


class TrainingInterrupted(ChiasmError):
    """The user stopped a run; it made a snapshot first."""

    exit_code = 130
    code = "training_interrupted"


# Collections ------------------------------------------------------------------------------------


class CollectionNotFound(InvalidRequest):
    """No collection by that name."""

    http_status = 404
    code = "collection_not_found"


class CollectionExists(InvalidRequest):
    """A collection by that name is already there."""

    http_status = 409
    code = "collection_exists"


class ItemNotFound(InvalidRequest):
    """No item by that id in the collection."""

    http_status = 404
    code = "item_not_found"


class ItemExists(InvalidRequest):
    """An item by that id is already there."""

    http_status = 409
    code = "item_exists"


class PictureMissing(ItemNotFound):
    """The item is there, but the file that holds its full picture is not."""

    code = "picture_missing"


class EmbedderMismatch(InvalidRequest):
    """The collection's vectors were made by another embedder."""

    http_status = 409
    code = "embedder_mismatch"


class StoreError(ChiasmError):
    """The store's files could not be read or written."""

    exit_code = 5
    code = "store_error"


class NotReady(ChiasmError):
    """The server is still starting, or is stopping."""

    http_status = 503
    kind = "server_error"
    code = "not_ready"
