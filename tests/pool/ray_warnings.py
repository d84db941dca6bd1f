"""Warnings of Ray's own: what it leaves behind in the process that starts a cluster, and what it announces of later versions."""

RAY_WARNINGS = (
    "ignore:subprocess [0-9]+ is still running:ResourceWarning",
    "ignore:unclosed file:ResourceWarning",
    "ignore:.*Ray will no longer override accelerator visible devices:FutureWarning",
)
