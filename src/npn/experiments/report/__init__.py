"""Tables, figures, progress displays, and the record of where a result was made."""
