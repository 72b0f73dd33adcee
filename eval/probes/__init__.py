"""Linear probes that tell safe from unsafe text by hidden states."""
