"""How the database's tables came to be, a file a step (Alembic).

`chiasm.operations.database` runs what is missing whenever a database is opened. A new step is a
file in `versions/` with the next number; `HEAD` names the last, so that opening an up-to-date
database needs no Alembic. Tests hold `HEAD`, the steps and `tables.py` together.
"""

HEAD = "0001"
VERSION_TABLE = "chiasm_version"
