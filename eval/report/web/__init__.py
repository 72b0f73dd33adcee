"""The page as a program: the answers that it can search, its scripts, and the server that shows it while a study runs."""
