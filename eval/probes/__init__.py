"""Linear probes that tell safe from unsafe text by hidden states, and what the representations of arms have in common."""
