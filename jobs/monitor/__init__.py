"""How far a run is: what elements write while they work, and what people read of it."""
