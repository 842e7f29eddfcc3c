"""A run and its folder: made (``creation``), trained here (``training``) or in a process of its own (``process``),
followed (``log``, ``status``), asked for something (``control``). No torch before a run is trained.
"""
