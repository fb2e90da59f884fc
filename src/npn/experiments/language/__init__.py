"""A GPT on bytes of text: shrunk, or grown in width, heads and depth."""
