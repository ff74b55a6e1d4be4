"""Finding or making engines on this machine: a cache of whole things, hashed downloads, tools that are bounded."""
