"""What this machine has, what is missing and what to do about it: a table of checks, each of which looks at one thing.

Nothing here loads torch: what torch says of itself is asked in a process of its own (``torch_facts``). No check uses
the network.
"""
