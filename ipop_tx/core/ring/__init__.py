"""The ring: who is next to whom, who owns a key, how a question gets there."""
