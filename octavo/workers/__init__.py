"""Processes for all that can crash, hang or live elsewhere: JSON + npz over stdio, limits, cancellation.

This room knows processes, not models. `local.Worker` starts one and calls `pkg.module:function` in it; `child` is
the other end; `protocol` is the framing that both share.
"""
