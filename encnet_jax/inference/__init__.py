"""Arrays in, arrays out: the folded network, jitted functions, sliding windows."""
