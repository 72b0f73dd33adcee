"""Where and when it runs: the study file, its job graph, launchers, status and the command line."""
