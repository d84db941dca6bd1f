"""The closed vocabulary of the notes: names of places, machines and goods, verbs, and the sentences that say nothing."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACES: tuple[str, ...] = tuple(
    stem + ending
    for stem in _words("Alder Ash Bram Corn Dun Elm Fern Glen Hazel Iron Kings Lang Marsh Oaken Raven Thorn")
    for ending in _words("bury by dale ford ham moor ton wick")
)
MACHINES: tuple[str, ...] = _words(
    "Anvil Bellows Boiler Capstan Churn Conveyor Crane Crusher Drill Engine Flywheel Forge Furnace Gantry Hoist Kiln "
    "Lathe Loom Mangle Planer Plough Press Pump Roller Sawmill Sifter Smelter Spindle Thresher Turbine Winch Windlass"
)
ALIASES: tuple[str, ...] = tuple(
    colour + noun for colour in _words("Amber Black Blue Gold Green Grey Red White") for noun in _words("bridge cross gate haven mill well")
)
GOODS: tuple[str, ...] = _words(
    "apples barley beans beer bricks bronze butter candles canvas carpets charcoal cheese cider clay cloth coal "
    "cobalt copper corn cotton dyes eels feathers figs fish flax flour furs glass glue grain granite "
    "hay hemp herbs hides honey hops ink ivory jade jute lace lamps lead leather lime linen "
    "malt marble nails oats oil olives paper pearls pepper rope rye salt silk silver slate wool"
)

# A verb as a note states it, and as a question asks for it.
PLACE_GOODS_VERBS: dict[str, str] = {
    "exports": "export",
    "imports": "import",
    "grows": "grow",
    "mines": "mine",
    "sells": "sell",
    "stores": "store",
}
PLACE_PLACE_VERBS: dict[str, str] = {"trusts": "trust", "envies": "envy", "supplies": "supply"}
PLACE_MACHINE_VERBS: dict[str, str] = {"hosts": "host"}
MACHINE_GOODS_VERBS: dict[str, str] = {"needs": "need", "makes": "make", "carries": "carry", "wastes": "waste"}
EQUALS: dict[str, str] = {"equals": "equal"}
VERBS: dict[str, str] = {**PLACE_GOODS_VERBS, **PLACE_PLACE_VERBS, **PLACE_MACHINE_VERBS, **MACHINE_GOODS_VERBS, **EQUALS}

# Sentences without a name in them: they make passages longer and answer nothing.
FILLERS: tuple[str, ...] = (
    "The road was dry and the carts came early that week.",
    "Nobody at the market spoke of prices before noon.",
    "The clerk wrote these lines by the light of the window.",
    "There was rain in the night and mist in the morning.",
    "Some of the older ledgers were lost in the flood.",
    "The ferry was late and the harbour was quiet.",
    "We counted the barrels twice and found no fault.",
    "A long winter is expected by those who watch the birds.",
)
QUESTION_WORDS: tuple[str, ...] = ("What", "does", "the", "one", "It")
MARKS: tuple[str, ...] = (".", "?")


def split_words(text: str) -> list[str]:
    """Return the words and marks of rendered notes, the units that the tokenizer maps to one token each."""
    for mark in MARKS:
        text = text.replace(mark, " " + mark)
    return text.split()


def vocabulary() -> tuple[str, ...]:
    """Return every word and mark of the notes once, in a fixed order."""
    fillers = [word for filler in FILLERS for word in split_words(filler)]
    words = [*MARKS, *QUESTION_WORDS, *VERBS, *VERBS.values(), *GOODS, *MACHINES, *ALIASES, *PLACES, *sorted(set(fillers))]
    return tuple(dict.fromkeys(words))
