"""Jobs: what waits, runs and has ended in a home (``queue``), who starts it (``dispatcher``), the process that does one
(``worker``), what kinds there are (``kinds``). No torch but in a worker.
"""
