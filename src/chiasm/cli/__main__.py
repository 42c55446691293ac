"""`python -m chiasm.cli`, for launchers that want a module, such as `torchrun -m`."""

from chiasm.cli import main

main()
