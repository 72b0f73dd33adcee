"""What the Hugging Face hub's libraries raise, as one sentence with a mend. No sentence holds the token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from curricula.durable import NO_SPACE
from curricula.errors import UserError


@contextlib.contextmanager
def explained(hub: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Turn an error about the dataset `hub` into a UserError; in the transfer of `file`, if given. A full disk passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if full or not (said := _sentence(hub, revision, file, error)):
            raise
        raise UserError(f"dataset {hub}: {said}") from error


def _sentence(hub: str, revision: str | None, file: str, error: BaseException) -> str:
    """What went wrong and what to do; "" when it is nothing foreseen.

    An error of the network is named by its class alone: its words may quote a header.
    """
    import pyarrow
    from huggingface_hub import constants, errors, get_token

    chain = list(_causes(error))
    page = f"https://huggingface.co/datasets/{hub}"
    answers = [answer for link in chain if (answer := getattr(link, "response", None)) is not None]
    status = answers[0].status_code if answers else None
    words = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    def named(*names: str) -> bool:  # of classes that moved between versions of the libraries
        return any(base.__name__ in names for link in chain for base in type(link).__mro__)

    if met(UnicodeEncodeError) and not file:
        return "the token holds a character that no header can; copy it into HF_TOKEN again"
    if met(errors.GatedRepoError):
        why = "the token's account has not accepted its licence" if get_token() else "there is no token"
        return f"gated, and {why}; accept its licence at {page} and set HF_TOKEN"
    if status == 401 and get_token():
        tokens = "https://huggingface.co/settings/tokens"
        return f"the hub does not know the token (401); set HF_TOKEN to a valid one, see {tokens}, or unset it"
    if status == 403:
        return f"the token may not read it (403); let it read gated repositories in its settings, and see {page}"
    if met(errors.RevisionNotFoundError):
        return f"no revision {revision!r} on the hub; choose one from {page}/commits/main"
    if status in (401, 404) or named("DatasetNotFoundError"):  # 401 is what strangers get, whether it is there or not
        return f"not on the Hugging Face hub, or private; see {page}, and set HF_TOKEN if it is yours"
    if met(errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network; unset it"
    if met(ConnectionError, TimeoutError) or named("TransportError", "RequestException"):
        kind = type(error).__name__
        if file:
            return f"the connection broke off in {file} ({kind}); run the same again, finished files are kept"
        mend = "run this where there is a network, or set HF_ENDPOINT to a mirror"
        return f"the hub at {constants.ENDPOINT} cannot be reached ({kind}); {mend}"
    if status is not None:
        return f"the hub answers {status}; try again later"
    if met(pyarrow.ArrowException):
        return f"{file or 'a file'} cannot be read ({words}); see {page} for a mended revision"
    if met(ValueError) or named(
        "DataFilesNotFoundError", "EmptyDatasetError"
    ):  # no such configuration or split, no files
        return f"{words}; see {page}"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
