"""Arrays in, arrays out: folded networks, jitted functions, sliding windows."""
