"""The smallest I-JEPA that works: one idea a module, one module a chapter."""

import os

# Threads that wait for work spin, and on a busy machine they spin on the core that others need. libgomp reads this when
# torch is imported, so it has to stand here; a value that is set already wins. Measured: assets/results/LOG.md.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
