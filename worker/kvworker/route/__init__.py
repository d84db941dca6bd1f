"""Several workers behind one address: a question goes where most of its bytes are, weighed against the queue there."""
