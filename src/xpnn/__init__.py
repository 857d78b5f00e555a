"""xpnn."""
