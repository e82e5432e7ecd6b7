"""Signatures in the browser, by Web Cryptography (`web/src/bridge/crypto.ts`)."""

from __future__ import annotations

from typing import Any

from pyodide.ffi import to_js

from pywebml.platform.browser_errors import crossing


async def verify_signature(bridge: Any, algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is that of `data` by this key. See `Platform.verify_signature`."""
    pieces = (to_js(piece) for piece in (public_key_spki, signature, data))
    return bool(await crossing(bridge.verifySignature(algorithm, *pieces)))
