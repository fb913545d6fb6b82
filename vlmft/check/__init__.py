"""Before training: every row and picture as the model would read it, and what is wrong with them, row by row."""
