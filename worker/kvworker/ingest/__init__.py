"""The path of a passage: read, cut, encode, store."""
