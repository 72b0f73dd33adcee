"""How the figures look: `curves` over start fractions, `bars` of answers to benign requests, `panels` of anything over time."""
