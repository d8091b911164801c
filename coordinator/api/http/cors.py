"""What browsers are told, so that pages of other origins may use the API."""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from coordinator.api.http.field_check import WARNINGS_HEADER
from coordinator.api.shared.request_ids import GIVEN_IDS, OWN_ID
from coordinator.config.origins import ANY

# Of an answer, what a page may read beside the body.
EXPOSED = (OWN_ID, *GIVEN_IDS, "retry-after", "x-should-retry", "www-authenticate", WARNINGS_HEADER)
# That a browser may remember a permission; Chrome remembers none for longer.
MAX_AGE_SECONDS = 7200


def cors(origins: Sequence[str]) -> list[Middleware]:
    """Nothing where no origin is named. An API key is a header, which every origin that is named may send;
    what browsers add by themselves, client certificates, only those that are named one by one."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_credentials=ANY not in origins,
            expose_headers=list(EXPOSED),
            max_age=MAX_AGE_SECONDS,
        )
    ]
