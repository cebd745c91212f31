"""The smallest I-JEPA that works: one idea a module, one module a chapter."""

import os

# Threads that wait for work spin, and on a busy machine they spin on the core that others need. libgomp reads this when
# torch is imported, so it has to stand here; what the reader has set wins. Measured: assets/results/LOG.md.
if "OMP_WAIT_POLICY" not in os.environ:  # PASSIVE sleeps at once: slower on a quiet machine, best on one that is shared
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
