"""How far a run is: what elements write while they work, and what people read of it.

`progress.py` keeps and publishes an element's progress, `logs.py` finds logs and the first error in them, and `state.py`
derives the state of every element.
"""
