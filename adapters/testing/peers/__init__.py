"""What peers that are scripted byte by byte are made of."""
