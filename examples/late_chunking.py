"""What a passage remembers: only the second passages of three documents are in the prompt, and they say "it". Run `larder up` first."""

from kvclient import Larder

DOCUMENTS = {
    "harbour.txt": [
        "Thornham exports salt. Thornham hosts Kiln. Thornham envies Ashby.",
        "It stores marble. It trusts Elmham. It sells eels.",
    ],
    "mine.txt": [
        "Ironbury mines silver. Ironbury grows rye. Ironbury supplies Corndale.",
        "It stores wool. It trusts Ashwick. It sells ink.",
    ],
    "farm.txt": ["Dunford grows figs. Dunford imports rope. Dunford hosts Churn.", "It stores flour. It trusts Langwick. It sells lace."],
}
EXPECTED = {"Thornham": "marble", "Ironbury": "wool", "Dunford": "flour"}
WAYS = {
    "computed from the retrieved text": {"planner": "always_compute"},
    "read alone, then loaded": {"planner": "always_load", "policy": "none", "read_as": "alone"},
    "read in its document, then loaded": {"planner": "always_load", "policy": "none", "read_as": "document"},
}

with Larder() as larder:
    for source, passages in DOCUMENTS.items():
        larder.ingest(source, passages, read_as="both")
    retrieved = [f"{source}#1" for source in DOCUMENTS]
    for way, options in WAYS.items():
        asked = {name: larder.ask(retrieved, f"What does {name} store?", max_tokens=1, **options) for name in EXPECTED}
        answers = {name: answer.finish().text.strip() for name, answer in asked.items()}
        n_right = sum(answers[name] == expected for name, expected in EXPECTED.items())
        print(f"{way}: {', '.join(answers.values())}: {n_right} of {len(EXPECTED)} right")
