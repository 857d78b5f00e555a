"""The harness of `xpnn bench`: the same steps by xpnn and by its peers, timed in turns.

`work` says what is timed, `sides` who does it (the libraries by themselves come from `Backend.peers`), `measure` how,
`machine` what on, and `report` what is said of it.
"""
