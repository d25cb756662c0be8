"""The file's frame and its index: bytes ⇄ validated nouns. Codec and method names are opaque strings here."""
