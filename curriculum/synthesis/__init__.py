"""Safety scores of web text, and what safety interventions make of it, asked of a language model behind an HTTP API."""
