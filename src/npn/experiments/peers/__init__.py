"""NPN and neighbouring methods on the same networks, on equal terms."""
