"""Images of every program: whose text it is, and that text as the web UI's parameters.

``table`` holds one row a program (how its texts are known, what reads them); each reader is a module. What a reader
does not know stays a field under the program's own name, so that the code that uses the fields can report it.
"""

from loraloom.formats.image_programs.table import read_image, read_text

__all__ = ["read_image", "read_text"]
