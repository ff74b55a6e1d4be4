"""What a replica sees of its GPUs and its host: readings, faults, the mask, the headroom, the topology."""
