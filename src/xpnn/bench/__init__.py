"""The harness of `xpnn bench`: the same steps by xpnn and by its peers, timed in turns.

`work` says what is timed, `sides`, `with_torch` and `with_jax` who does it, `measure` how, `machine` what on,
and `report` what is said of it.
"""
