"""Pools: which replicas are to exist, with which model, when their engines are launched, and how they are let go."""
