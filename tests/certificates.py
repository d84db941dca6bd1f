"""Certificates of an authority of one's own, for tests."""

from __future__ import annotations

from pathlib import Path

import trustme


def make_certificates(folder: Path) -> None:
    """Write ca.pem, and certificates of that authority with keys: "server" (localhost, 127.0.0.1), "named" (localhost) and "client"."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, names in (("server", ("localhost", "127.0.0.1")), ("named", ("localhost",)), ("client", ("client.example",))):
        pair = authority.issue_cert(*names)
        pair.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        pair.private_key_pem.write_to_path(folder / f"{name}.key")
