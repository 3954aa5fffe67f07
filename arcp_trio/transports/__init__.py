"""How bytes travel: one interface, and what implements it."""
