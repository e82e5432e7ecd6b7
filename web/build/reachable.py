"""Whether an address answers, decided within a few seconds.

    python web/build/reachable.py URL SECONDS      exit status 0: it answers, 1: it does not

A name server that is gone can hold a request far beyond its timeout, so the request runs in a thread that is left
behind.
"""

from __future__ import annotations

import sys
import threading
import urllib.error
import urllib.request


def reachable(url: str, seconds: float) -> bool:
    """Whether `url` gives any HTTP answer below 500 within `seconds`."""
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)
        except (OSError, ValueError):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return answers == [True]


if __name__ == "__main__":
    sys.exit(0 if reachable(sys.argv[1], float(sys.argv[2])) else 1)
