"""How a card says that something is still to be said."""

from cardiodit.hub.card.owner_facts import REQUIRED, OwnerFacts, help_of

TO_BE_STATED = "**To be stated:**"


def to_state(what: str) -> str:
    """One line, that nobody overlooks."""
    return f"{TO_BE_STATED} {what}."


def stated(facts: OwnerFacts, key: str, otherwise: str = "") -> str:
    """A fact in the owner's words, or that it is missing; where it may be missing, something else."""
    value = getattr(facts, key)
    if value is not None:
        return str(value)
    return to_state(f"`{key}`: {help_of(key)}") if key in REQUIRED else otherwise
