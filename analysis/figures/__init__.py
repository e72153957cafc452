"""One function per figure: rows in, a matplotlib figure out; nothing is read or written here."""
