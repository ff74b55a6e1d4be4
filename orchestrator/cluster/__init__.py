"""The Ray shell: actors, sockets and processes around the core. It carries out, it does not decide."""
