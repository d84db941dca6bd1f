"""A worker as a whole, alone and on the wire."""
