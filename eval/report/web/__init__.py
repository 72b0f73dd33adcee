"""The page as a program: its scripts and style, the data they use, and the server that shows the page while a study runs."""
