"""How workers agree: exchanges between processes, and what they cost on this machine."""
