"""What responses of the Hub say, and what messages may show of addresses."""

import math
import re
from collections.abc import Mapping

from attn2mask.builders.errors import UserError

LONGEST_PAUSE = 300  # seconds between two requests if the Hub asks for a pause
TRANSIENT = (408, 429, 500, 502, 503, 504)  # statuses after which a request is sent again


class Unreachable(UserError):
    """There is no token, or no network."""


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that the Hub asks to wait, from the headers of a response; 0 if it does not ask."""
    asked = headers.get("Retry-After", "").strip()
    spent = re.search(r";\s*r\s*=\s*0+\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    seconds = [text for text in (asked, spent[1] if spent else "") if text.isdigit()]
    return max((float(text) if text.isascii() else math.inf for text in seconds), default=0.0)


def without_password(text: str) -> str:
    """`text` without the names and passwords in its addresses: `https://name:password@host`."""
    return re.sub(r"(?<=://)[^\s/]*@|[^\s/:@]+:[^\s/]*@", "", text)
