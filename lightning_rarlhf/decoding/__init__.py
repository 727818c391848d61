"""Decoding-time methods: they change how responses are drawn from a policy, and train nothing of it.

One file a method; docs/baselines has a page for each.
"""
