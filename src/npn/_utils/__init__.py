"""Small tools that every layer may use; they know nothing of gates or of a model's structure."""
