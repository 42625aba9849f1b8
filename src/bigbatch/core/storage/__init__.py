"""Files: written whole or not at all, appended line by line, locked, and read with errors that say what is wrong, and where."""
