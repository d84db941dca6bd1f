"""Ingest two passages, ask about them, read the answer as it comes. Set LARDER_ADDRESS and LARDER_TOKEN, or run `larder up` here."""

from kvclient import Larder

with Larder() as larder:
    notes = larder.ingest("notes/harbour.txt", ["Thornham stores marble in its old harbour.", "It sells the marble to Elmham."])
    answer = larder.ask(notes.ids, "What does Thornham store?", max_tokens=8)
    for token in answer:
        print(token, end="", flush=True)
    print()
    print(answer.report)
