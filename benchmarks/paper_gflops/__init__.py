"""The GFLOPs of the papers' tables, each in its own counting convention.

One module per table, with a `TABLE` in it. To add one, write the module and name it here.
"""

TABLES = ("segmenter", "dpt", "swag", "mask2former", "stvit")
